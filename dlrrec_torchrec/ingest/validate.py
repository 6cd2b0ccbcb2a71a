"""Raw records of any source -> checked Parquet parts, with every bad row counted and recorded.

Rows are processed in chunks and pairs stored as 64-bit hashes, so memory does not grow with the texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.ingest.facts import ItemFacts, ReviewFacts, SeenHashes, hashes
from dlrrec_torchrec.ingest.source_files import BLANK, Stream
from dlrrec_torchrec.ingest.values import (
    BadRow,
    as_captions,
    as_id,
    as_joined_text,
    as_links,
    as_price,
    as_rating,
    as_seconds,
    as_strings,
    as_text,
)
from dlrrec_torchrec.store.schema import ITEMS, REVIEWS

CHUNK_ROWS = 1 << 15
PART_ROWS = 1 << 20
GIVE_UP_ROWS = 100_000  # this many rows without a good one: the source has another form than --source says
RAW_CHARACTERS = 10_000  # of a rejected row's text, at most
REJECTED = "rejected.jsonl"
_SPLITS = {
    None: None,
    "": None,
    "train": "train",
    "training": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
}


@dataclasses.dataclass
class Unread:
    """Values of one column that could not be read and were left unknown."""

    forms: str  # the readable forms, in words
    given: int = 0
    failed: int = 0
    example: str = ""

    def read(self, convert: Callable[[Any], Any], value: Any) -> Any:
        """`convert(value)`, or None where it raises ValueError."""
        try:
            converted = convert(value)
        except (ValueError, OverflowError):
            converted = None
            self.failed += 1
            self.given += 1
            self.example = self.example or str(value)[:80]
        else:
            self.given += converted is not None
        return converted


class ReviewCheck:
    """The fields of a record -> a row of REVIEWS. Raises BadRow with the reason."""

    schema, keys, duplicate = REVIEWS, 2, "duplicate user-item pair"

    def __init__(self) -> None:
        forms = "seconds since 1970, ISO 8601, year/month/day or month/day/year, hour:minute after it or not"
        self.unread = {"time": Unread(forms)}

    def __call__(self, fields: dict[str, Any], split: str | None) -> tuple:
        get = fields.get
        user, rating, text = get("user"), get("rating"), get("text")
        if not user and not text and (rating is None or rating == ""):
            raise BadRow("empty row")
        if "split" in fields and split is None:
            word = fields["split"]
            word = word.strip().lower() if isinstance(word, str) else word
            if not (word is None or isinstance(word, str)) or word not in _SPLITS:
                raise BadRow("split is neither train nor test")
            split = _SPLITS[word]
        images, captions = _pictures(fields)
        return (
            as_id(user, "user"),
            as_id(get("item"), "item"),
            as_rating(rating),
            as_text(text),
            self.unread["time"].read(as_seconds, get("time")),
            images,
            captions,
            split,
        )


class ItemCheck:
    """The fields of a record -> a row of ITEMS. Raises BadRow with the reason."""

    schema, keys, duplicate = ITEMS, 1, "duplicate item"

    def __init__(self) -> None:
        self.unread = {"price": Unread("an amount such as 12.50 or $1,200")}

    def __call__(self, fields: dict[str, Any], split: str | None) -> tuple:
        get = fields.get
        images, captions = _pictures(fields)
        return (
            as_id(get("item"), "item"),
            as_text(get("title"), "title"),
            as_joined_text(get("text")),
            as_strings(get("categories"), "categories", "|;,"),
            self.unread["price"].read(as_price, get("price")),
            images,
            captions,
        )


def _pictures(fields: dict[str, Any]) -> tuple[list[str] | None, list[str] | None]:
    images, captions = fields.get("images"), fields.get("captions")
    if not images and not captions:
        return None, None  # most rows
    images, captions = as_links(images), as_captions(captions)
    if images and captions and len(images) != len(captions):
        raise BadRow("images and captions differ in number")
    return images, captions


@dataclasses.dataclass
class Tally:
    """How many rows were read, kept and rejected, for which reasons."""

    read: int = 0
    blank: int = 0
    accepted: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


def collect(
    streams: Iterable[Stream],
    check: ReviewCheck | ItemCheck,
    facts: ReviewFacts | ItemFacts,
    folder: Path,
    chunk_rows: int = CHUNK_ROWS,
    part_rows: int = PART_ROWS,
) -> Tally:
    """Check every record and write the good ones to `folder` as parts, the bad ones to its `rejected.jsonl`.

    A repeated key is bad: its first row is kept. Reading ends early after 100,000 rows without a good one.
    """
    tally, seen_keys = Tally(), SeenHashes()
    rows: list[tuple] = []
    origins: list[tuple[int, Stream, int, Any]] = []  # of `rows`: order, stream, number, the row as read
    bad: list[tuple[int, Stream, int, Any, str]] = []

    with open(folder / REJECTED, "w", encoding="utf-8") as rejects, _Parts(folder, check, part_rows) as parts:

        def flush() -> None:
            keys = (row[0] for row in rows) if check.keys == 1 else (row[: check.keys] for row in rows)
            new = seen_keys.add(hashes(keys, len(rows)))
            bad.extend((*origins[i], check.duplicate) for i in np.flatnonzero(~new))
            for _, stream, number, raw, reason in sorted(bad, key=lambda entry: entry[0]):
                tally.reasons[reason] += 1
                rejects.write(_rejection(stream, number, raw, reason))
            columns = zip(*(row for row, keep in zip(rows, new, strict=True) if keep), strict=True)
            if new.any():
                arrays = [pa.array(c, f.type) for c, f in zip(columns, check.schema, strict=True)]
                table = pa.Table.from_arrays(arrays, schema=check.schema)
                parts.write(table)
                facts.add(table)
                tally.accepted += table.num_rows
            for entries in (rows, origins, bad):
                entries.clear()

        for stream in streams:
            for number, raw, fields, error in stream.records:
                if error is BLANK:
                    tally.blank += 1
                    continue
                tally.read += 1
                try:
                    if error:
                        raise BadRow(error)
                    rows.append(check(fields, stream.split))
                    origins.append((tally.read, stream, number, raw))
                except BadRow as reason:
                    bad.append((tally.read, stream, number, raw, str(reason)))
                if len(rows) + len(bad) >= chunk_rows:
                    flush()
                    if tally.read >= GIVE_UP_ROWS and not tally.accepted:
                        return tally
        flush()
    return tally


class _Parts:
    """Writes tables to part-00000.parquet, ... of at most about `part_rows` rows."""

    def __init__(self, folder: Path, check: ReviewCheck | ItemCheck, part_rows: int):
        self.folder, self.schema, self.part_rows = folder, check.schema, part_rows
        self.writer: pq.ParquetWriter | None = None
        self.number = self.rows = 0

    def __enter__(self) -> _Parts:
        return self

    def write(self, table: pa.Table) -> None:
        if self.writer is None:
            path = self.folder / f"part-{self.number:05d}.parquet"
            self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.writer.write_table(table)
        self.rows += table.num_rows
        if self.rows >= self.part_rows:
            self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer, self.rows, self.number = None, 0, self.number + 1

    def __exit__(self, *_: object) -> None:
        self.close()


def _rejection(stream: Stream, number: int, raw: Any, reason: str) -> str:
    if isinstance(raw, str):
        raw = raw.rstrip("\r\n")[:RAW_CHARACTERS]
    entry = {"file": stream.name, stream.unit: number, "reason": reason, "row": raw}
    return json.dumps(entry, default=str) + "\n"
