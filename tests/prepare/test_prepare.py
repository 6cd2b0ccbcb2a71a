"""Prepare: codes, padding, positives, entity tables, vocabularies, parts, exact sums and its errors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.features import left_out
from dlrrec_torchrec.features.dense import dense_matrix
from dlrrec_torchrec.prepare import inputs
from dlrrec_torchrec.prepare import shard_writer as shards
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.prepare.vocabulary import category_codes, category_vocabulary
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.schema import (
    ITEM_CONTENT,
    NEIGHBORS,
    USER_CONTENT,
    category_types,
    with_vectors,
)
from tests.helpers.shards import TYPES
from tests.helpers.worlds import (
    DIM,
    Review,
    World,
    entity_table,
    random_vector,
    random_world,
    split_table,
    write_content,
    write_split,
    write_swing,
)

VECTOR = random_vector(np.random.default_rng(5))
OTHER = random_vector(np.random.default_rng(6))


def run(paths: RunPaths, **settings) -> Manifest:
    """Rows without their own review alone, and without smoothing, whose numbers are easy to see."""
    config = PrepareConfig(**{"statistics": "row", "smoothing": 0.0} | settings)
    return prepare(config, paths.split, paths.content, paths.swing, paths.items, paths.shards)


def vectors(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].combine_chunks().flatten()).reshape(-1, 384)


def small_world(**changes) -> World:
    """a and b both reviewed x; only a reviewed y, without a word; b's only review is of x."""
    train = [
        Review("b", "x", 5.0, OTHER, None, 1),
        Review("a", "x", 2.0, VECTOR, VECTOR, 0),
        Review("a", "y", 4.0, None, None, 1),
    ]
    return World(train, [], [Review("b", "y", 3.0)], **changes)


def test_few_reviews_by_hand(tmp_path):
    paths = small_world(user_neighbours={"a": [("b", 0.5)]}).write(tmp_path)
    run(paths)
    users, items = (entity_table(paths, side) for side in ("user", "item"))
    assert users["id"].to_pylist() == ["a", "b"] and items["id"].to_pylist() == ["x", "y"]
    assert users["count"].to_pylist() == [2, 1] and items["count"].to_pylist() == [2, 1]
    assert users["mean_rating"].to_pylist() == [3.0, 5.0] and items["mean_rating"].to_pylist() == [3.5, 4.0]
    assert users["positives"].to_pylist() == [[1], []] and items["title"].to_pylist() == [None, None]
    np.testing.assert_allclose(vectors(users, "user_text"), [VECTOR, OTHER], atol=6e-4)
    assert vectors(items, "item_text")[1].tolist() == [0] * 384  # y: no words
    assert vectors(items, "item_image")[1].tolist() == [0] * 384
    np.testing.assert_allclose(vectors(items, "item_image")[0], VECTOR, atol=6e-4)

    train = {(r["user"], r["item"]): r for r in split_table(paths, "train").to_pylist()}
    first = train[1, 0]  # b's only review: nothing is left of b; a's is left of x
    assert first["dense"][1] == 0 and first["dense"][6] == 0 and not any(first["user_text"])
    assert first["dense"][0] == np.float32(np.log(2)) and first["dense"][2] == -0.5
    np.testing.assert_allclose(first["item_text"], VECTOR, atol=6e-4)
    np.testing.assert_allclose(first["item_image"], VECTOR, atol=6e-4)
    assert not any(train[0, 0]["item_image"]), "x has no picture except that of the row itself"
    np.testing.assert_allclose(train[0, 1]["user_text"], VECTOR, atol=6e-4)
    test = split_table(paths, "test").to_pylist()[0]
    assert (test["user"], test["item"], test["label"], test["rating"]) == (1, 1, 0.0, 3.0)
    assert test["dense"][1:3] == [1.0, 0.5] and test["dense"][0] == np.float32(np.log(2))
    np.testing.assert_allclose(test["user_text"], OTHER, atol=6e-4)


