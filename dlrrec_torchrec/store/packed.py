"""How columns of fixed width are stored in Parquet: as the bytes of their numbers.

Parquet stores a list with a repetition and a definition level beside every number; reading them costs many
times what copying the numbers does. So the rows of shards, which are read in every epoch, store their
fixed-size lists as FIXED_LEN_BYTE_ARRAY: the row's numbers, little-endian, one after the other. The field's
metadata names their type, as `numbers: halffloat`. Readers that go through `schema.read_table` see lists.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

KEY = b"numbers"
_TYPES = {str(t): t for t in (pa.float16(), pa.float32(), pa.int32())}


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` as its columns are stored: a fixed-size list that is not nullable becomes bytes."""
    return pa.schema([_stored(field) for field in schema])


def is_packed(field: pa.Field) -> bool:
    """Whether a stored field holds packed numbers."""
    return bool(field.metadata) and KEY in field.metadata


def pack(table: pa.Table) -> pa.Table:
    """The table as it is stored, without a copy.

    Raises ValueError naming a column with a null in it, which bytes cannot hold.
    """
    schema, columns = stored_schema(table.schema), []
    for field, column in zip(schema, table.columns, strict=True):
        if is_packed(field):
            chunks = [_bytes(field.name, chunk, field.type) for chunk in column.chunks]
            column = pa.chunked_array(chunks, field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)


def unpack(table: pa.Table) -> pa.Table:
    """The table with its packed columns as fixed-size lists again, without a copy."""
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        if is_packed(field):
            numbers = _TYPES[field.metadata[KEY].decode()]
            width = field.type.byte_width // (numbers.bit_width // 8)
            field = pa.field(field.name, pa.list_(numbers, width), nullable=False)
            chunks = [lists(matrix(chunk, numbers)) for chunk in column.chunks]
            column = pa.chunked_array(chunks, field.type)
        fields.append(field)
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))


def matrix(packed: pa.FixedSizeBinaryArray, numbers: pa.DataType) -> np.ndarray:
    """The rows' numbers [n, width], a read-only view of Arrow's memory.

    Raises ValueError for nulls, whose bytes could be anything.
    """
    if packed.null_count:
        raise ValueError(f"{packed.null_count:,} of {len(packed):,} rows are null")
    dtype, size = np.dtype(numbers.to_pandas_dtype()), packed.type.byte_width
    width = size // dtype.itemsize
    if not len(packed):
        return np.empty((0, width), dtype)
    view = np.frombuffer(packed.buffers()[1], dtype, len(packed) * width, packed.offset * size)
    return view.reshape(len(packed), width)


def all_finite(values: np.ndarray) -> bool:
    """Whether no number is infinite or not a number."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    if not values.size:
        return True
    # By the bits, at a tenth of the time: from 0x7C00 on, positive, or 0xFC00, negative, none is finite.
    return bool(values.view(np.int16).max() < 0x7C00 and values.view(np.uint16).max() < 0xFC00)


def lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [n, width] as fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _stored(field: pa.Field) -> pa.Field:
    if field.nullable or not pa.types.is_fixed_size_list(field.type):
        return field
    numbers = field.type.value_type
    size = field.type.list_size * numbers.bit_width // 8
    return pa.field(field.name, pa.binary(size), nullable=False, metadata={KEY: str(numbers).encode()})


def _bytes(name: str, chunk: pa.FixedSizeListArray, kind: pa.FixedSizeBinaryType) -> pa.Array:
    flat = chunk.flatten()
    if chunk.null_count or flat.null_count:
        raise ValueError(f"column '{name}' holds a null")
    size = flat.type.bit_width // 8
    data = flat.buffers()[1]
    if data is not None:
        data = data.slice(flat.offset * size, len(flat) * size)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(chunk), [None, data or pa.py_buffer(b"")])
