"""Packed columns: lists of fixed width stored as bytes, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.store import packed
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_batches, read_table, write_table
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import MODALITIES, write_shards

TYPES = {"f16": pa.float16(), "f32": pa.float32(), "i32": pa.int32()}


@settings(max_examples=30)
@given(
    rows=st.integers(0, 20),
    widths=st.tuples(*[st.integers(1, 5)] * 3),
    cut=st.tuples(st.integers(0, 8), st.integers(0, 20)),
    seed=st.integers(0, 99),
)
def test_what_is_packed_comes_back(tmp_path_factory, rows, widths, cut, seed):
    """Through a file, of any slice of a table in several chunks."""
    draw = np.random.default_rng(seed)
    fields, columns = [pa.field("text", pa.string())], [pa.array([str(k) for k in range(rows)])]
    for (name, kind), width in zip(TYPES.items(), widths, strict=True):
        values = draw.integers(-9, 9, (rows, width)).astype(kind.to_pandas_dtype())
        fields.append(pa.field(name, pa.list_(kind, width), nullable=False))
        columns.append(packed.lists(values))
    table = pa.table(columns, schema=pa.schema(fields))
    table = pa.concat_tables([table.slice(0, rows // 2), table.slice(rows // 2)]).slice(*cut)
    path = tmp_path_factory.mktemp("packed") / "x.parquet"
    stored = packed.pack(table)
    assert stored.schema.equals(packed.stored_schema(table.schema), check_metadata=True)
    assert [packed.is_packed(f) for f in stored.schema] == [False, True, True, True]
    pq.write_table(stored, path)
    unpacked = packed.unpack(pq.read_table(path))
    assert unpacked.schema.equals(table.schema) and unpacked.to_pylist() == table.to_pylist()
    if len(table):
        raw = pq.read_table(path)["f16"].combine_chunks()
        assert packed.matrix(raw, pa.float16()).tolist() == table["f16"].to_pylist()
        assert raw[0].as_py() == np.array(table["f16"][0].as_py(), "<f2").tobytes()


def test_packing_is_a_view():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    kind = pa.schema([pa.field("x", pa.list_(pa.float32(), 4), nullable=False)])
    stored = packed.pack(pa.table([packed.lists(values)], schema=kind))
    assert stored["x"].chunk(0).buffers()[1].address == values.ctypes.data


def test_nulls_of_another_writer_are_no_numbers(tmp_path):
    """The bytes under a null are anything."""
    kind = pa.schema([pa.field("x", pa.list_(pa.float16(), 2), nullable=False)])
    rows = pa.array([b"abcd", None, b"efgh"], pa.binary(4))
    with pytest.raises(ValueError, match="1 of 3 rows are null"):
        packed.matrix(rows, pa.float16())
    write_table(pa.table([packed.lists(np.ones((2, 2), np.float16))], kind), tmp_path)
    pq.write_table(
        pa.table({"x": rows}, schema=pa.schema([packed.stored_schema(kind).field(0).with_nullable(True)])),
        tmp_path / "part-00001.parquet",
    )
    write_table(pa.table([packed.lists(np.ones((2, 2), np.float16))], kind), tmp_path, first=2)
    with pytest.raises(DataError, match=r"part-00001.parquet: damaged Parquet file \(.*null.*run the stage"):
        read_table(tmp_path, kind)
    ids = pa.schema([pa.field("id", pa.string(), nullable=False)])
    pq.write_table(pa.table({"id": ["a", None]}), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match=r"part-00000.parquet: damaged Parquet file \(.*null.*run the stage"):
        list(read_batches(tmp_path, ids, ["id"]))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_numbers_that_are_not_finite_are_seen(kind):
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [packed.all_finite(bits[i : i + 1].astype(kind)) for i in range(0, 1 << 16, 37)] == [
        bool(np.isfinite(number)) for number in bits[::37]
    ]
    assert packed.all_finite(np.zeros((0, 3), kind)) and packed.all_finite(np.ones((2, 3), kind))


def test_a_null_is_refused_and_nullable_lists_stay_lists():
    kind = pa.list_(pa.float32(), 2)
    table = pa.table([pa.array([[1, None], [3, 4]], kind)], names=["x"])
    assert packed.pack(table).equals(table)
    strict = pa.schema([pa.field("x", kind, nullable=False)])
    with pytest.raises(ValueError, match="'x' holds a null"):
        packed.pack(table.cast(strict))


def test_shards_are_written_for_speed_and_other_tables_for_size(tmp_path):
    folder = write_shards(tmp_path, rows=(30, 5, 5), users=6, items=5)

    def columns(part):
        group = pq.read_metadata(part).row_group(0)
        return {group.column(k).path_in_schema: group.column(k) for k in range(group.num_columns)}

    rows = columns(folder / "train" / "part-00000.parquet")
    assert list(rows) == ShardFacts.read(folder).row_schema().names
    assert {c.compression for c in rows.values()} == {"LZ4"}
    for name in ("dense", "category", "user_positives", *MODALITIES):
        assert rows[name].physical_type == "FIXED_LEN_BYTE_ARRAY" and not rows[name].has_dictionary_page
    users = columns(folder / "entities" / "users" / "part-00000.parquet")
    assert {c.compression for c in users.values()} == {"ZSTD"}
    assert "user_text.list.element" in users
