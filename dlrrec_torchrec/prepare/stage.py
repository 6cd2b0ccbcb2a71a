"""Splits, content and neighbours -> training shards and entity tables.

A training row sees its user and item without its own review; a validation or test row sees them from
training rows only (`leave_one_out`). Memory grows with the number of entities (3 KiB of vector sums for each
modality) and by a few numbers with each row; vectors of single reviews stay on disk.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.prepare import inputs
from dlrrec_torchrec.prepare.inputs import SplitRows
from dlrrec_torchrec.prepare.join import assemble
from dlrrec_torchrec.prepare.shard_writer import (
    Coverage,
    entity_tables,
    rows_table,
    training_order,
    write_parts,
)
from dlrrec_torchrec.prepare.sides import Side
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.progress import Bar
from dlrrec_torchrec.store.schema import MODALITIES, SPLITS, shard_schema

__all__ = ["prepare"]

ENTITIES_PER_PART = 1 << 17


def prepare(
    config: PrepareConfig,
    split_dir: str | Path,
    content_dir: str | Path,
    swing_dir: str | Path,
    items_dir: str | Path,
    out_dir: str | Path,
) -> Manifest:
    """Write the shards of every split, the entity tables and categories.txt (line number = code).

    Args:
        split_dir, content_dir, swing_dir: outputs of split, extract and neighbors over the same rows.
        items_dir: item metadata, for titles; need not exist.

    Raises DataError for settings that make no sense, for inputs that do not belong together, for an id of the
    validation or test split without a training row, and for a rating outside the configured range.
    """
    split_dir, content_dir, swing_dir, items_dir = map(Path, (split_dir, content_dir, swing_dir, items_dir))
    _check(config)
    sources = {"split": split_dir, "content": content_dir, "swing": swing_dir}
    if (items_dir / "manifest.json").exists():
        sources["items"] = items_dir
    fingerprints = {name: Manifest.read(folder).fingerprint for name, folder in sources.items()}
    rating_range = (float(config.rating_range[0]), float(config.rating_range[1]))
    prior = (
        sum(rating_range) / 2
    )  # a constant: the middle of the range, as also an entity without reviews has
    manifest = Manifest("prepare", jsonable(config) | {"prior": prior}, fingerprints)
    if done := manifest.current(out_dir):
        return done
    with stage_output(manifest, out_dir) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        user_ids, item_ids = inputs.training_ids(split_dir / "train")
        splits = {s: inputs.read_split(split_dir / s, user_ids, item_ids, rating_range) for s in SPLITS}
        train = splits["train"]
        users, items, vocabulary = assemble(
            train,
            user_ids,
            item_ids,
            content_dir,
            swing_dir,
            Path(scratch),
            text=config.text,
            by_fold=config.leave_out == "fold",
            smoothing=config.smoothing,
            prior=prior,
            positives=config.positives,
        )
        titles = inputs.read_titles(items_dir, item_ids)
        (folder / "categories.txt").write_text("".join(n + "\n" for n in vocabulary.names), encoding="utf-8")
        coverage = _write(
            folder,
            splits,
            users,
            items,
            entity_tables(users, items, user_ids, item_ids, titles),
            dense=config.dense,
            rating_range=rating_range,
            modalities=config.modalities,
            positives=config.positives,
            rows_per_shard=config.rows_per_shard,
        )
        positive = int((train.label > 0.5).sum())
        manifest.rows = {name: len(rows.label) for name, rows in splits.items()}
        manifest.rows |= {"users": len(user_ids), "items": len(item_ids)}
        manifest.facts = {
            "users": len(user_ids),
            "items": len(item_ids),
            "dense": config.dense,
            "dense_width": dense_width(config.dense),
            "rating_range": list(rating_range),
            "modalities": config.modalities,
            "positives": config.positives,
            "label_counts": {"negative": len(train.label) - positive, "positive": positive},
            "global_mean": float(train.rating.mean(dtype=np.float64)),
            "categories": {
                "names": len(vocabulary.names),
                "closed": vocabulary.closed,
                "dropped": vocabulary.dropped,
            },
            "rows_per_shard": config.rows_per_shard,
            "coverage": coverage,
        }
    return manifest


def _check(config: PrepareConfig) -> None:
    check_settings(config)
    dense_width(config.dense)
    for name in config.modalities:
        if name not in MODALITIES:
            raise DataError(f"prepare.modalities: unknown '{name}' (known: {', '.join(MODALITIES)})")


def _write(
    folder: Path,
    splits: dict[str, SplitRows],
    users: Side,
    items: Side,
    entities: dict,
    *,
    dense: list[str],
    rating_range: tuple[float, float],
    modalities: list[str],
    positives: int,
    rows_per_shard: int,
) -> dict[str, dict[str, float]]:
    """Write the parts of all splits and entity tables; the shares of rows that have each thing, by split."""
    schema = shard_schema(dense_width(dense), modalities, positives)
    coverage = {name: Coverage() for name in splits}
    order = training_order(len(splits["train"].label))

    def make(name: str, start: int, stop: int) -> pa.Table:
        rows = splits[name]
        chosen = order[start:stop] if name == "train" else np.arange(start, stop)
        if name == "train":
            user, item = users.of_rows(chosen), items.of_rows(chosen)
        else:
            user, item = users.of_entities(rows.user[chosen]), items.of_entities(rows.item[chosen])
        coverage[name].add(user, item)
        return rows_table(schema, rows.label[chosen], rows.rating[chosen], user, item, dense, rating_range)

    jobs = {
        name: (schema, len(rows.label), rows_per_shard, partial(make, name)) for name, rows in splits.items()
    }
    jobs |= {f"entities/{n}": (s, size, ENTITIES_PER_PART, rows) for n, (s, size, rows) in entities.items()}
    with Bar() as progress:
        task = progress.add_task("prepare", total=sum(size for _, size, _, _ in jobs.values()))
        for name, (kind, size, rows_per_part, rows) in jobs.items():
            progress.update(task, description=f"prepare {name}")
            write_parts(folder / name, kind, size, rows_per_part, rows, partial(progress.advance, task))
    return {name: found.shares() for name, found in coverage.items()}
