"""Random shards of any size for benchmarks, in the format of the prepare stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.packed import lists

DENSE = ["item_count", "user_mean", "item_mean", "price", "user_count"]  # the prepare stage's default
ROWS_PER_SHARD = 8192  # also the prepare stage's default


def write_random_shards(
    folder: Path,
    rows: int,
    *,
    users: int,
    items: int,
    modalities: Sequence[str] = schema.MODALITIES,
    positives: int = 10,
    seed: int = 0,
) -> None:
    """Write `folder` with `rows` training rows (and one of validation and test each), entities, manifest.

    A folder that has these rows already is left as it is.

    Ids are uniform, labels coin tosses. Vectors are random unit vectors: one for each training row
    (as after leaving out its own review) and one for each entity. An item has 1 to 11 categories, an entity
    0 to `positives` neighbours.
    """
    width, options = dense_width(DENSE), {"positives": positives, "modalities": list(modalities)}
    manifest = Manifest(
        "prepare", {"random": seed, "rows": rows, "users": users, "items": items} | options, {}
    )
    if manifest.current(folder):
        return
    draw = np.random.default_rng(seed)
    category = draw.integers(0, schema.NUM_CATEGORIES, (items, schema.CATEGORY_SLOTS), np.int32)
    used = draw.integers(1, schema.CATEGORY_SLOTS + 1, (items, 1))
    category[np.arange(schema.CATEGORY_SLOTS) >= used] = schema.PAD_CATEGORY
    counts = {"user": users, "item": items}
    neighbours = {side: _neighbours(draw, count, positives) for side, count in counts.items()}
    kind = schema.shard_schema(width, modalities, positives)

    def rows_table(number: int) -> pa.Table:
        code = {side: draw.integers(0, count, number, np.int32) for side, count in counts.items()}
        label = draw.integers(0, 2, number).astype(np.float32)
        columns = {"label": label, "rating": 2 + 3 * label, "category": lists(category[code["item"]])} | code
        columns["dense"] = lists(draw.standard_normal((number, width), np.float32))
        columns |= {f"{side}_positives": lists(neighbours[side][code[side]]) for side in counts}
        columns |= {name: lists(_vectors(draw, number)) for name in modalities}
        return pa.table([pa.array(columns[name]) for name in kind.names], schema=kind)

    labels = 0
    for split, number in (("train", rows), ("val", 1), ("test", 1)):
        for part, start in enumerate(range(0, number, ROWS_PER_SHARD)):
            table = rows_table(min(ROWS_PER_SHARD, number - start))
            write_table(table, folder / split, first=part)
            if split == "train":
                labels += int(table["label"].to_numpy().sum())

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
    common["item"] |= {
        "title": [f"Item {k}" for k in range(items)],
        "price_tag": ["none"] * items,
        "category": lists(category),
    }
    for side, entity in (("user", schema.USER_ENTITY), ("item", schema.ITEM_ENTITY)):
        for name in (n for n in schema.MODALITIES if n.startswith(side)):
            common[side][name] = lists(_vectors(draw, counts[side]))
        table = pa.table([pa.array(common[side][f.name], f.type) for f in entity], schema=entity)
        write_table(table, folder / "entities" / f"{side}s")
    manifest.rows = {"train": rows, "val": 1, "test": 1, "users": users, "items": items}
    manifest.facts = options | {
        "users": users,
        "items": items,
        "dense": DENSE,
        "dense_width": width,
        "rating_range": [1.0, 5.0],
        "label_counts": {"negative": rows - labels, "positive": labels},
        "global_mean": 2 + 3 * labels / rows,
    }
    manifest.write(folder)


def _vectors(draw: np.random.Generator, number: int) -> np.ndarray:
    """Unit vectors, f16 [number, 384]."""
    vectors = draw.standard_normal((number, schema.VECTOR_DIM), np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _neighbours(draw: np.random.Generator, entities: int, limit: int) -> np.ndarray:
    """0 to `limit` codes of entities for each of them, i32 [entities, most], padded with -1."""
    codes = draw.integers(0, entities, (entities, limit), np.int32)
    codes[np.arange(limit) >= draw.integers(0, limit + 1, (entities, 1))] = -1
    return codes
