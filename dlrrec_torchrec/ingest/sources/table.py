"""Reader of any CSV, TSV, JSON-lines or Parquet file by the names of its columns."""

from __future__ import annotations

import csv
import difflib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from dlrrec_torchrec.ingest.source_files import (
    BLANK,
    Record,
    Source,
    Stream,
    find_files,
    json_records,
    missing_column,
    read_lines,
    with_split,
)
from dlrrec_torchrec.store.errors import DataError

REVIEW_COLUMNS = ("user", "item", "rating", "text", "time", "images", "captions", "split")
ITEM_COLUMNS = ("item", "title", "text", "categories", "price", "images", "captions")
_KINDS = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".txt", ".dat"),
    "tsv": (".tsv", ".tab"),
    "json": (".jsonl", ".ndjson", ".json"),
}
_PATTERNS = tuple(tuple(f"*{s}{z}" for s in suffixes for z in ("", ".gz")) for suffixes in _KINDS.values())
_FIELD_LIMIT = 1 << 20  # characters of one field
_SHOWN = 300  # characters of a first line in a message
_BATCH = 1 << 14


def table(
    reviews: str, items: str, test: str, columns: dict[str, str], item_columns: dict[str, str]
) -> Source:
    """Tables with named columns; the form follows from the file's suffix (also `.gz`).

    Args:
        columns: the review table's name -> the file's column, for `user`, `item`, `rating` and, where the
            file has them, `text`, `time`, `images`, `captions`, `split` ("train" or "test"). In delimited
            text without a header: the column's number, from 1.
        item_columns: the same for `item` and `title`, `text`, `categories`, `price`, `images`, `captions`.

    Raises:
        DataError: a name is unknown, a needed one is not given, or a file is missing.
    """
    files = {"reviews": find_files(reviews, "--reviews", _PATTERNS, (items, test))}
    _check_names(columns, REVIEW_COLUMNS, ("user", "item", "rating"), "--columns", files["reviews"][0])
    if test:
        files["test"] = find_files(test, "--test", _PATTERNS)
    if items:
        _check_names(item_columns, ITEM_COLUMNS, ("item",), "--item-columns", Path(items))
        files["items"] = find_files(items, "--items", _PATTERNS)
    elif item_columns:
        raise DataError("--item-columns needs a file of items: add --items")

    def review_streams(progress: Progress) -> Iterator[Stream]:
        for path, split in with_split(files):
            yield _stream(path, progress, columns, REVIEW_COLUMNS[:3], "--columns", split)

    def item_streams(progress: Progress) -> Iterator[Stream]:
        for path in files["items"]:
            yield _stream(path, progress, item_columns, ITEM_COLUMNS[:1], "--item-columns", None)

    return Source(files, review_streams, item_streams if items else None)


def _check_names(
    columns: dict[str, str], known: tuple[str, ...], required: tuple[str, ...], flag: str, path: Path
) -> None:
    for name, column in columns.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise DataError(f"{flag}: unknown name '{name}' ({hint})")
        if not isinstance(column, str) or not column:
            raise DataError(f"{flag}: '{name}' must name a column, not {column!r}")
    for name in required:
        if name not in columns:
            example = " ".join(f"{n}=..." for n in required)
            raise DataError(
                f"{flag}: say which column is '{name}' (needed: at least {example}){_begins(path)}"
            )


def _begins(path: Path) -> str:
    """What the columns of a file may be called, as a message's end; nothing where that cannot be seen."""
    try:
        if _kind(path) == "parquet":
            return f"; the columns of {path}: {', '.join(pq.read_schema(path).names)}"
        with Progress(disable=True) as progress:
            first = next(read_lines(path, progress), b"").decode("utf-8", "replace").strip()
    except (DataError, OSError, pa.ArrowException):
        return ""
    return f"; {path} begins with: {first[:_SHOWN]}{'...' * (len(first) > _SHOWN)}" if first else ""


def _kind(path: Path) -> str | None:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), None)


