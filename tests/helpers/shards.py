"""Random but valid shards for tests: rows, entity tables and manifest as the prepare stage leaves them.

With `signal`, users and items have latent tastes and items a quality, which the vectors, means and categories
carry and the labels follow; without it the labels are coin tosses. A row's features are those of its entities
(no leave-one-out), so that any row can be made again from the entity tables.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import ModelConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.features.dense import dense_matrix
from dlrrec_torchrec.models.build import build_model
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.modality import BUILT_IN, Modality, modality
from dlrrec_torchrec.store.shard_facts import ShardFacts

LATENT = 4
POSITIVES = 5
DIM = 384  # of vectors, unless a test says otherwise
SLOTS, TYPES = 11, 179  # category types of an item, and in all
MODALITIES = tuple(BUILT_IN)


def modalities_of(names: Iterable[str] = MODALITIES, dims: Mapping[str, int] | None = None) -> list[Modality]:
    """The modalities of these names, of DIM numbers unless `dims` (name -> numbers) says otherwise."""
    return [modality(name, (dims or {}).get(name, DIM), encoder="random", flag="test") for name in names]


def make_facts(
    *,
    users: int = 60,
    items: int = 40,
    dense: int = 7,
    modalities: Iterable[str] = MODALITIES,
    dims: Mapping[str, int] | None = None,
    positives: int = POSITIVES,
    negative: int = 1,
    positive: int = 1,
    later: float = 0.0,
) -> ShardFacts:
    """The facts of shards as `write_shards` writes them."""
    names = tuple(modalities)
    return ShardFacts(
        users=users,
        items=items,
        dense=tuple(_dense_names(dense)),
        affinity=(),
        dense_width=dense,
        rating_range=(1.0, 5.0),
        modalities=tuple(modalities_of(names or MODALITIES, dims)),
        in_rows=names,
        positives=positives,
        category_slots=SLOTS,
        category_types=TYPES,
        label_counts={"negative": negative, "positive": positive},
        later=later,
    )


def plain_spec(
    shards: str | Path | ShardFacts,
    modalities: Iterable[str] = MODALITIES,
    positives: int = POSITIVES,
    sparse: tuple[str, ...] = ("category",),
) -> BatchSpec:
    """What batches of these shards hold, without the settings of a model."""
    facts = shards if isinstance(shards, ShardFacts) else ShardFacts.read(shards)
    known = {m.name: m for m in (*modalities_of(), *facts.modalities)}
    chosen = tuple(known[name] for name in modalities)
    return BatchSpec(facts, sparse=sparse, in_rows=chosen, positives=positives)


def papers_model(**settings) -> ModelConfig:
    """These settings of the model; what they leave open is the papers', whatever the size of the data."""
    return automatic(ModelConfig(**settings), TrainConfig())[0]


def build(config: ModelConfig, device: str | None = None, **facts) -> DLRREC:
    """The model of shards with these facts (`make_facts`)."""
    return build_model(config, batch_spec(config, make_facts(**facts)), device)


