"""Common to all readers: finding files, streaming their lines, parsing JSON lines, reporting missing names.

A reader turns one file into a `Stream` of `Record`s with raw values under the names of the review table
(`user`, `item`, `rating`, `text`, `time`, `images`, `captions`, `split`) or of the item table (`item`,
`title`, `text`, `categories`, `price`, `images`, `captions`). `validate` checks the values, in the same way
for every source.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from dlrrec_torchrec.store.errors import DataError

MAX_LINE = 1 << 26  # bytes; a longer line is no line of reviews
LOOK_AHEAD = 1000  # a required key must appear among this many first objects
BLANK = "blank"  # the `error` of an empty record: counted, not bad


class Record(NamedTuple):
    """One row of a source: its line (or row) number from 1, the row as read, and its values by column."""

    number: int
    raw: Any
    fields: dict[str, Any] | None  # None where `error` says why
    error: str | None = None


@dataclasses.dataclass
class Stream:
    """The records of one file (or of one list in it). `split` is the published part that they belong to."""

    name: str
    records: Iterator[Record]
    unit: str = "line"  # what `Record.number` counts: line or record
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A source: the files that it reads, by role, and functions that open its streams."""

    files: dict[str, list[Path]]  # "reviews", and "test" and "items" where given
    reviews: Callable[[Progress], Iterator[Stream]]
    items: Callable[[Progress], Iterator[Stream]] | None = None


def find_files(
    where: str, flag: str, patterns: Sequence[Sequence[str]], exclude: Iterable[str] = ()
) -> list[Path]:
    """The files that `where` names: a file, a glob, or a folder, in which the first matching group is used.

    Args:
        where: path or glob from the user; `flag`: the option that gave it.
        patterns: groups of file-name patterns to look for in a folder, the preferred group first.
        exclude: paths with another role (the published test file, the items).

    Raises:
        DataError: nothing is given, nothing is there, or the folder has nothing of that form.
    """
    if not where:
        raise DataError(f"{flag} is missing: name the file, folder or glob to read")
    path = Path(where).expanduser()
    excluded = {Path(e).expanduser().resolve() for e in exclude if e}
    if path.is_dir():
        for group in patterns:
            files = sorted({f for pattern in group for f in path.glob(pattern) if f.is_file()})
            files = [f for f in files if f.resolve() not in excluded and not f.name.startswith(".")]
            if files:
                return files
        names = ", ".join(pattern for group in patterns for pattern in group)
        raise DataError(f"{flag} {where}: this folder has no such file (looked for {names})")
    if path.exists():
        return [path]
    files = [Path(f) for f in sorted(glob.glob(str(path), recursive=True))]
    files = [f for f in files if f.is_file() and f.resolve() not in excluded]
    if not files:
        raise DataError(f"{flag} {where}: no such file")
    return files


def with_split(files: dict[str, list[Path]]) -> list[tuple[Path, str | None]]:
    """The review files, each with its published part: None unless a test file is named."""
    test = files.get("test", [])
    return [(path, "train" if test else None) for path in files["reviews"]] + [(p, "test") for p in test]


def read_lines(path: Path, progress: Progress) -> Iterator[bytes]:
    """The lines of a plain or gzipped file, streamed, without a byte-order mark.

    Raises DataError naming the file and the last line read, if it cannot be read or unpacked, is in
    UTF-16, or has a line of more than 64 MiB.
    """
    number = 0
    try:
        with open(path, "rb") as head:
            packed = head.read(2) == b"\x1f\x8b"
        with progress.open(path, "rb", description=f"reading {path.name}") as raw:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=raw) if packed else raw, 1 << 20)
            while line := stream.readline(MAX_LINE):
                number += 1
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path}: this file is in UTF-16; save it as UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if len(line) == MAX_LINE:
                    raise DataError(
                        f"{path}: line {number} is longer than 64 MiB; this is not a file of lines"
                    )
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from None


class KeyCheck:
    """Records which keys the objects of a file have, to distinguish a wrong name from a missing value.

    Args:
        where: the file.
        required: alternatives, one of each of which must appear among the first objects.
        named: keys that the user named, each of which must appear somewhere in the file.
        advice: what to do about it.
    """

    def __init__(
        self, where: str, required: Sequence[Sequence[str]], named: Sequence[str] = (), advice: str = ""
    ):
        self.where, self.advice = where, advice
        self.required = list(required)
        self.named = set(named)
        self.present: dict[str, None] = {}
        self.objects = 0

    def see(self, row: dict[str, Any]) -> None:
        self.objects += 1
        if self.objects <= LOOK_AHEAD:
            self.present.update(dict.fromkeys(row))
        if self.named:
            self.named -= row.keys()
        if self.required:
            self.required = [names for names in self.required if not any(name in row for name in names)]
            if self.objects >= LOOK_AHEAD:
                self._refuse(self.required)

    def finish(self) -> None:
        """Raise DataError if a required or named key never appeared in a file that has objects."""
        if self.objects:
            self._refuse(self.required or [[name] for name in sorted(self.named)])

    def _refuse(self, missing: Sequence[Sequence[str]]) -> None:
        if missing:
            raise missing_column(self.where, missing[0], list(self.present), self.advice)


def missing_column(
    where: str | Path, names: Sequence[str], present: Sequence[str], advice: str = ""
) -> DataError:
    """The error for a column or key (or its alternatives) that is not in a file, with close matches."""
    lower = {f.lower(): f for f in present}
    close = [lower[c] for n in names for c in difflib.get_close_matches(n.lower(), lower, 2, 0.6)]
    listing = ", ".join(present[:30]) + (", ..." if len(present) > 30 else "")
    alternatives = " or ".join(f"'{n}'" for n in names)
    hint = f"; did you mean {' or '.join(repr(c) for c in dict.fromkeys(close))}?" if close else ""
    return DataError(
        f"{where}: column {alternatives} is missing (found: {listing}){hint}" + (f" {advice}" * bool(advice))
    )


def json_records(
    path: Path,
    progress: Progress,
    fields: Callable[[dict[str, Any]], dict[str, Any]],
    required: Sequence[Sequence[str]],
    named: Sequence[str] = (),
    *,
    advice: str = "",
    literals: bool = False,
) -> Iterator[Record]:
    """The objects of a file with one JSON object a line, as records.

    Args:
        fields: an object -> its values by the table's names.
        required, named, advice: see `KeyCheck`.
        literals: accept lines that are Python dictionaries, as Amazon's files of 2014 have them.
    """
    check = KeyCheck(str(path), required, named, advice)
    for number, line in enumerate(read_lines(path, progress), 1):
        if line.isspace():
            yield Record(number, None, None, BLANK)
            continue
        if not check.objects and line.lstrip().startswith(b"["):
            raise DataError(
                f"{path}: line {number} begins a JSON list; expected one JSON object on each line"
            )
        try:
            row = _parse(line, literals)
        except ValueError as error:
            yield Record(number, line.decode("utf-8", "replace"), None, str(error))
            continue
        check.see(row)
        yield Record(number, row, fields(row))
    check.finish()


def _parse(line: bytes, literals: bool) -> dict[str, Any]:
    """The object on a line; ValueError with the reason where there is none."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("not valid Unicode") from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        try:
            if not literals:
                raise ValueError
            row = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError("not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row
