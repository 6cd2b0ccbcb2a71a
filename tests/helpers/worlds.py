"""Small worlds for tests: the folders that split, extract and neighbors leave, out of plain rows.

Content is made here by simple rules out of exactly the reviews that a fold may see, so that a stage which
reads the wrong fold shows what it must not show.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest, file_digest
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.schema import (
    ITEM_CONTENT,
    ITEMS,
    METADATA_CONTENT,
    NEIGHBORS,
    PRICE_TAGS,
    REVIEW_CONTENT,
    SPLIT,
    USER_CONTENT,
    category_types,
    with_vectors,
)
from dlrrec_torchrec.store.shard_facts import ShardFacts

FOLDS = 3
DIM = 384  # of vectors, unless a world says otherwise
SLOTS = 11  # category types of an item


@dataclasses.dataclass
class Review:
    """One row of a split. Vectors are float16 [V] or None; the fold counts for training rows only."""

    user: str
    item: str
    rating: float
    text: np.ndarray | None = None
    image: np.ndarray | None = None
    fold: int = 0


Neighbours = dict[str, list[tuple[str, float]]]  # id -> (neighbour, score), best first


@dataclasses.dataclass
class World:
    """What a run knows before prepare."""

    train: list[Review]
    val: list[Review] = dataclasses.field(default_factory=list)
    test: list[Review] = dataclasses.field(default_factory=list)
    user_neighbours: Neighbours = dataclasses.field(default_factory=dict)
    item_neighbours: Neighbours = dataclasses.field(default_factory=dict)
    category_names: list[str] = dataclasses.field(default_factory=category_types)
    titles: dict[str, str] | None = None  # None: the source has no metadata
    # item -> what its metadata says and shows; a training item's only
    metadata: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = dataclasses.field(default_factory=dict)
    dims: tuple[int, int] = (DIM, DIM)  # numbers of a text's and of an image's vector
    slots: int = SLOTS
    earlier: bool = False  # folds are blocks of time, and content of a fold is made of earlier ones

    def visible(self, reviews: list[Review], fold: int) -> list[Review]:
        """Those that a training row of `fold` may see."""
        if fold < 0:
            return reviews
        return [r for r in reviews if (r.fold < fold if self.earlier else r.fold != fold)]

    def write(self, root: str | Path) -> RunPaths:
        """Write split/, content/, swing/ and, with titles, items/ under `root`."""
        paths = RunPaths(Path(root), Path(root))
        write_split(self, paths.split)
        write_content(self, paths.content)
        write_swing(self, paths.swing)
        if self.titles is not None:
            write_items(self.titles, paths.items)
        return paths


def random_vector(rng: np.random.Generator, dim: int = DIM) -> np.ndarray:
    """A vector of unit length up to rounding, float16 [dim]."""
    vector = rng.normal(size=dim)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def random_world(
    seed: int,
    users: int = 5,
    items: int = 4,
    rows: int = 14,
    val: int = 3,
    test: int = 3,
    folds: int = FOLDS,
    dims: tuple[int, int] = (DIM, DIM),
) -> World:
    """Random pairs with random ratings of 1 to 5 in steps of 0.1; some reviews lack words, some pictures,
    some items have metadata.

    Validation and test rows are pairs of training ids. Needs `rows` + `val` + `test` <= `users` x `items`.
    """
    rng = np.random.default_rng(seed)
    pairs = [(f"u{p // items}", f"i{p % items}") for p in rng.permutation(users * items)[: rows + val + test]]
    reviews = [
        Review(
            user,
            item,
            round(float(rng.uniform(1, 5)), 1),
            random_vector(rng, dims[0]) if rng.random() < 0.8 else None,
            random_vector(rng, dims[1]) if rng.random() < 0.5 else None,
            int(rng.integers(folds)),
        )
        for user, item in pairs
    ]
    train, rest = reviews[:rows], reviews[rows:]
    known = {r.user for r in train}, {r.item for r in train}
    rest = [r for r in rest if r.user in known[0] and r.item in known[1]]

    def neighbours(ids: set[str]) -> Neighbours:
        ranked = {}
        for name in sorted(ids):
            others = [str(o) for o in rng.permutation(sorted(ids - {name}))][: rng.integers(len(ids))]
            ranked[name] = list(zip(others, np.sort(rng.uniform(0.1, 1, len(others)))[::-1], strict=True))
        return ranked

    world = World(train, rest[:val], rest[val:], neighbours(known[0]), neighbours(known[1]), dims=dims)
    for name in sorted(known[1]):
        vectors = [random_vector(rng, dim) if rng.random() < 0.5 else None for dim in dims]
        if rng.random() < 0.5 and any(v is not None for v in vectors):
            world.metadata[name] = tuple(vectors)
    return world


def entity_table(paths: RunPaths, side: str) -> pa.Table:
    """What prepare wrote of all users ("user") or items ("item")."""
    kind = ShardFacts.read(paths.shards).entity_schema(side)
    return read_table(paths.shards / "entities" / f"{side}s", kind)


def split_table(paths: RunPaths, split: str) -> pa.Table:
    """What prepare wrote of a split's rows."""
    return read_table(paths.shards / split, ShardFacts.read(paths.shards).row_schema())


