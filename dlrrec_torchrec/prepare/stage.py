"""Splits, content and neighbours -> training shards and entity tables.

A training row sees its user and item by the reviews of other folds (`left_out`), a validation or test row by
all training rows. Memory grows with the number of entities (8 bytes for each number of a modality's vectors)
and by a few numbers with each row; vectors of single reviews, and training rows' affinity, stay on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.prepare import inputs
from dlrrec_torchrec.prepare.affinity_columns import affinity_columns
from dlrrec_torchrec.prepare.histories_in_time import histories, later_share
from dlrrec_torchrec.prepare.inputs import SplitRows
from dlrrec_torchrec.prepare.join import JoinedSides, join_sides
from dlrrec_torchrec.prepare.own_vectors import vector_files
from dlrrec_torchrec.prepare.shard_writer import (
    Coverage,
    entity_rows,
    rows_table,
    training_order,
    write_parts,
)
from dlrrec_torchrec.store.manifest import Manifest, file_digest, jsonable, stage_output
from dlrrec_torchrec.store.modality import SIDES, Modality, chosen
from dlrrec_torchrec.store.progress import Bar
from dlrrec_torchrec.store.schema import AFFINITY, SPLITS
from dlrrec_torchrec.store.shard_facts import ShardFacts

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

    The manifest's facts are those of `ShardFacts`, and `coverage` of each split's rows.

    Args:
        split_dir, content_dir, swing_dir: outputs of split, extract and swing over the same rows.
        items_dir: item metadata, for titles; need not exist.

    Raises DataError for settings that make no sense, for inputs that do not belong together, for an id of the
    validation or test split without a training row, for a rating outside the configured range, and for
    vectors of config.vectors that cannot be used (see `own_vectors`).
    """
    split_dir, content_dir, swing_dir, items_dir = map(Path, (split_dir, content_dir, swing_dir, items_dir))
    _check(config)
    files = vector_files(config.vectors)
    sources = {"split": split_dir, "content": content_dir, "swing": swing_dir}
    if (items_dir / "manifest.json").exists():
        sources["items"] = items_dir
    fingerprints = {name: Manifest.read(folder).fingerprint for name, folder in sources.items()}
    fingerprints |= {f"vectors/{file.name}": file_digest(file.files) for file in files}
    rating_range = inputs.rating_range(config.rating_range, split_dir)
    prior = sum(rating_range) / 2  # a constant, the middle of the range, as an entity without reviews has
    manifest = Manifest("prepare", jsonable(config) | {"prior": prior}, fingerprints)
    if previous := manifest.current(out_dir):
        return previous
    with stage_output(manifest, out_dir) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        user_ids, item_ids = inputs.training_ids(split_dir / "train")
        splits = {s: inputs.read_split(split_dir / s, user_ids, item_ids, rating_range) for s in SPLITS}
        train = splits["train"]
        sides = join_sides(
            train,
            user_ids,
            item_ids,
            content_dir,
            swing_dir,
            Path(scratch),
            text=config.text,
            statistics=config.statistics,
            smoothing=config.smoothing,
            prior=prior,
            positives=config.positives,
            category_types=config.category_types,
            files=files,
        )
        modalities = _modalities(sides, config.modalities)
        affinity = {name: np.zeros((len(rows.label), 0), np.float32) for name, rows in splits.items()}
        affinity_names: tuple[str, ...] = ()
        if config.affinity and config.statistics != "row":
            earlier = config.statistics == "ordered"
            whole, affinity = affinity_columns(splits, sides, modalities, earlier, Path(scratch))
            whole.save(folder / AFFINITY)
            affinity_names = whole.names
        positive = int((train.label > 0.5).sum())
        facts = ShardFacts(
            users=len(user_ids),
            items=len(item_ids),
            dense=tuple(config.dense),
            affinity=affinity_names,
            dense_width=dense_width(config.dense) + len(affinity_names),
            rating_range=rating_range,
            modalities=modalities,
            in_rows=tuple(m.name for m in chosen(config.modalities, modalities, "prepare.modalities")),
            positives=config.positives,
            category_slots=sides.slots,
            category_types=config.category_types,
            label_counts={"negative": len(train.label) - positive, "positive": positive},
            later=later_share(train, splits["val"] if len(splits["val"].label) else splits["test"]),
        )
        names = sides.vocabulary.names
        (folder / "categories.txt").write_text("".join(n + "\n" for n in names), encoding="utf-8")
        titles = inputs.read_titles(items_dir, item_ids)
        entities = {
            "users": entity_rows(
                sides.users, user_ids, facts.entity_schema("user"), history=histories(train, len(user_ids))
            ),
            "items": entity_rows(sides.items, item_ids, facts.entity_schema("item"), title=titles),
        }
        coverage = _write(folder, splits, sides, affinity, entities, facts, config.rows_per_shard)
        manifest.rows = {name: len(rows.label) for name, rows in splits.items()}
        manifest.rows |= {"users": facts.users, "items": facts.items}
        manifest.rows |= {
            f"{m.side}s with {m.name}": sides.number(m) for m in modalities if m.source == "file"
        }
        manifest.facts = facts.as_facts() | {
            "global_mean": float(train.rating.mean(dtype=np.float64)),
            "categories": {
                "names": len(names),
                "closed": sides.vocabulary.closed,
                "dropped": sides.vocabulary.dropped,
            },
            "rows_per_shard": config.rows_per_shard,
            "coverage": coverage,
        }
    return manifest


