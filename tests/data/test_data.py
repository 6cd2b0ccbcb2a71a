"""Shards -> batches: every row once, equal batches for every number of ranks and workers, honest errors."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.entities import load_entities, pair_batch
from dlrrec_torchrec.data.fields import Fields
from dlrrec_torchrec.data.loader import ShardDataset, make_loader
from dlrrec_torchrec.data.order import EpochOrder
from dlrrec_torchrec.data.shard_reader import ShardReader
from dlrrec_torchrec.store import packed
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import MODALITIES, SLOTS, TYPES, modalities_of, plain_spec, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(
        tmp_path_factory.mktemp("data") / "shards", rows=(203, 50, 31), users=40, items=30, rows_per_shard=32
    )


def loader(folder, split="train", batch_size=16, **changes):
    spec_settings = {"positives": 3, "sparse": ("category", "user", "item")}
    spec_settings |= {
        name: changes.pop(name) for name in ("modalities", "positives", "sparse") if name in changes
    }
    return make_loader(folder, split, batch_size, plain_spec(folder, **spec_settings), **changes)


def same(a: Batch, b: Batch) -> bool:
    tensors = ("dense", "label", "rating", "user", "item", "user_positives", "item_positives")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
        and all(torch.equal(a.vectors[m], b.vectors[m]) for m in a.vectors)
        and torch.equal(a.sparse.values(), b.sparse.values())
        and torch.equal(a.sparse.lengths(), b.sparse.lengths())
        and a.sparse.keys() == b.sparse.keys()
    )


def join(batches: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(b, name) for b in batches])


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.integers(1, 30),
    batch=st.integers(1, 11),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_order_visits_every_row_once(sizes, window, batch, seed, shuffle):
    order = EpochOrder(sizes, seed, 3, shuffle, window)
    total = sum(sizes)
    visited = [
        pair
        for low in range(0, total, batch)
        for chunk, rows in order.pieces(order.places(low, min(low + batch, total)))
        for pair in ((chunk, int(row)) for row in rows)
    ]
    all_rows = [(chunk, row) for chunk, size in enumerate(sizes) for row in range(size)]
    assert sorted(visited) == all_rows
    if not shuffle:
        assert visited == all_rows


def test_order_differs_between_epochs_and_seeds_but_repeats():
    def rows(seed, epoch):
        order = EpochOrder([50, 50, 50], seed, epoch, True, 100)
        return {(chunk, int(row)) for chunk, rows in order.pieces(order.places(0, 40)) for row in rows}

    assert rows(0, 0) == rows(0, 0)
    assert len({frozenset(rows(0, 0)), frozenset(rows(0, 1)), frozenset(rows(1, 0))}) == 3


@settings(max_examples=15)
@given(batch=st.integers(1, 70), seed=st.integers(0, 3), window=st.integers(1, 300), shuffle=st.booleans())
def test_global_batches_do_not_depend_on_the_number_of_ranks(shards, batch, seed, window, shuffle):
    options = {"seed": seed, "shuffle": shuffle, "window_rows": window, "modalities": ["item_text"]}
    alone = loader(shards, batch_size=6 * batch, **options)
    alone.set_epoch(2)
    expected = list(alone)
    keys = set(zip(join(expected, "user").tolist(), join(expected, "item").tolist(), strict=True))
    assert sum(map(len, expected)) == 203 and len(expected) == len(alone) == -(-203 // (6 * batch))
    assert max(map(len, expected)) - min(map(len, expected)) <= 1
    assert (join(expected, "label") >= 0).all()
    for world in (2, 3):
        ranks = [
            loader(shards, batch_size=6 * batch // world, rank=r, world_size=world, **options)
            for r in range(world)
        ]
        for rank in ranks:
            rank.set_epoch(2)
        assert {len(rank) for rank in ranks} == {len(alone)}
        for whole, parts in zip(expected, zip(*ranks, strict=True), strict=True):
            real = join(parts, "label") >= 0
            for name in ("dense", "label", "rating", "user", "item", "user_positives", "item_positives"):
                assert torch.equal(getattr(whole, name), join(parts, name)[real])
            vectors = torch.cat([p.vectors["item_text"] for p in parts])
            assert torch.equal(whole.vectors["item_text"], vectors[real])
            assert {len(p) for p in parts} == {-(-len(whole) // world)}  # padded to one size
    assert len(keys) > 100  # the rows are not one and the same


def test_batches_equal_the_rows_of_the_files(shards):
    table = read_table(shards / "test", ShardFacts.read(shards).row_schema()).to_pylist()
    rows = [
        (batch, k, batch.sparse.to_dict()) for batch in loader(shards, "test", 7) for k in range(len(batch))
    ]
    assert len(rows) == len(table) == 31
    for row, (batch, k, sparse) in zip(table, rows, strict=True):
        assert (
            batch.label[k] == row["label"]
            and batch.rating[k] == row["rating"]
            and batch.user[k] == row["user"]
            and batch.item[k] == row["item"]
        )
        assert batch.dense[k].tolist() == row["dense"]
        for name in MODALITIES:
            assert batch.vectors[name].dtype == torch.float16
            assert np.array_equal(batch.vectors[name][k].numpy(), np.array(row[name], np.float16))
        for name in ("user_positives", "item_positives"):
            assert getattr(batch, name)[k].tolist() == row[name][:3]
        codes = [c for c in row["category"] if c != TYPES]
        assert sparse["category"].to_dense()[k].tolist() == codes
        assert sparse["user"].to_dense()[k].tolist() == [row["user"]]
        assert sparse["item"].to_dense()[k].tolist() == [row["item"]]


def test_workers_make_the_same_batches_in_the_same_order(shards):
    plain = loader(shards, shuffle=True, seed=5)
    worked = loader(shards, shuffle=True, seed=5, workers=2)
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        worked.set_epoch(epoch)
        assert all(same(a, b) for a, b in zip(plain, worked, strict=True))


class Garbage:
    """Notes where it is collected."""

    def __init__(self, path):
        self.path, self.itself = path, self

    def __del__(self):
        with open(self.path, "a") as stream:
            stream.write(f"{os.getpid()}\n")


def test_a_worker_leaves_inherited_garbage_alone(shards, tmp_path, monkeypatch):
    """What a training that is over has left may wait, when it is destroyed, for threads a worker has not."""
    plain = ShardDataset.__getitem__
    monkeypatch.setattr(ShardDataset, "__getitem__", lambda *args: (gc.collect(), plain(*args))[1])
    gc.collect()
    gc.disable()
    try:
        Garbage(tmp_path / "collected")
        loader = make_loader(shards, "train", 64, plain_spec(shards, ["user_text"]), workers=1)
        assert len(list(loader)) == len(loader)
        assert not (tmp_path / "collected").exists()
        gc.collect()
        assert (tmp_path / "collected").read_text().split() == [str(os.getpid())]
    finally:
        gc.enable()


def test_reading_is_a_view_of_arrow_memory_and_files_in_order_are_not_copied(shards):
    columns = ShardReader(shards, "train", modalities_of(), 3).read(0)
    dataset = loader(shards, batch_size=8).dataset
    batch = dataset[0, 0]
    cached = dataset._cache[0]
    assert batch.vectors["user_text"].data_ptr() == cached["user_text"].ctypes.data
    assert np.array_equal(batch.vectors["item_image"], columns["item_image"][: len(batch)])


def test_memory_is_bounded_by_two_windows(shards):
    bounded = loader(shards, shuffle=True, window_rows=64)
    most = 0
    for _ in bounded:
        most = max(most, sum(len(c["fields"]) for c in bounded.dataset._cache.values()))
    assert 64 < most <= 128


def test_drop_last_gives_whole_batches(shards):
    assert [len(b) for b in loader(shards, batch_size=50, drop_last=True)] == [50] * 4


def test_a_rank_without_rows_gets_padding_that_says_nothing(shards):
    parts = [list(loader(shards, "test", 1, rank=r, world_size=40)) for r in range(40)]
    assert {len(p) for p in parts} == {1} and {len(p[0]) for p in parts} == {1}
    padding = [p[0] for p in parts if p[0].label[0] < 0]
    assert len(padding) == 40 - 31
    for batch in padding:
        assert batch.user.tolist() == batch.item.tolist() == [-1]
        assert batch.user_positives.tolist() == batch.item_positives.tolist() == [[-1] * 3]
        assert not batch.dense.any() and not any(v.any() for v in batch.vectors.values())
        assert batch.sparse.lengths().tolist() == [0, 0, 0] and batch.sparse.values().numel() == 0


@settings(max_examples=30)
@given(
    rows=st.integers(0, 9),
    dense=st.integers(1, 8),
    positives=st.integers(0, 4),
    wider=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_fields_come_apart_as_they_were(rows, dense, positives, wider, seed):
    draw = np.random.default_rng(seed)
    columns = {name: draw.integers(-1, 1 << 30, rows, np.int32) for name in ("user", "item")}
    columns |= {name: draw.random(rows, np.float32) for name in ("label", "rating")}
    columns["dense"] = draw.random((rows, dense), np.float32)
    columns["category"] = draw.integers(0, 180, (rows, 11), np.int32)
    if positives:
        for side in ("user", "item"):
            columns[f"{side}_positives"] = draw.integers(-1, 99, (rows, positives + wider), np.int32)
    fields = Fields(dense, SLOTS, TYPES, positives)
    split = fields.split(np.concatenate([fields.join(columns, rows), fields.padding[None]]))
    for name, values in split.items():
        wide = name.endswith("_positives")
        given = columns.get(name, np.empty((rows, 0)))[:, :positives] if wide else columns[name]
        assert np.array_equal(values[:rows], given) and values.flags.c_contiguous
        padding = {"label": -1, "rating": 0, "dense": 0, "category": TYPES}.get(name, -1)
        assert (values[rows] == padding).all()
    kinds = {name: str(values.dtype) for name, values in split.items()}
    assert kinds == {
        "label": "float32",
        "rating": "float32",
        "dense": "float32",
        "category": "int32",
        **dict.fromkeys(("user", "item", "user_positives", "item_positives"), "int64"),
    }


def test_chunks_are_read_again_when_forgotten(shards):
    dataset = loader(shards).dataset
    batch = dataset[0, 0]
    before = dataset._cache[0]
    dataset.forget()
    assert same(dataset[0, 0], batch) and dataset._cache[0] is not before


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, TYPES), min_size=11, max_size=11), min_size=1, max_size=6))
def test_sparse_ids_equal_plain_lists(rows):
    category = torch.tensor(rows, dtype=torch.int32).reshape(-1, 11)
    user = torch.arange(len(rows)) + 7
    sparse = make_sparse(category, user, user * 2, ("item", "category"), TYPES).to_dict()
    lists = sparse["category"]
    ends = lists.offsets().tolist()
    id_lists = [lists.values()[a:b].tolist() for a, b in zip(ends, ends[1:], strict=False)]
    assert id_lists == [[c for c in row if c != TYPES] for row in rows]
    assert sparse["item"].values().tolist() == (user * 2).tolist()


def test_pair_batch_makes_the_row_that_the_shard_holds(shards):
    spec = plain_spec(shards, sparse=("category", "user", "item"))
    (row,) = make_loader(shards, "test", 31, spec)
    entities = load_entities(shards)
    pair = pair_batch(entities, row.user.numpy(), row.item.numpy(), spec)
    row.label.zero_()
    row.rating.zero_()
    assert same(row, pair)
    assert entities.users.codes["user-3"] == 3 and entities.items.titles[4] == "Item 4"


def test_a_batch_moves_and_is_pinned_as_a_whole(shards):
    batch = next(iter(loader(shards)))
    moved = batch.to(torch.device("meta"))
    assert moved.sparse.values().is_meta and moved.vectors["user_text"].is_meta and moved.label.is_meta
    assert same(batch, batch.to(torch.device("cpu")))


# --- errors: file, column, row -----------------------------------------------------------------------------


def damage(folder: Path, column: str, change) -> Path:
    """Write part 1 of train again with `change` done to a column's Python values."""
    path = folder / "train" / "part-00001.parquet"
    table = packed.unpack(pq.read_table(path))
    index = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    change(values)
    field = table.schema.field(column)
    nullable = pa.field(column, field.type) if None in values else field
    pq.write_table(packed.pack(table.set_column(index, nullable, pa.array(values, field.type))), path)
    return path


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("label", 0.5, "neither 0 nor 1"),
        ("label", None, "null"),
        ("dense", [float("nan")] * 7, "not a finite"),
        ("category", [180] * 11, "outside 0..179"),
        ("user", 4, "outside 0..3"),
        ("item", -1, "outside 0..2"),
        ("user_positives", [0, 4, -1, -1, -1], "outside -1..3"),
        ("item_positives", [-2, 0, 1, 1, 1], "outside -1..2"),
    ],
)
def test_a_wrong_value_is_named_before_training(tmp_path, column, value, why):
    folder = write_shards(tmp_path / "s", rows=(20, 2, 2), users=4, items=3, rows_per_shard=10)
    path = damage(folder, column, lambda values: values.__setitem__(6, value))
    with pytest.raises(DataError, match=why) as caught:
        ShardReader(folder, "train", modalities_of(), 3).check()
    assert str(path) in str(caught.value) and f"'{column}', row 6" in str(caught.value)