def test_manifest_tells_what_was_made(tmp_path):
    paths = small_world(user_neighbours={"a": [("b", 0.5)]}, titles={"y": "Why?", "z": "unseen"}).write(
        tmp_path
    )
    facts = run(paths, positives=4).facts
    assert Manifest.read(paths.shards).rows == {"train": 3, "val": 0, "test": 1, "users": 2, "items": 2}
    assert facts["label_counts"] == {"negative": 1, "positive": 2} and facts["positives"] == 4
    assert facts["global_mean"] == pytest.approx(11 / 3) and facts["dense_width"] == 7
    assert facts["coverage"]["train"] == {
        "user_text": 0.3333,
        "item_text": 0.6667,
        "item_image": 0.3333,
        "user_positives": 0.6667,
        "item_positives": 0.0,
    }
    assert entity_table(paths, "item")["title"].to_pylist() == [None, "Why?"]
    assert split_table(paths, "val").num_rows == 0


def test_positives_keep_their_order_and_drop_what_is_none(tmp_path):
    world = random_world(1, users=6, items=5, rows=24)
    everyone = ["u5", "u3", "stranger", "u1", "u2", "u4"]
    world.user_neighbours = {"u0": list(zip(everyone, [0.9, 0.8, 0.7, 0.6, 0.0, -1.0], strict=True))}
    world.item_neighbours = {"i1": [("i4", 3.0), ("i0", 2.0), ("i3", 1.0)], "gone": [("i0", 1.0)]}
    paths = world.write(tmp_path)
    run(paths, positives=2)
    assert entity_table(paths, "user")["positives"].to_pylist()[0] == [5, 3]
    items = entity_table(paths, "item")["positives"].to_pylist()
    assert items == [[], [4, 0], [], [], []]
    for row in split_table(paths, "train").to_pylist():
        assert row["item_positives"] == (items[row["item"]] + [-1, -1])[:2]
    run(paths, positives=10)
    assert entity_table(paths, "user")["positives"].to_pylist()[0] == [5, 3, 1]
    assert run(paths, positives=0).facts["coverage"]["train"]["item_positives"] == 0
    assert "item_positives" not in pq.read_schema(paths.shards / "train/part-00000.parquet").names
    assert split_table(paths, "train").num_rows == 24


def test_evaluation_rows_are_what_serving_makes_of_the_entities(tmp_path):
    paths = random_world(2, users=8, items=7, rows=30, val=8, test=8).write(tmp_path)
    names = ["price", "item_mean", "user_count"]
    run(paths, dense=names, smoothing=1.3)
    users, items = (entity_table(paths, side) for side in ("user", "item"))
    for split in ("val", "test"):
        rows = split_table(paths, split)
        user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
        dense = dense_matrix(
            names,
            users["count"].to_numpy()[user],
            items["count"].to_numpy()[item],
            users["mean_rating"].to_numpy()[user],
            items["mean_rating"].to_numpy()[item],
            np.array(items["price_tag"].to_pylist(), object)[item],
        )
        assert np.array(rows["dense"].to_pylist(), np.float32).tobytes() == dense.tobytes()
        assert vectors(rows, "user_text").tobytes() == vectors(users, "user_text")[user].tobytes()
        assert vectors(rows, "item_image").tobytes() == vectors(items, "item_image")[item].tobytes()
        assert rows["category"].to_pylist() == [items["category"].to_pylist()[k] for k in item]