def _modalities(sides: JoinedSides, requested: Sequence[str] | None) -> tuple[Modality, ...]:
    """The modalities in the entity tables: those that have a vector, or are `requested` in rows.

    A side that has no vector at all keeps its text, all zeros, so that the default settings always have a
    vector of users and of items; what is missing counts in no loss.
    """
    chosen(requested, sides.modalities, "prepare.modalities")  # refuses what is not there
    numbers = {modality.name: sides.number(modality) for modality in sides.modalities}
    kept = {name for name, number in numbers.items() if number} | set(requested or [])
    for side in SIDES:
        names = [modality.name for modality in sides.modalities if modality.side == side]
        if not kept & set(names):
            kept.add(names[0])
    return tuple(modality for modality in sides.modalities if modality.name in kept)


def _check(config: PrepareConfig) -> None:
    check_settings(config)
    dense_width(config.dense)


def _write(
    folder: Path,
    splits: dict[str, SplitRows],
    sides: JoinedSides,
    affinity: dict[str, np.ndarray],
    entities: dict[str, Callable[[int, int], pa.Table]],
    facts: ShardFacts,
    rows_per_shard: int,
) -> dict[str, dict[str, float]]:
    """Write the parts of all splits and entity tables; the shares of rows that have each thing, by split."""
    schema = facts.row_schema()
    coverage = {name: Coverage([modality.name for modality in facts.modalities]) for name in splits}
    order = training_order(len(splits["train"].label))

    def make(name: str, start: int, stop: int) -> pa.Table:
        rows = splits[name]
        chosen_rows = order[start:stop] if name == "train" else np.arange(start, stop)
        if name == "train":
            user, item = sides.users.of_rows(chosen_rows), sides.items.of_rows(chosen_rows)
        else:
            user = sides.users.of_entities(rows.user[chosen_rows])
            item = sides.items.of_entities(rows.item[chosen_rows])
        coverage[name].add(user, item)
        label, rating = rows.label[chosen_rows], rows.rating[chosen_rows]
        columns = affinity[name][chosen_rows]
        return rows_table(schema, label, rating, user, item, list(facts.dense), facts.rating_range, columns)

    jobs = {
        name: (schema, len(rows.label), rows_per_shard, partial(make, name)) for name, rows in splits.items()
    }
    for side, number in facts.entities.items():
        rows = entities[f"{side}s"]
        jobs[f"entities/{side}s"] = facts.entity_schema(side), number, ENTITIES_PER_PART, rows
    with Bar() as progress:
        task = progress.add_task("prepare", total=sum(size for _, size, _, _ in jobs.values()))
        for name, (kind, size, rows_per_part, rows) in jobs.items():
            progress.update(task, description=f"prepare {name}")
            write_parts(folder / name, kind, size, rows_per_part, rows, partial(progress.advance, task))
    return {name: shares.shares() for name, shares in coverage.items()}
