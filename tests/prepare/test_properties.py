"""Prepare over random worlds: what a row must never see, and every number against plain loops."""

from __future__ import annotations

import copy
import math
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.store.modality import BUILT_IN
from dlrrec_torchrec.store.schema import PRICE_TAGS, category_types
from tests.helpers.shards import TYPES
from tests.helpers.worlds import (
    Review,
    World,
    content,
    entity_table,
    random_vector,
    random_world,
    split_table,
)

MODES = [(text, statistics) for text in ("mean", "summary") for statistics in ("row", "folds", "ordered")]
ALL_DENSE = ["item_count", "user_mean", "item_mean", "price", "user_count"]
modes = pytest.mark.parametrize(("text", "statistics"), MODES)
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([(384, 384), (5, 1025), (768, 3)])  # numbers of text and image vectors
smoothings = st.sampled_from([0.0, 0.7, 3.0])


def prepared(world: World, **settings) -> dict[str, dict[tuple[str, str], dict[str, np.ndarray]]]:
    """Shards of a world: split -> (user, item) -> column -> values."""
    with tempfile.TemporaryDirectory() as folder:
        paths = world.write(folder)
        config = PrepareConfig(**{"dense": ALL_DENSE, "rows_per_shard": 8, "affinity": False} | settings)
        prepare(config, paths.split, paths.content, paths.swing, paths.items, paths.shards)
        users, items = (entity_table(paths, side) for side in ("user", "item"))
        tables = {"entities": {("", "users"): _row(users, None), ("", "items"): _row(items, None)}}
        for split in ("train", "val", "test"):
            table = split_table(paths, split)
            rows = (_row(table, k) for k in range(table.num_rows))
            tables[split] = {
                (users["id"][int(r["user"][0])].as_py(), items["id"][int(r["item"][0])].as_py()): r
                for r in rows
            }
    return tables


def _row(table: pa.Table, number: int | None) -> dict[str, np.ndarray]:
    """The values of one row (None: of the whole table) by column, as flat arrays of the column's own type."""
    columns = {}
    for name in table.column_names:
        values = table[name].combine_chunks()
        if number is not None:
            values = values.slice(number, 1)
        lengths = [values.value_lengths()] if pa.types.is_list(values.type) else []
        flat = values.flatten() if pa.types.is_nested(values.type) else values
        columns[name] = flat.to_numpy(zero_copy_only=False)
        if lengths and number is None:
            columns[f"{name} lengths"] = lengths[0].to_numpy()
    return columns


def assert_same_bits(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], besides: tuple[str, ...] = ()
) -> None:
    for name in a.keys() - set(besides):
        same = a[name].dtype == b[name].dtype and (
            list(a[name]) == list(b[name])
            if a[name].dtype == object
            else a[name].tobytes() == b[name].tobytes()
        )
        assert same, f"{name}: {a[name]} became {b[name]}"


def world_for(statistics: str, seed: int, **sizes) -> World:
    world = random_world(seed, **sizes)
    world.earlier = statistics == "ordered"
    return world


def rewritten(review: Review, rng: np.random.Generator, dims: tuple[int, int]) -> Review:
    """The same pair and folds with another rating, text and picture, of any size or absent."""
    changed = copy.copy(review)
    changed.rating = float(np.float32(rng.uniform(1, 5)))
    for kind in ("text", "image"):
        size = np.float16(10.0 ** rng.uniform(-4, 2))
        vector = random_vector(rng, dims[kind == "image"])
        setattr(changed, kind, vector * size if rng.random() < 0.8 else None)
    return changed


@modes
@settings(max_examples=5)
@given(seed=seeds, smoothing=smoothings, dims=sizes)
def test_a_training_row_never_sees_its_own_rating_and_text(text, statistics, seed, smoothing, dims):
    rng = np.random.default_rng(seed)
    world = world_for(statistics, seed, users=4, items=12, rows=36, dims=dims)
    changed, k = copy.copy(world), int(rng.integers(36))
    changed.train = [*world.train]
    changed.train[k] = rewritten(world.train[k], rng, dims)
    setting = {"text": text, "statistics": statistics, "smoothing": smoothing}
    before, after = prepared(world, **setting), prepared(changed, **setting)
    pair = world.train[k].user, world.train[k].item
    assert_same_bits(before["train"][pair], after["train"][pair], besides=("label", "rating"))
    near = [r for r in world.train if (r.user == pair[0]) != (r.item == pair[1])]
    sees = lambda r: statistics == "row" or world.visible([world.train[k]], r.fold)  # noqa: E731
    others = [(r.user, r.item) for r in near if sees(r)]
    assert not others or any(
        before["train"][p]["dense"].tobytes() != after["train"][p]["dense"].tobytes() for p in others
    ), "the change must reach other rows, or the test proves nothing"


FOLDED = [("mean", "folds"), ("summary", "folds"), ("mean", "ordered"), ("summary", "ordered")]