def test_a_vector_that_is_not_finite_is_named_when_it_is_read(tmp_path):
    folder = write_shards(tmp_path / "s", rows=(20, 2, 2), users=4, items=3, rows_per_shard=10)
    damage(folder, "item_text", lambda values: values.__setitem__(2, [float("inf")] * 384))
    with pytest.raises(DataError, match="'item_text', row 2: value is not a finite"):
        list(loader(folder))


def test_a_missing_or_mistyped_column_is_named(tmp_path):
    folder = write_shards(tmp_path / "s", rows=(20, 2, 2), users=4, items=3, rows_per_shard=10)
    path = folder / "train" / "part-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop(["user_text"]), path)
    with pytest.raises(DataError, match=r"part-00001.parquet: column 'user_text' is missing"):
        loader(folder)
    pq.write_table(table.set_column(0, "label", table["label"].cast(pa.float64())), path)
    with pytest.raises(
        DataError, match=r"part-00001.parquet: column 'label' has type double, expected float"
    ):
        loader(folder)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"part-00001.parquet: not a readable Parquet"):
        loader(folder)


def test_unknown_names_are_refused(shards, tmp_path):
    with pytest.raises(DataError, match="unknown split 'dev'"):
        loader(shards, "dev")
    with pytest.raises(DataError, match="'brand'.*category, user, item"):
        loader(shards, sparse=("brand",))
    small = write_shards(tmp_path / "s", rows=(5, 2, 2), users=4, items=3, modalities=["item_text"])
    with pytest.raises(DataError, match="'user_text' is not in these shards.*item_text"):
        loader(small)
    with pytest.raises(DataError, match="manifest.json: not there"):
        loader(tmp_path / "nowhere")
