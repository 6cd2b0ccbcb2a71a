"""Random shards of any size for benchmarks, in the format of the prepare stage."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.prepare.histories_in_time import histories
from dlrrec_torchrec.prepare.inputs import SplitRows
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.modality import BUILT_IN, modality
from dlrrec_torchrec.store.packed import lists
from dlrrec_torchrec.store.shard_facts import ShardFacts

DENSE = ["item_count", "user_mean", "item_mean", "price", "user_count"]  # the prepare stage's default
ROWS_PER_SHARD = 8192  # also the prepare stage's default


def random_facts(
    *,
    users: int,
    items: int,
    modalities: Sequence[str] = tuple(BUILT_IN),
    vector_dim: int = 384,
    positives: int = 10,
) -> ShardFacts:
    """What random shards are: the prepare stage's defaults, with these numbers of ids.

    Args:
        modalities: names; vector_dim: numbers of each vector.
        positives: neighbours in a row.
    """
    known = tuple(
        modality(name, vector_dim, encoder="random", source="file", flag="--modalities")
        for name in modalities
    )
    return ShardFacts(
        users=users,
        items=items,
        dense=tuple(DENSE),
        affinity=(),
        dense_width=dense_width(DENSE),
        rating_range=(1.0, 5.0),
        modalities=known,
        in_rows=tuple(modalities),
        positives=positives,
        category_slots=11,
        category_types=179,
        label_counts={"negative": 1, "positive": 1},  # as many of each
        later=0.0,
    )


def write_random_shards(folder: Path, rows: int, facts: ShardFacts, seed: int = 0) -> None:
    """Write `folder` with `rows` training rows (and one of validation and test each), entities, manifest.

    A folder that has these rows already is left as it is.

    Ids are uniform, labels coin tosses. Vectors are random unit vectors: one for each training row (as after
    leaving out its own review) and one for each entity. An item has 1 to as many categories as
    there are slots, an entity 0 to as many neighbours as there are positives.

    Args:
        facts: what they are to be, except for the labels.
    """
    width, positives, slots = facts.dense_width, facts.positives, facts.category_slots
    manifest = Manifest("prepare", {"random": seed, "rows": rows, "facts": jsonable(facts)}, {})
    if manifest.current(folder):
        return
    if folder.is_dir() and any(folder.iterdir()):
        own = (folder / "manifest.json").exists() and "random" in Manifest.read(folder).config
        if not own:
            raise DataError(f"--keep {folder}: holds something else than random shards; name another folder")
        shutil.rmtree(folder)
    draw = np.random.default_rng(seed)
    category = draw.integers(0, facts.category_types, (facts.items, slots), np.int32)
    used = draw.integers(1, slots + 1, (facts.items, 1))
    category[np.arange(slots) >= used] = facts.category_types
    counts = facts.entities
    neighbours = {side: _neighbours(draw, count, positives) for side, count in counts.items()}
    kind = facts.row_schema()

    def rows_table(number: int) -> pa.Table:
        code = {side: draw.integers(0, count, number, np.int32) for side, count in counts.items()}
        label = draw.integers(0, 2, number).astype(np.float32)
        columns = {"label": label, "rating": 2 + 3 * label, "category": lists(category[code["item"]])} | code
        columns["dense"] = lists(draw.standard_normal((number, width), np.float32))
        columns |= {f"{side}_positives": lists(neighbours[side][code[side]]) for side in counts}
        columns |= {m.name: lists(_vectors(draw, number, m.dim)) for m in facts.row_modalities}
        return pa.table([pa.array(columns[name]) for name in kind.names], schema=kind)

    labels, pairs = 0, []
    for split, number in (("train", rows), ("val", 1), ("test", 1)):
        for part, start in enumerate(range(0, number, ROWS_PER_SHARD)):
            table = rows_table(min(ROWS_PER_SHARD, number - start))
            write_table(table, folder / split, first=part)
            if split == "train":
                labels += int(table["label"].to_numpy().sum())
                pairs.append((table["user"].to_numpy(), table["item"].to_numpy()))

    common = {
        side: {
            "code": np.arange(count, dtype=np.int32),
            "id": [f"{side}-{k}" for k in range(count)],
            "count": draw.integers(1, 100, count, np.int32),
            "mean_rating": draw.uniform(1, 5, count).astype(np.float32),
            "positives": [codes[codes >= 0] for codes in neighbours[side]],
        }
        for side, count in counts.items()
    }
    user, item = (np.concatenate(codes) for codes in zip(*pairs, strict=True))
    common["user"]["history"] = histories(SplitRows(user, item, user, user), facts.users)
    common["item"] |= {
        "title": [f"Item {k}" for k in range(facts.items)],
        "price_tag": ["none"] * facts.items,
        "category": lists(category),
    }
    for side, count in counts.items():
        entity = facts.entity_schema(side)
        for described in (m for m in facts.modalities if m.side == side):
            common[side][described.name] = lists(_vectors(draw, count, described.dim))
        table = pa.table([_array(common[side][f.name], f.type) for f in entity], schema=entity)
        write_table(table, folder / "entities" / f"{side}s")
    manifest.rows = {"train": rows, "val": 1, "test": 1} | {f"{side}s": n for side, n in counts.items()}
    counted = dataclasses.replace(facts, label_counts={"negative": rows - labels, "positive": labels})
    manifest.facts = counted.as_facts() | {"global_mean": 2 + 3 * labels / rows}
    manifest.write(folder)


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _vectors(draw: np.random.Generator, number: int, dim: int) -> np.ndarray:
    """Unit vectors, f16 [number, dim]."""
    vectors = draw.standard_normal((number, dim), np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _neighbours(draw: np.random.Generator, entities: int, limit: int) -> np.ndarray:
    """0 to `limit` codes of entities for each of them, i32 [entities, most], padded with -1."""
    codes = draw.integers(0, entities, (entities, limit), np.int32)
    codes[np.arange(limit) >= draw.integers(0, limit + 1, (entities, 1))] = -1
    return codes