@pytest.mark.parametrize(("text", "statistics"), FOLDED)
@settings(max_examples=3)
@given(seed=seeds, smoothing=smoothings)
def test_a_training_row_sees_nothing_of_its_fold_or_of_what_came_later(text, statistics, seed, smoothing):
    """Of any user and item: whatever else happens there, none of its numbers moves by a bit."""
    rng = np.random.default_rng(seed)
    world = world_for(statistics, seed, users=4, items=12, rows=36)
    review = world.train[int(rng.integers(36))]
    setting = {"text": text, "statistics": statistics, "smoothing": smoothing, "affinity": True}
    seen = world.visible(world.train, review.fold)
    changed = copy.copy(world)
    changed.train = [r if r in seen else rewritten(r, rng, world.dims) for r in world.train]
    before, after = prepared(world, **setting), prepared(changed, **setting)
    pair = review.user, review.item
    assert len(before["train"][pair]["dense"]) > 40
    assert_same_bits(before["train"][pair], after["train"][pair], besides=("label", "rating"))
    others = [(r.user, r.item) for r in seen if r.fold != review.fold]
    if statistics == "folds":
        assert any(
            before["train"][p]["dense"].tobytes() != after["train"][p]["dense"].tobytes() for p in others
        )


@modes
@settings(max_examples=3)
@given(seed=seeds)
def test_no_row_sees_a_validation_or_test_row(text, statistics, seed):
    rng = np.random.default_rng(seed)
    world = world_for(statistics, seed, rows=11, val=4, test=4)
    changed = copy.copy(world)
    changed.val = [rewritten(r, rng, world.dims) for r in world.val if rng.random() < 0.7]
    changed.test = [rewritten(r, rng, world.dims) for r in world.test if rng.random() < 0.7]
    setting = {"text": text, "statistics": statistics, "smoothing": 0.7}
    before, after = prepared(world, **setting), prepared(changed, **setting)
    assert list(before["train"]) == list(after["train"])
    for part in ("train", "entities"):
        for key, row in before[part].items():
            assert_same_bits(row, after[part][key])
    for part in ("val", "test"):
        assert list(after[part]) == [(r.user, r.item) for r in getattr(changed, part)]
        for key, row in after[part].items():
            assert_same_bits(before[part][key], row, besides=("label", "rating"))


@modes
@settings(max_examples=5)
@given(seed=seeds, smoothing=smoothings, dims=sizes)
def test_every_row_equals_plain_loops(text, statistics, seed, smoothing, dims):
    world = world_for(statistics, seed, users=6, items=5, rows=18, val=3, test=4, dims=dims)
    tables = prepared(world, text=text, statistics=statistics, smoothing=smoothing, positives=3)
    for split in ("train", "val", "test"):
        reviews = getattr(world, split)
        assert tables[split].keys() == {(r.user, r.item) for r in reviews}
        for review in reviews:
            row = tables[split][review.user, review.item]
            expected = by_loops(world, review, split == "train", text, statistics, smoothing, 3)
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                tolerance = 6e-4 if name in BUILT_IN else 1e-6
                np.testing.assert_allclose(row[name], value, rtol=0, atol=tolerance, err_msg=name)


def by_loops(
    world: World, row: Review, training: bool, text: str, statistics: str, smoothing: float, positives: int
) -> dict[str, np.ndarray]:
    """One row of a shard by the definitions, review by review."""
    expected = {"label": [float(row.rating >= 4)], "rating": [row.rating]}
    facts = {}
    for side in ("user", "item"):
        name, fold = getattr(row, side), row.fold
        of_entity = [r for r in world.train if getattr(r, side) == name]
        outside_fold = world.visible(of_entity, fold)
        if not training:
            seen, read = of_entity, of_entity
        else:
            seen, read = (
                (outside_fold if statistics != "row" else [r for r in of_entity if r is not row]),
                outside_fold,
            )
        weight = len(seen) + smoothing
        mean = (math.fsum(r.rating for r in seen) + smoothing * 3) / weight if weight else math.nan
        facts[side] = (len(seen), 0.0 if math.isnan(mean) else (mean - 1) / 4 * 2 - 1)
        words, picture = world.metadata.get(name, (None, None)) if side == "item" else (None, None)
        vector = content(read, world)["text_vector"]
        if text == "mean":
            vector = pooled([r.text for r in seen] + [words], world.dims[0])
        expected[f"{side}_text"] = np.zeros(world.dims[0]) if vector is None else vector
        if side == "item":
            expected["item_image"] = pooled([r.image for r in seen] + [picture], world.dims[1])
            item_content = content(read, world)
        ids = sorted({getattr(r, side) for r in world.train})
        neighbours = getattr(world, f"{side}_neighbours")[name][:positives]
        codes = [ids.index(n) for n, _ in neighbours]
        expected[f"{side}_positives"] = codes + [-1] * (positives - len(codes))
        expected[side] = [ids.index(name)]
    price = [float(item_content["price_tag"] == tag) for tag in PRICE_TAGS[1:]]
    (users, user_mean), (items, item_mean) = facts["user"], facts["item"]
    expected["dense"] = [math.log1p(items), user_mean, item_mean, *price, math.log1p(users)]
    codes = [category_types().index(c) for c in item_content["categories"]][: world.slots]
    expected["category"] = codes + [TYPES] * (world.slots - len(codes))
    return {name: np.asarray(value) for name, value in expected.items()}


def pooled(vectors: list[np.ndarray | None], dim: int) -> np.ndarray:
    total = np.sum([v.astype(np.float64) for v in vectors if v is not None], axis=0)
    norm = np.linalg.norm(total)
    return total / norm if norm else np.zeros(dim)