def test_parts_are_bounded_shuffled_and_the_same_each_time(tmp_path, monkeypatch):
    paths = random_world(4, users=8, items=8, rows=40, val=10, test=10).write(tmp_path)
    run(paths, rows_per_shard=16)
    sizes = [pq.read_metadata(p).num_rows for p in sorted((paths.shards / "train").glob("part-*"))]
    assert sizes == [16, 16, 8]
    rows = split_table(paths, "train")
    order = list(zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True))
    assert len(set(order)) == 40 and order != sorted(order)
    for settings in ({"statistics": "folds"}, {"text": "summary"}, {}):
        run(paths, rows_per_shard=1000, **settings)
        whole = split_table(paths, "train")
        with monkeypatch.context() as patch:
            for module in (inputs, left_out, shards):
                patch.setattr(module, "CHUNK_ROWS", 3)
            run(paths, rows_per_shard=16, **settings)
        assert split_table(paths, "train").equals(whole)
    assert whole.equals(rows)


def test_modalities_choose_the_columns(tmp_path):
    paths = random_world(4).write(tmp_path)
    run(paths, modalities=["item_image", "user_text"], dense=["item_count"])
    names = pq.read_schema(paths.shards / "train/part-00000.parquet").names
    assert names[-2:] == ["item_image", "user_text"] and "item_text" not in names
    assert split_table(paths, "test").num_rows > 0
    assert entity_table(paths, "item")["item_text"].null_count == 0


def test_finished_work_is_not_repeated_and_a_changed_input_is(tmp_path):
    world = random_world(4)
    paths = world.write(tmp_path)
    assert not run(paths).reused and run(paths).reused
    assert not run(paths, smoothing=1.0).reused
    world.user_neighbours = {}
    write_swing(world, paths.swing)
    assert not run(paths, smoothing=1.0).reused
    assert not list(tmp_path.glob(".shards*")) and {p.name for p in paths.shards.iterdir()} == {
        "train", "val", "test", "entities", "categories.txt", "manifest.json",
    }  # fmt: skip


# Categories


def test_fixed_types_are_used_where_they_cover_every_name(tmp_path):
    paths = random_world(4).write(tmp_path)
    facts = run(paths).facts
    assert facts["categories"] == {"names": 179, "closed": True, "dropped": 0}
    assert (paths.shards / "categories.txt").read_text().splitlines() == category_types()


def test_other_names_are_ranked_by_items_then_name():
    lists = pa.chunked_array([[["b", "c"], ["zeta", "a", "a"]], [None, ["c"], ["only in a fold"], []]])
    whole = np.array([True, True, True, True, False, True])
    vocabulary = category_vocabulary(lists, whole, 179)
    assert vocabulary.names == ["c", "a", "b", "zeta"] and not vocabulary.closed and vocabulary.dropped == 1


def test_at_most_179_names_are_kept(tmp_path):
    world = random_world(7, users=12, items=40, rows=240)
    world.category_names = [f"type {k}" for k in range(900)]
    paths = world.write(tmp_path)
    facts = run(paths).facts["categories"]
    names = (paths.shards / "categories.txt").read_text().splitlines()
    assert len(names) == facts["names"] == 179 and facts["dropped"] > 0 and not facts["closed"]
    codes = np.array(split_table(paths, "train")["category"].to_pylist())
    assert codes.max() == TYPES and codes.min() == 0
    content = read_table(paths.content / "items", ITEM_CONTENT).to_pylist()
    categories_of = {r["id"]: r["category"] for r in entity_table(paths, "item").to_pylist()}
    for row in content:
        if row["fold"] == -1:
            kept = [names.index(n) for n in row["categories"] if n in names][:11]
            assert categories_of[row["id"]] == kept + [TYPES] * (11 - len(kept))