def label(review: Review) -> float:
    return float(review.rating >= 4)


def write_split(world: World, folder: Path) -> None:
    for name in ("train", "val", "test"):
        rows = [
            {
                "user_id": r.user,
                "item_id": r.item,
                "rating": r.rating,
                "text": None if r.text is None else r.text.tobytes().hex()[:40],
                "label": label(r),
            }
            for r in getattr(world, name)
        ]
        write_table(_table(rows, SPLIT), folder / name)
    _manifest("split", folder, {"rating_range": [1.0, 5.0]})


def write_content(world: World, folder: Path) -> None:
    """Content of each (entity, fold) out of the entity's training reviews outside the fold, by `content`."""
    rows = [
        {
            "user_id": r.user,
            "item_id": r.item,
            "fold": r.fold,
            "text_vector": r.text,
            "image_vector": r.image,
        }
        for r in reversed(world.train)  # not the order of the split: readers must go by the ids
    ]
    dims = dict(zip(("text_vector", "image_vector"), world.dims, strict=True))
    write_table(_table(rows, with_vectors(REVIEW_CONTENT, dims)), folder / "reviews", 5)
    for side, schema in (
        ("user", with_vectors(USER_CONTENT, {"text_vector": world.dims[0]})),
        ("item", with_vectors(ITEM_CONTENT, dims)),
    ):
        reviews = defaultdict(list)
        for review in world.train:
            reviews[getattr(review, side)].append(review)
        contents = []
        for name, of_entity in reviews.items():
            for fold in (-1, *sorted({r.fold for r in of_entity})):
                seen = world.visible(of_entity, fold)
                contents.append({"id": name, "fold": fold} | content(seen, world))
        write_table(_table(contents, schema), folder / f"{side}s", 7)
    described = [{"id": k, "text_vector": t, "image_vector": i} for k, (t, i) in world.metadata.items()]
    write_table(_table(described, with_vectors(METADATA_CONTENT, dims)), folder / "metadata")
    facts = {"vector_dims": {"text": world.dims[0], "image": world.dims[1]}, "encoder": "random"}
    _manifest(
        "extract",
        folder,
        facts | {"category_slots": world.slots, "fold_by": "time" if world.earlier else "random"},
    )


def content(seen: list[Review], world: World) -> dict:
    """Content out of the reviews `seen`: it changes with any of their ratings and vectors."""
    names = world.category_names
    most = min(len(seen) * 4, world.slots + 3)
    texts, images = ([v for r in seen if (v := getattr(r, kind)) is not None] for kind in ("text", "image"))
    tenths = sum(round(r.rating * 10) for r in seen) + sum(int(1000 * abs(float(v[0]))) for v in texts)
    return {
        "summary": f"{len(seen)} reviews",
        "text_vector": _mean(texts),
        "image_vector": _mean(images),
        "price_tag": PRICE_TAGS[tenths % len(PRICE_TAGS)] if seen else "none",
        "categories": [names[(tenths + 7 * k) % len(names)] for k in range(most)],
        "likes": [names[(tenths + 5 * k) % len(names)] for k in range(len(seen) % 3)],
        "avoids": [names[(tenths + 1) % len(names)]] * (len(seen) > 1),
    }


def write_swing(world: World, folder: Path) -> None:
    for name, neighbours in (("users", world.user_neighbours), ("items", world.item_neighbours)):
        rows = [
            {"id": k, "neighbors": [n for n, _ in ranked], "scores": [s for _, s in ranked]}
            for k, ranked in neighbours.items()
        ]
        write_table(_table(rows, NEIGHBORS), folder / name)
    _manifest("swing", folder)


def write_items(titles: dict[str, str], folder: Path) -> None:
    write_table(_table([{"item_id": k, "title": t} for k, t in titles.items()], ITEMS), folder)
    _manifest("ingest", folder)


def _mean(vectors: list[np.ndarray]) -> np.ndarray | None:
    if not vectors:
        return None
    return np.mean(np.stack(vectors).astype(np.float64), axis=0).astype(np.float16)


def _table(rows: list[dict], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_fixed_size_list(field.type):
            missing, dim = np.array([v is None for v in values], bool), field.type.list_size
            full = [np.zeros(dim, np.float16) if v is None else v for v in values]
            flat = np.concatenate([np.zeros(0, np.float16), *full])
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat), dim, mask=pa.array(missing))
            columns.append(column)
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _manifest(stage: str, folder: Path, facts: dict | None = None) -> None:
    inputs = {"rows": file_digest(folder.rglob("part-*.parquet"))}
    Manifest(stage, {}, inputs, facts=facts or {}).write(folder)
