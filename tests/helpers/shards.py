"""Random but valid shards for tests: rows, entity tables and manifest as the prepare stage leaves them.

With `signal`, users and items have latent tastes and items a quality, which the vectors, means and categories
carry and the labels follow; without it the labels are coin tosses. A row's features are those of its entities
(no leave-one-out), so that any row can be made again from the entity tables.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.features.dense import dense_matrix
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest

LATENT = 4
POSITIVES = 5


def write_shards(
    folder: str | Path,
    *,
    rows: tuple[int, int, int] = (600, 200, 200),
    users: int = 60,
    items: int = 40,
    dense: int = 7,
    modalities: tuple[str, ...] | list[str] = schema.MODALITIES,
    seed: int = 0,
    signal: bool = True,
    rows_per_shard: int = 128,
) -> Path:
    """Write `folder`/{train,val,test,entities/users,entities/items,categories.txt,manifest.json}; return it.

    Args:
        rows: rows of train, val and test.
        dense: width of the dense features, 1 to 7.
        rows_per_shard: rows of one Parquet part of a split.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    names = _dense_names(dense)
    taste = {"user": rng.normal(size=(users, LATENT)), "item": rng.normal(size=(items, LATENT))}
    quality = rng.normal(size=items)
    user = {
        "count": rng.integers(1, 30, users).astype(np.int32),
        "mean_rating": rng.uniform(2, 5, users).astype(np.float32),
        "user_text": _vectors(taste["user"], rng),
        "positives": _neighbours(taste["user"], rng),
    }
    item = {
        "count": rng.integers(1, 30, items).astype(np.int32),
        "mean_rating": np.clip(3.5 + 0.7 * quality, 1, 5).astype(np.float32),
        "price_tag": rng.choice(schema.PRICE_TAGS, items),
        "category": _categories(taste["item"], rng),
        "item_text": _vectors(np.c_[taste["item"], quality], rng),
        "item_image": _vectors(taste["item"], rng),
        "positives": _neighbours(taste["item"], rng),
    }
    for entity, vectors in ((user, ["user_text"]), (item, ["item_text", "item_image"])):
        for name in vectors:
            if modalities and name not in modalities:  # rows without any leave them to the entity tables
                entity[name] = np.zeros_like(entity[name])

    labels: dict[str, np.ndarray] = {}
    wanted = schema.shard_schema(dense, modalities, POSITIVES)
    for split, count in zip(schema.SPLITS, rows, strict=True):
        u = rng.integers(0, users, count)
        i = rng.integers(0, items, count)
        logit = 1.5 * quality[i] + (taste["user"][u] * taste["item"][i]).sum(1) if signal else np.zeros(count)
        label = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        labels[split] = label
        matrix = dense_matrix(
            names,
            user["count"][u],
            item["count"][i],
            user["mean_rating"][u],
            item["mean_rating"][i],
            item["price_tag"][i],
        )
        vectors = {
            m: (user["user_text"][u] if m == "user_text" else item[m][i]).reshape(-1) for m in modalities
        }
        columns = {
            "label": pa.array(label),
            "rating": pa.array(np.where(label == 1, 5, 2).astype(np.float32)),
            "dense": pa.FixedSizeListArray.from_arrays(matrix.reshape(-1), dense),
            "category": _fixed(item["category"][i]),
            "user": pa.array(u.astype(np.int32)),
            "item": pa.array(i.astype(np.int32)),
            "user_positives": _positives(user["positives"], u),
            "item_positives": _positives(item["positives"], i),
        } | {m: pa.FixedSizeListArray.from_arrays(v, schema.VECTOR_DIM) for m, v in vectors.items()}
        write_table(pa.table(columns, schema=wanted), folder / split, rows_per_shard)

    user_table = {
        "code": np.arange(users, dtype=np.int32),
        "id": [f"user-{k}" for k in range(users)],
        "count": user["count"],
        "mean_rating": user["mean_rating"],
        "user_text": _fixed(user["user_text"]),
        "positives": user["positives"],
    }
    item_table = {
        "code": np.arange(items, dtype=np.int32),
        "id": [f"item-{k}" for k in range(items)],
        "title": [f"Item {k}" for k in range(items)],
        "count": item["count"],
        "mean_rating": item["mean_rating"],
        "price_tag": item["price_tag"].tolist(),
        "category": _fixed(item["category"]),
        "item_text": _fixed(item["item_text"]),
        "item_image": _fixed(item["item_image"]),
        "positives": item["positives"],
    }
    write_table(pa.table(user_table, schema=schema.USER_ENTITY), folder / "entities" / "users")
    write_table(pa.table(item_table, schema=schema.ITEM_ENTITY), folder / "entities" / "items")
    (folder / "categories.txt").write_text("\n".join(schema.category_types()) + "\n", encoding="utf-8")
    positive = int(labels["train"].sum())
    facts = {
        "users": users,
        "items": items,
        "dense": names,
        "dense_width": dense,
        "rating_range": [1.0, 5.0],
        "modalities": list(modalities),
        "positives": POSITIVES,
        "label_counts": {"negative": rows[0] - positive, "positive": positive},
        "global_mean": float(np.where(labels["train"] == 1, 5, 2).mean()) if rows[0] else 0.0,
    }
    config = {"seed": seed, "signal": signal, "rows": list(rows), "shape": [users, items, dense]}
    Manifest(
        "prepare",
        config | {"modalities": list(modalities), "rows_per_shard": rows_per_shard},
        {},
        rows=dict(zip(schema.SPLITS, rows, strict=True)),
        facts=facts,
    ).write(folder)
    return folder


def _dense_names(width: int) -> list[str]:
    """Features that take `width` columns together."""
    single = ["item_count", "user_mean", "item_mean", "user_count"]
    return single[: width - 3] + ["price"] if width > 4 else single[:width]


def _vectors(latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors, f16 [N, 384]: a random linear image of the latent values, with noise."""
    image = latent @ rng.normal(size=(latent.shape[1], schema.VECTOR_DIM))
    image += 0.5 * rng.normal(size=image.shape)
    return (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float16)


def _neighbours(latent: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """For each entity its nearest others, best first, 0 to POSITIVES of them."""
    distance = ((latent[:, None] - latent[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    order = distance.argsort(1)[:, : min(POSITIVES, len(latent) - 1)]
    return [row[: rng.integers(0, POSITIVES + 1)].tolist() for row in order]


def _positives(neighbours: list[list[int]], codes: np.ndarray) -> pa.FixedSizeListArray:
    """[N, POSITIVES] of the neighbours of `codes`, padded with -1."""
    padded = [(neighbours[k] + [-1] * POSITIVES)[:POSITIVES] for k in codes]
    return _fixed(np.array(padded, np.int32).reshape(-1, POSITIVES))


def _categories(latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """i32 [N, 11]: 0 to 3 types out of the item's taste, the rest padding."""
    codes = np.full((len(latent), schema.CATEGORY_SLOTS), schema.PAD_CATEGORY, np.int32)
    kind = latent.argmax(1) * 40
    for row, count in enumerate(rng.integers(0, 4, len(latent))):
        codes[row, :count] = kind[row] + rng.choice(40, count, replace=False)
    return codes


def _fixed(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(matrix).reshape(-1), matrix.shape[1])
