"""Folders of Parquet parts: reading them against a schema, and writing them whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dlrrec_torchrec.store import packed
from dlrrec_torchrec.store.errors import DataError


def check_schema(actual: pa.Schema, expected: pa.Schema, where: str | os.PathLike) -> None:
    """Raise DataError naming the file and the first column that is missing or of another type."""
    for field in expected:
        index = actual.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{where}: column '{field.name}' is missing (found: {', '.join(actual.names)})")
        if not _same_type(actual.field(index).type, field.type):
            raise DataError(
                f"{where}: column '{field.name}' has type {actual.field(index).type}, expected {field.type}; "
                "run the stage that writes this folder again"
            )


def _same_type(a: pa.DataType, b: pa.DataType) -> bool:
    """Equal up to string/large_string and list/large_list, which writers choose freely."""
    if pa.types.is_string(b):
        return pa.types.is_string(a) or pa.types.is_large_string(a) or pa.types.is_string_view(a)
    if pa.types.is_fixed_size_list(b):
        return pa.types.is_fixed_size_list(a) and a.list_size == b.list_size and a.value_type == b.value_type
    if pa.types.is_list(b):
        return (pa.types.is_list(a) or pa.types.is_large_list(a)) and _same_type(a.value_type, b.value_type)
    return a == b


def part_files(folder: str | os.PathLike) -> list[Path]:
    """The folder's Parquet parts in order. Raises DataError if there is none."""
    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise DataError(f"{folder}: no part-*.parquet here; run the stage that writes this folder first")
    return parts


def read_table(
    folder: str | os.PathLike, schema: pa.Schema, columns: list[str] | None = None, rows: int | None = None
) -> pa.Table:
    """All (or the first `rows`) rows of a folder of parts, checked against `schema` (or `columns` of it), in
    its types.

    Raises DataError naming the folder without parts, the part with a column missing or of another type, or
    the damaged part.
    """
    parts = part_files(folder)
    selected = schema if columns is None else pa.schema([schema.field(c) for c in columns])
    stored = packed.stored_schema(selected)
    try:
        for part in parts:
            check_schema(pq.read_schema(part), stored, part)
        if rows is None:
            table = pads.dataset(parts).to_table(columns=selected.names)
        else:
            table = _first_rows(parts, stored, rows)
        return packed.unpack(table.cast(stored)).cast(selected)
    except (
        OSError,
        ValueError,
    ) as error:  # ArrowInvalid is a ValueError; a null where none may be is one too
        raise _damage(_damaged(parts, stored), error) from None


def read_batches(
    folder: str | os.PathLike, schema: pa.Schema, columns: list[str], rows: int = 1 << 15
) -> Iterator[pa.Table]:
    """Columns of a folder of parts, at most `rows` rows at a time, in their order and in the schema's types.

    They must not be packed. Raises DataError as `read_table` does.
    """
    selected = pa.schema([schema.field(column) for column in columns])
    for part in part_files(folder):
        try:
            with pq.ParquetFile(part) as file:
                check_schema(file.schema_arrow, selected, part)
                for batch in file.iter_batches(rows, columns=columns):
                    yield pa.Table.from_batches([batch]).select(columns).cast(selected)
        except (OSError, ValueError) as error:
            raise _damage(part, error) from None


def _damage(part: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0]
    return DataError(f"{part}: damaged Parquet file ({reason}); run the stage that writes this folder again")


def _damaged(parts: list[Path], stored: pa.Schema) -> Path:
    """The first part that cannot be read."""
    for part in parts[:-1]:
        try:
            pq.read_table(part, columns=stored.names, partitioning=None).select(stored.names).cast(stored)
        except (OSError, ValueError):
            return part
    return parts[-1]


def _first_rows(parts: list[Path], stored: pa.Schema, rows: int) -> pa.Table:
    """Read on, in this thread, until there are `rows` rows: what reads ahead would go on after that."""
    batches: list[pa.RecordBatch] = []
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(rows, columns=stored.names, use_threads=False):
                batches.append(batch)
                if sum(b.num_rows for b in batches) >= rows:
                    return pa.Table.from_batches(batches).slice(0, rows)
    return pa.Table.from_batches(batches, None if batches else stored)


def write_table(
    table: pa.Table, folder: str | os.PathLike, rows_per_part: int = 1 << 20, first: int = 0
) -> int:
    """Write `table` as part-00000.parquet (or `first`), ... into `folder`; at least one, even when empty."""
    slices = (table.slice(start, rows_per_part) for start in range(0, max(table.num_rows, 1), rows_per_part))
    return write_tables(slices, table.schema, folder, rows_per_part, first)


def write_tables(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    folder: str | os.PathLike,
    rows_per_part: int = 1 << 20,
    first: int = 0,
) -> int:
    """Write tables of `schema` one after the other, as `write_table` does a whole one; return their rows."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored, written, number = packed.stored_schema(schema), 0, first
    tables = iter(tables)
    following = next(tables, schema.empty_table())
    while following is not None:
        path, here = folder / f"part-{number:05d}.parquet", 0
        with pq.ParquetWriter(path, stored, **parquet_options(stored)) as writer:
            while following is not None and here < rows_per_part:
                writer.write_table(packed.pack(following.cast(schema)))
                here += following.num_rows
                following = next(tables, None)
        written += here
        number += 1
    return written


def parquet_options(stored: pa.Schema) -> dict[str, Any]:
    """How a table is written: rows of shards, which are read in every epoch, for speed, others for size.

    Vectors never repeat, so they have no dictionaries. What was measured: docs/benchmarks.md.
    """
    rows = any(map(packed.is_packed, stored))
    return {
        "compression": "lz4" if rows else "zstd",
        "use_dictionary": [
            f.name for f in stored if not pa.types.is_nested(f.type) and not packed.is_packed(f)
        ],
        "write_statistics": not rows,
    }