def test_more_slots_and_more_types_than_a_byte_counts(tmp_path):
    """Numbers of types and of slots are settings; the padding is the number of types."""
    world = random_world(7, users=12, items=40, rows=240)
    world.category_names, world.slots = [f"type {k}" for k in range(900)], 13
    paths = world.write(tmp_path)
    facts = run(paths, category_types=300).facts
    assert (facts["category_slots"], facts["category_types"]) == (13, 300)
    assert facts["categories"]["names"] == 300 and facts["categories"]["dropped"] > 0
    codes = np.array(split_table(paths, "train")["category"].to_pylist())
    assert codes.shape[1] == 13 and codes.max() == 300 and ((codes > 255) & (codes < 300)).any()
    names = (paths.shards / "categories.txt").read_text().splitlines()
    entities = dict(
        zip(*(entity_table(paths, "item")[c].to_pylist() for c in ("id", "category")), strict=True)
    )
    for row in read_table(paths.content / "items", ITEM_CONTENT).to_pylist():
        if row["fold"] == -1:
            kept = [names.index(n) for n in row["categories"] if n in names][:13]
            assert entities[row["id"]] == kept + [300] * (13 - len(kept))
    with pytest.raises(DataError, match="prepare.category_types .*: 0 must be at least 1"):
        run(paths, category_types=0)


@given(st.lists(st.lists(st.sampled_from("abcdefghijklmnop?"), max_size=30) | st.none(), max_size=6))
def test_slots_hold_the_first_eleven_distinct_known_names(lists):
    names = list("ponmlkjihgfedcba")
    slots = category_codes(pa.chunked_array([lists], pa.list_(pa.string())), names, 11, TYPES)
    for given_names, codes in zip(lists, slots.tolist(), strict=True):
        expected = [names.index(n) for n in dict.fromkeys(given_names or []) if n in names][:11]
        assert codes == expected + [TYPES] * (11 - len(expected))


# Errors


