"""Vectors that the user already has: every form of file, what becomes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlrrec_torchrec.config import PrepareConfig
from dlrrec_torchrec.prepare import own_vectors
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.modality import Modality
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.worlds import entity_table, random_world, split_table

DIM = 6
ITEMS = ["i0", "i1", "i2", "i3"]  # of `random_world`


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> RunPaths:
    return random_world(4).write(tmp_path_factory.mktemp("world"))


def run(world: RunPaths, out: Path, vectors: dict, **settings) -> Manifest:
    config = PrepareConfig(vectors=vectors, **settings)
    return prepare(config, world.split, world.content, world.swing, world.items, out)


def matrix(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)) * 1e6  # far beyond half precision


def parquet(path: Path, ids: list, vectors: list, kind: pa.DataType | None = None, names=("id", "vector")):
    column = pa.array([None if v is None else list(map(float, v)) for v in vectors], kind)
    pq.write_table(pa.table({names[0]: pa.array(ids), names[1]: column}), path)


FORMS = ("list", "float32", "fixed", "columns", "npz", "npz arrays", "npy txt", "npy npy", "integers")


def written(folder: Path, form: str, ids: list[str], vectors: np.ndarray) -> str:
    """A file of that form, as --vectors names it."""
    if form == "list":
        parquet(folder / "v.parquet", ids, list(vectors))
        return f"{folder}/v.parquet"
    if form == "float32":
        parquet(folder / "v.parquet", ids, list(vectors), pa.large_list(pa.float32()))
        return f"{folder}/v.parquet"
    if form == "fixed":
        parquet(folder / "v.parquet", ids, list(vectors), pa.list_(pa.float64(), DIM))
        return f"{folder}/v.parquet:id,vector"
    if form == "columns":
        parquet(folder / "v.parquet", ids, list(vectors), names=("track", "embedding"))
        return f"{folder}/v.parquet:track, embedding"
    if form == "integers":
        pq.write_table(
            pa.table({"id": ids, "vector": pa.array(vectors.astype(np.int64).tolist())}), folder / "v.parquet"
        )
        return f"{folder}/v.parquet"
    if form == "npz":
        np.savez(folder / "v.npz", ids=np.array(ids), vectors=vectors)
        return f"{folder}/v.npz"
    if form == "npz arrays":
        np.savez(folder / "v.npz", names=np.array(ids), mel=vectors.astype(np.float32))
        return f"{folder}/v.npz:names,mel"
    np.save(folder / "v.npy", vectors)
    if form == "npy txt":
        (folder / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        return f"{folder}/v.npy:{folder}/ids.txt"
    np.save(folder / "ids.npy", np.array(ids))
    return f"{folder}/v.npy:{folder}/ids.npy"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_unit_vectors_by_id(world, tmp_path, form):
    """The file knows strangers and not every item; its order is its own."""
    ids, vectors = ["i3", "stranger", "i0", "i1"], matrix(4)
    manifest = run(world, tmp_path / "shards", {"item_audio": written(tmp_path, form, ids, vectors)})
    facts = ShardFacts.read(tmp_path / "shards")
    name = "v." + ("npz" if "npz" in form else "npy" if "npy" in form else "parquet")
    assert facts.modalities[-1] == Modality("item_audio", "item", "other", "file", DIM, name)
    assert facts.in_rows == ("user_text", "item_text", "item_image", "item_audio")
    paths = RunPaths(tmp_path, tmp_path)
    stored = np.array(entity_table(paths, "item")["item_audio"].to_pylist())
    vectors = vectors.astype(np.int64) if form == "integers" else vectors
    expected = {name: v / np.linalg.norm(v) for name, v in zip(ids, vectors, strict=True)}
    for code, item in enumerate(ITEMS):
        np.testing.assert_allclose(stored[code], expected.get(item, np.zeros(DIM)), atol=6e-4)
    assert manifest.rows["items with item_audio"] == 3
    for split in ("train", "test"):  # the same in every row: no review is known to them
        rows = split_table(paths, split)
        assert rows["item_audio"].to_pylist() == stored[rows["item"].to_numpy()].tolist()
        share = np.mean([bool(np.any(v)) for v in rows["item_audio"].to_pylist()])
        assert manifest.facts["coverage"][split]["item_audio"] == pytest.approx(share, abs=1e-4)


def test_users_have_vectors_too_and_integer_ids_are_text(tmp_path):
    world = random_world(4)
    for review in [*world.train, *world.val, *world.test]:
        review.user = review.user.removeprefix("u")
    world.user_neighbours = {}
    paths = world.write(tmp_path)
    known = sorted({r.user for r in world.train})
    parquet(tmp_path / "v.parquet", [int(known[0]), 99], list(matrix(2)))
    run(paths, paths.shards, {"user_graph": f"{tmp_path}/v.parquet"})
    stored = np.array(entity_table(paths, "user")["user_graph"].to_pylist())
    assert stored[0].any() and not stored[1:].any()


def test_a_null_vector_is_a_missing_one(world, tmp_path):
    parquet(tmp_path / "v.parquet", ITEMS, [None, *matrix(2), None])
    manifest = run(world, tmp_path / "shards", {"item_audio": f"{tmp_path}/v.parquet"})
    assert manifest.rows["items with item_audio"] == 2


def test_a_changed_file_is_prepared_again_and_the_same_one_is_not(world, tmp_path):
    vectors = {"item_audio": f"{tmp_path}/v.parquet"}
    parquet(tmp_path / "v.parquet", ITEMS, list(matrix(4)))
    assert not run(world, tmp_path / "shards", vectors).reused
    assert run(world, tmp_path / "shards", vectors).reused
    parquet(tmp_path / "v.parquet", ITEMS, list(matrix(4, seed=1)))
    assert not run(world, tmp_path / "shards", vectors).reused


def test_modalities_choose_among_them(world, tmp_path):
    parquet(tmp_path / "v.parquet", ITEMS, list(matrix(4)))
    vectors = {"item_audio": f"{tmp_path}/v.parquet"}
    run(world, tmp_path / "shards", vectors, modalities=["item_audio", "user_text"])
    facts = ShardFacts.read(tmp_path / "shards")
    assert facts.in_rows == ("item_audio", "user_text") and len(facts.modalities) == 4
    with pytest.raises(DataError, match="there is no 'item_video' .*item_image, item_audio"):
        run(world, tmp_path / "shards", vectors, modalities=["item_video"])


def test_what_no_entity_has_is_no_modality(tmp_path):
    """No review has a picture here; text stays, also where a side has none."""
    world = random_world(4)
    world.metadata = {}
    for review in world.train:
        review.image, review.text = None, None
    paths = world.write(tmp_path)
    run(paths, paths.shards, {})
    assert ShardFacts.read(paths.shards).in_rows == ("user_text", "item_text")
    run(paths, paths.shards, {}, modalities=["item_image"])  # asked for: zeros
    assert ShardFacts.read(paths.shards).in_rows == ("item_image",)


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_any_finite_vector_has_a_unit_one(values):
    unit = own_vectors._unit(values)
    assert np.isfinite(unit).all()
    present = values.any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(unit.astype(float), axis=1), present.astype(float), atol=3e-3)


def refused(world: RunPaths, tmp_path: Path, words: str, vectors: dict | None = None) -> None:
    with pytest.raises(DataError, match=words):
        run(world, tmp_path / "shards", vectors or {"item_audio": f"{tmp_path}/v.parquet"})
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("audio", "--vectors: 'audio' must begin with user_ or item_"),
        ("item_", "'item_' must begin"),
        ("item_a/b", "'item_a/b' must begin"),
        ("item_text", "--vectors item_text: is the name of vectors that `dlrrec extract` makes"),
    ],
)
def test_names_that_cannot_be(world, tmp_path, name, words):
    parquet(tmp_path / "v.parquet", ITEMS, list(matrix(4)))
    refused(world, tmp_path, words, {name: f"{tmp_path}/v.parquet"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none.parquet", "item_audio=.*none.parquet: there is no file .*none.parquet"),
        ("v.parquet:id", "'id' must name two"),
        ("v.parquet:id,vector,more", "'id,vector,more' must name two"),
        ("v.csv", "neither Parquet, .npz nor .npy; write .*FILE.npy:IDS.txt"),
        ("v.npy", "a matrix needs its ids: write .*v.npy:IDS.txt"),
        ("v.npy:none.txt", "there is no file none.txt"),
        ("v.parquet:track,vector", "no column 'track' .there is: id, vector, text.; write .*:ID,VECTOR"),
        ("v.parquet:id,text", "column 'text' has type string; it must hold lists of numbers"),
        ("v.parquet:vector,vector", "column 'vector' has type list.*ids must be text or integers"),
        ("v.npz:ids,mel", "no array 'mel' .there is: ids, vectors, flat"),
        ("v.npz:ids,flat", "shape .4,.; a matrix .ids, numbers. is needed"),
        ("broken.parquet", "not a readable Parquet file"),
        ("broken.npz", "not readable without pickle"),
        ("objects.npz", "not readable without pickle"),
        ("short.npz", "3 ids for 4 vectors"),
    ],
)
def test_files_that_cannot_be(world, tmp_path, text, words):
    table = {"id": ITEMS, "vector": pa.array(matrix(4).tolist()), "text": ITEMS}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    np.savez(tmp_path / "v.npz", ids=np.array(ITEMS), vectors=matrix(4), flat=np.zeros(4))
    np.savez(tmp_path / "short.npz", ids=np.array(ITEMS[:3]), vectors=matrix(4))
    np.savez(tmp_path / "objects.npz", ids=np.array(ITEMS, object), vectors=matrix(4))
    np.save(tmp_path / "v.npy", matrix(4))
    for name in ("broken.parquet", "broken.npz", "v.csv"):
        (tmp_path / name).write_bytes(b"PK nothing")
    refused(world, tmp_path, words, {"item_audio": f"{tmp_path}/{text}"})


def test_values_that_cannot_be(world, tmp_path):
    path, good = tmp_path / "v.parquet", list(matrix(4))
    parquet(path, ITEMS, [*good[:2], good[2][:4], good[3]])
    refused(world, tmp_path, "v.parquet: column 'vector', row 2: 4 numbers, where the rows before have 6")
    parquet(path, ITEMS, [*good[:3], [1, 2, np.inf, 4, 5, 6]])
    refused(world, tmp_path, "v.parquet: column 'vector', row 3: not a finite number")
    parquet(path, ["i0", "i1", "i0", "i2"], good)
    refused(world, tmp_path, "v.parquet: id 'i0' comes twice, the second time in row 2")
    parquet(path, ["i0", None, "i2", "i3"], good)
    refused(world, tmp_path, "v.parquet: column 'id', row 1: no id")
    parquet(path, ["p", "q", "r", "s"], good)
    refused(world, tmp_path, r"training rows' items \(the file has p, q, r; the rows i0, i1, i2\)")
    pq.write_table(pa.table({"id": ITEMS, "vector": [[1.0, 2.0], [1.0, None], [0.0, 1.0], None]}), path)
    refused(world, tmp_path, "v.parquet: column 'vector', row 1: a number is missing")
    parquet(path, ITEMS, [None] * 4, pa.list_(pa.float32()))
    refused(world, tmp_path, "v.parquet: column 'vector' holds no vector")


def test_files_are_read_in_pieces(world, tmp_path, monkeypatch):
    monkeypatch.setattr(own_vectors, "CHUNK_ROWS", 2)
    parquet(tmp_path / "v.parquet", ["x", *ITEMS], [*matrix(4), matrix(1)[0][:3]])
    refused(world, tmp_path, "row 4: 3 numbers")
    parquet(tmp_path / "v.parquet", ["x", *ITEMS], list(matrix(5)))
    run(world, tmp_path / "shards", {"item_audio": f"{tmp_path}/v.parquet"})
    stored = np.array(entity_table(RunPaths(tmp_path, tmp_path), "item")["item_audio"].to_pylist())
    expected = matrix(5)[1:]
    np.testing.assert_allclose(stored, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=6e-4)