def _stream(
    path: Path,
    progress: Progress,
    columns: dict[str, str],
    required: tuple[str, ...],
    flag: str,
    split: str | None,
) -> Stream:
    kind = _kind(path)
    advice = f"The columns are named by {flag}"
    if kind == "parquet":
        return Stream(path.name, _parquet_records(path, progress, columns, f"{advice}."), "record", split)
    if kind == "json":

        def fields(row: dict[str, Any]) -> dict[str, Any]:
            return {name: row.get(column) for name, column in columns.items()}

        required_keys = [(columns[name],) for name in required]
        column_names = list(columns.values())
        return Stream(
            path.name,
            json_records(path, progress, fields, required_keys, column_names, advice=f"{advice}."),
            split=split,
        )
    if kind is None:
        raise DataError(
            f"{path}: cannot tell the form from the suffix "
            f"'{Path(path.name.removesuffix('.gz')).suffix}'; give the file's name the one of its form: "
            f"{', '.join(s for suffixes in _KINDS.values() for s in suffixes)}, also with .gz"
        )
    advice += "; in a file without a header line by their numbers, as user=1 item=2 rating=3."
    return Stream(path.name, _csv_records(path, progress, columns, advice, kind == "tsv"), split=split)


def _csv_records(
    path: Path, progress: Progress, columns: dict[str, str], advice: str, tabs: bool
) -> Iterator[Record]:
    """Rows of delimited text, with a header or columns by number, each numbered by the line it starts on.

    Read by the standard library: unlike columnar readers it keeps line numbers over quoted line breaks and
    continues after a malformed row. Undecodable bytes become surrogates, which the check of the values
    refuses.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    ended = False

    def decoded() -> Iterator[str]:
        nonlocal ended
        for line in read_lines(path, progress):
            yield line.decode("utf-8", "surrogateescape")
        ended = True

    lines = decoded()
    head = next(lines, "")
    if not head.strip():
        raise DataError(f"{path}: the file is empty or has no header line")
    mark = "\t" if tabs else max(",;\t|", key=lambda m: len(next(csv.reader([head], delimiter=m))))
    reader = csv.reader(itertools.chain([head], lines), delimiter=mark)
    start = 1
    try:
        first = next(reader)
        header = [name.strip() for name in first]
        places = _numbered(columns, header)
        rows: Iterator[list[str]] = reader
        if places:
            header, rows = [str(n + 1) for n in range(len(first))], itertools.chain([first], reader)
        else:
            for column in columns.values():
                if column not in header:
                    raise missing_column(path, [column], header, advice)
            places = {name: header.index(column) for name, column in columns.items()}
            start = reader.line_num + 1
        for row in rows:
            if ended:  # the reader needed more lines within this row
                raise csv.Error("it does not end before the file does")
            number, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                yield Record(number, None, None, BLANK)
            elif len(row) != len(header):
                yield Record(number, row, None, "wrong number of fields")
            else:
                fields = {name: row[place] for name, place in places.items()}
                yield Record(number, dict(zip(header, row, strict=True)), fields)
    except csv.Error as error:
        raise DataError(
            f"{path}: the row at line {start} cannot be read: {error} (an unclosed quote?)"
        ) from None


def _numbered(columns: dict[str, str], first: list[str]) -> dict[str, int]:
    """Places of columns that are given by number, from 0; none where the first line is a header."""
    by_number = all(c.isdecimal() and 0 < int(c) <= len(first) for c in columns.values())
    places = {name: int(column) - 1 for name, column in columns.items()} if by_number else {}
    if all(column in first for column in columns.values()):
        # names that are numbers, as tables without names are saved; or ids that happen to be 1, 2, 3
        named = {name: first.index(column) for name, column in columns.items()}
        return places if places == named else {}
    return places


def _parquet_records(
    path: Path, progress: Progress, columns: dict[str, str], advice: str
) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = list(dict.fromkeys(columns.values()))
            for column in names:
                if column not in file.schema_arrow.names:
                    raise missing_column(path, [column], file.schema_arrow.names, advice)
            task = progress.add_task(f"reading {path.name}", total=file.metadata.num_rows)
            for batch in file.iter_batches(_BATCH, columns=names):
                cells = {name: _plain(batch.column(name)) for name in names}
                for values in zip(*cells.values(), strict=True):
                    number += 1
                    raw = dict(zip(names, values, strict=True))
                    yield Record(number, raw, {name: raw[column] for name, column in columns.items()})
                progress.update(task, completed=number)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet after row {number}: {error}") from None


def _plain(column: pa.Array) -> list[Any]:
    """Python values; times as seconds, since Python's datetime has no nanoseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    return column.to_pylist()