def test_an_evaluation_row_of_an_unknown_id_is_refused(tmp_path):
    world = small_world()
    for split, review, words in (
        ("test", Review("b", "elsewhere", 3.0), "item_id 'elsewhere' has no training row"),
        ("val", Review("nobody", "x", 3.0), "user_id 'nobody' has no training row"),
    ):
        changed = copy.copy(world)
        setattr(changed, split, [Review("b", "y", 3.0), review])
        with pytest.raises(DataError, match=rf"{split}: row 1: {words}.*run split again"):
            run(changed.write(tmp_path))
    assert not (tmp_path / "shards").exists() and not list(tmp_path.glob(".shards*"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_rating_outside_the_range_names_the_flag(tmp_path, split):
    world = small_world()
    getattr(world, split)[0].rating = 7.5
    paths = world.write(tmp_path)
    with pytest.raises(DataError, match=rf"{split}: column 'rating' .* 7.5 .*range 1 to 5.*--rating-range"):
        run(paths)
    assert run(paths, rating_range=[0, 10]).facts["rating_range"] == [0.0, 10.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rating_range": [5, 1]}, "prepare.rating_range"),
        ({"rating_range": [1]}, "prepare.rating_range"),
        ({"rating_range": ["1", "5"]}, "prepare.rating_range"),
        ({"modalities": ["user_image"]}, "there is no 'user_image'.*item_image"),
        ({"dense": ["age"]}, "unknown feature 'age'"),
        ({"positives": -1}, "prepare.positives .*: -1"),
        ({"rows_per_shard": 0}, "prepare.rows_per_shard .*: 0"),
        ({"smoothing": -0.5}, "prepare.smoothing .*: -0.5"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, settings, words):
    with pytest.raises(DataError, match=words):
        run(small_world().write(tmp_path), **settings)


def test_a_stage_that_did_not_run_is_named(tmp_path):
    with pytest.raises(DataError, match="run the stage that writes 'split' first"):
        run(RunPaths(tmp_path, tmp_path))


def test_no_training_rows(tmp_path):
    with pytest.raises(DataError, match="no training rows.*--min-reviews"):
        run(World([]).write(tmp_path))


def test_content_of_other_rows_is_refused(tmp_path):
    world = small_world()
    paths = world.write(tmp_path)
    more = copy.copy(world)
    more.train = [*world.train, Review("b", "y", 1.0)]
    write_content(more, paths.content)
    with pytest.raises(DataError, match="reviews: user 'b', item 'y' .*run split and extract again"):
        run(paths)
    write_content(world, paths.content)
    write_split(more, paths.split)
    with pytest.raises(DataError, match="reviews: user 'b', item 'y' .*run split and extract again"):
        run(paths)


def _edited(paths: RunPaths, name: str, schema: pa.Schema, edit: Callable[[dict], dict | None]) -> None:
    """Write content/`name` again with each row as `edit` makes it; None drops the row."""
    dims = {"text_vector": DIM} | ({"image_vector": DIM} if name == "items" else {})
    schema = with_vectors(schema, dims)
    rows = [edited for row in read_table(paths.content / name, schema).to_pylist() if (edited := edit(row))]
    write_table(pa.Table.from_pylist(rows, schema), paths.content / name)


def test_missing_or_unusable_content_is_named(tmp_path):
    world = small_world()
    paths = world.write(tmp_path)
    _edited(paths, "users", USER_CONTENT, lambda row: row if row["id"] != "b" else None)
    with pytest.raises(DataError, match="content/users: no row for id 'b', fold -1; run extract again"):
        run(paths)
    write_content(world, paths.content)
    _edited(paths, "items", ITEM_CONTENT, lambda row: row if row["fold"] != 1 else None)
    with pytest.raises(DataError, match="content/items: no row for id 'x', fold 1; run extract again"):
        run(paths)
    write_content(world, paths.content)
    _edited(paths, "items", ITEM_CONTENT, lambda row: row | {"price_tag": "dear"})
    with pytest.raises(
        DataError, match="row 0: price_tag 'dear' is not one of none, cheap, fair, overpriced"
    ):
        run(paths)
    world.train[1].image = np.full(384, np.nan, np.float16)
    write_content(world, paths.content)
    with pytest.raises(DataError, match="column 'image_vector' holds a value that is not finite"):
        run(paths)


def test_content_of_no_review_may_be_left_out(tmp_path):
    """All reviews of y are in fold 0: its training row sees no vector, category or price tag of it."""
    paths = small_world().write(tmp_path)
    _edited(paths, "items", ITEM_CONTENT, lambda row: row if (row["id"], row["fold"]) != ("y", 0) else None)
    run(paths, text="summary")
    row = next(r for r in split_table(paths, "train").to_pylist() if (r["user"], r["item"]) == (0, 1))
    assert row["category"] == [TYPES] * 11 and row["dense"][3:6] == [0, 0, 0]
    assert not any(row["item_text"])


def test_metadata_of_an_item_counts_as_one_more_review(tmp_path):
    world = small_world(metadata={"y": (OTHER, None), "x": (None, OTHER)})
    paths = world.write(tmp_path)
    run(paths)
    items = entity_table(paths, "item")
    np.testing.assert_allclose(vectors(items, "item_text")[1], OTHER, atol=6e-4)
    total = VECTOR.astype(float) + OTHER
    np.testing.assert_allclose(vectors(items, "item_image")[0], total / np.linalg.norm(total), atol=6e-4)
    rows = {(r["user"], r["item"]): r for r in split_table(paths, "train").to_pylist()}
    np.testing.assert_allclose(rows[0, 1]["item_text"], OTHER, atol=6e-4)
    np.testing.assert_allclose(rows[0, 0]["item_image"], OTHER, atol=6e-4)
    world.metadata = {"stranger": (OTHER, None)}
    write_content(world, paths.content)
    with pytest.raises(DataError, match="content/metadata: row 0 is of no training item; run extract again"):
        run(paths)


def test_neighbours_and_scores_of_different_length_are_refused(tmp_path):
    paths = small_world().write(tmp_path)
    table = pa.table([["a"], [["b"]], [[0.5, 0.4]]], schema=NEIGHBORS)
    write_table(table, paths.swing / "users")
    with pytest.raises(DataError, match="'neighbors' and 'scores' differ in length"):
        run(paths)