def write_shards(
    folder: str | Path,
    *,
    rows: tuple[int, int, int] = (600, 200, 200),
    users: int = 60,
    items: int = 40,
    dense: int = 7,
    modalities: tuple[str, ...] | list[str] = MODALITIES,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    signal: bool = True,
    rows_per_shard: int = 128,
) -> Path:
    """Write `folder`/{train,val,test,entities/users,entities/items,categories.txt,manifest.json}; return it.

    Args:
        rows: rows of train, val and test.
        dense: width of the dense features, 1 to 7.
        modalities: names of those in the rows; with none, the entity tables alone have the built-in ones.
        dims: name -> numbers of a vector (default: DIM).
        rows_per_shard: rows of one Parquet part of a split.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    facts = make_facts(users=users, items=items, dense=dense, modalities=modalities, dims=dims)
    taste = {"user": rng.normal(size=(users, LATENT)), "item": rng.normal(size=(items, LATENT))}
    quality = rng.normal(size=items)
    user = {
        "count": rng.integers(1, 30, users).astype(np.int32),
        "mean_rating": rng.uniform(2, 5, users).astype(np.float32),
        "user_text": _vectors(taste["user"], rng, facts, "user_text"),
        "positives": _neighbours(taste["user"], rng),
    }
    item = {
        "count": rng.integers(1, 30, items).astype(np.int32),
        "mean_rating": np.clip(3.5 + 0.7 * quality, 1, 5).astype(np.float32),
        "price_tag": rng.choice(schema.PRICE_TAGS, items),
        "category": _categories(taste["item"], rng),
        "item_text": _vectors(np.c_[taste["item"], quality], rng, facts, "item_text"),
        "item_image": _vectors(taste["item"], rng, facts, "item_image"),
        "positives": _neighbours(taste["item"], rng),
    }
    entity = {"user": user, "item": item}
    for m in facts.modalities:
        if m.name not in BUILT_IN:
            entity[m.side][m.name] = _vectors(taste[m.side], rng, facts, m.name)

    labels: dict[str, np.ndarray] = {}
    row_schema = facts.row_schema()
    for split, count in zip(schema.SPLITS, rows, strict=True):
        u = rng.integers(0, users, count)
        i = rng.integers(0, items, count)
        logit = 1.5 * quality[i] + (taste["user"][u] * taste["item"][i]).sum(1) if signal else np.zeros(count)
        label = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        labels[split] = label
        if split == "train":
            user["history"] = [i[u == code].astype(np.int32) for code in range(users)]
        matrix = dense_matrix(
            list(facts.dense),
            user["count"][u],
            item["count"][i],
            user["mean_rating"][u],
            item["mean_rating"][i],
            item["price_tag"][i],
        )
        codes = {"user": u, "item": i}
        columns = {
            "label": pa.array(label),
            "rating": pa.array(np.where(label == 1, 5, 2).astype(np.float32)),
            "dense": pa.FixedSizeListArray.from_arrays(matrix.reshape(-1), dense),
            "category": _fixed(item["category"][i]),
            "user": pa.array(u.astype(np.int32)),
            "item": pa.array(i.astype(np.int32)),
            "user_positives": _positives(user["positives"], u),
            "item_positives": _positives(item["positives"], i),
        } | {m.name: _fixed(entity[m.side][m.name][codes[m.side]]) for m in facts.row_modalities}
        write_table(pa.table(columns, schema=row_schema), folder / split, rows_per_shard)

    for side, count in facts.entities.items():
        entity[side] |= {
            "code": np.arange(count, dtype=np.int32),
            "id": [f"{side}-{k}" for k in range(count)],
        }
    item |= {"title": [f"Item {k}" for k in range(items)], "price_tag": item["price_tag"].tolist()}
    for side, values_of in entity.items():
        kind = facts.entity_schema(side)
        columns = {
            name: _fixed(values) if isinstance(values, np.ndarray) and values.ndim == 2 else values
            for name, values in values_of.items()
        }
        table = pa.table({name: columns[name] for name in kind.names}, schema=kind)
        write_table(table, folder / "entities" / f"{side}s")
    (folder / "categories.txt").write_text("\n".join(schema.category_types()) + "\n", encoding="utf-8")
    positive = int(labels["train"].sum())
    counted = dataclasses.replace(facts, label_counts={"negative": rows[0] - positive, "positive": positive})
    mean = float(np.where(labels["train"] == 1, 5, 2).mean()) if rows[0] else 0.0
    config = {"seed": seed, "signal": signal, "rows": list(rows), "facts": jsonable(facts)}
    Manifest(
        "prepare",
        config | {"rows_per_shard": rows_per_shard},
        {},
        rows=dict(zip(schema.SPLITS, rows, strict=True)),
        facts=counted.as_facts() | {"global_mean": mean},
    ).write(folder)
    return folder


def _dense_names(width: int) -> list[str]:
    """Features that take `width` columns together."""
    single = ["item_count", "user_mean", "item_mean", "user_count"]
    return single[: width - 3] + ["price"] if width > 4 else single[:width]


def _vectors(latent: np.ndarray, rng: np.random.Generator, facts: ShardFacts, name: str) -> np.ndarray:
    """Unit vectors, f16 [N, V]: a random linear image of the latent values, with noise."""
    dim = next((m.dim for m in facts.modalities if m.name == name), DIM)
    image = latent @ rng.normal(size=(latent.shape[1], dim))
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
    """i32 [N, SLOTS]: 0 to 3 types out of the item's taste, the rest padding."""
    codes = np.full((len(latent), SLOTS), TYPES, np.int32)
    kind = latent.argmax(1) * 40
    for row, count in enumerate(rng.integers(0, 4, len(latent))):
        codes[row, :count] = kind[row] + rng.choice(40, count, replace=False)
    return codes


def _fixed(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(matrix).reshape(-1), matrix.shape[1])
