"""Tables of interactions: what can be read, and which of its rows count."""

from __future__ import annotations

import dataclasses
import glob
import itertools
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from swing.config import SwingError
from swing.numbering import numbering

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PACKED = (".gz", ".zst")
_WEIGHTS = {"weight", "weights", "event_weight", "count", "frequency"}
_LAST_SECOND = 10**11  # a larger number (after the year 5138) counts milliseconds, or finer


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which rows count: ratings of at least `min_rating`, times in [since, until).

    A bound is a number in the unit of the time column, or a date: "2024-01-31" or "2024-01-31T12:00", UTC
    where it names no zone. Beside a date, numbers in the column count seconds since 1970. A row without a
    rating or time is left out. Raises SwingError for a bound that is neither.
    """

    min_rating: float | None = None
    since: str | float | None = None
    until: str | float | None = None
    rating_column: str = "rating"
    time_column: str = "timestamp"

    def __post_init__(self):
        bounds = [_bound(name, getattr(self, name)) for name in ("since", "until")]
        if len({is_date for _, is_date in filter(None, bounds)}) > 1:
            raise SwingError("since and until must both be dates or both be numbers")
        if None not in bounds and bounds[0][0] >= bounds[1][0]:
            raise SwingError(f"since ({self.since}) must be before until ({self.until})")

    def excluded(self, schema: pl.Schema, where: str) -> dict[str, pl.Expr]:
        """Masks of the rows that are left out, by reason. Raises SwingError for an unsuitable column."""
        masks: dict[str, pl.Expr] = {}
        if self.min_rating is not None:
            rating = _column(self.rating_column, schema, where, "--rating-column")
            kind = schema[self.rating_column]
            if not (kind.is_numeric() or kind == pl.String):
                raise SwingError(
                    f"{where}: column '{self.rating_column}' has type {kind}; ratings are numbers"
                )
            masks["rows_below_min_rating"] = ~(rating.cast(pl.Float64) >= self.min_rating).fill_null(False)
        since, until = _bound("since", self.since), _bound("until", self.until)
        if since or until:
            seconds = self._seconds(schema, where, dates=(since or until)[1])
            inside = seconds.is_not_null()
            if since:
                inside &= seconds >= since[0]
            if until:
                inside &= seconds < until[0]
            outside = ~inside.fill_null(False)
            if "rows_below_min_rating" in masks:  # each row has one reason
                outside &= ~masks["rows_below_min_rating"]
            masks["rows_outside_time_window"] = outside
        return masks

    def _seconds(self, schema: pl.Schema, where: str, dates: bool) -> pl.Expr:
        """The time column as numbers: seconds since 1970 where it holds dates."""
        time = _column(self.time_column, schema, where, "--time-column")
        kind = schema[self.time_column]
        if kind.is_numeric():
            return time.map_batches(lambda s: _checked(s, self.time_column), kind) if dates else time
        if kind == pl.Date or isinstance(kind, pl.Datetime):
            return time.dt.epoch("s")
        if kind == pl.String:
            number = time.cast(pl.Float64, strict=False)
            if dates:
                number = number.map_batches(lambda s: _checked(s, self.time_column), pl.Float64)
            return pl.coalesce(number, time.str.to_datetime(strict=False, time_zone="UTC").dt.epoch("s"))
        raise SwingError(f"{where}: column '{self.time_column}' has type {kind}; times are numbers or dates")


def _checked(times: pl.Series, name: str) -> pl.Series:
    if (latest := times.max()) is not None and latest > _LAST_SECOND:
        raise pl.exceptions.ComputeError(
            f"column '{name}' holds {latest:.0f}, which is no time in seconds: give since and until as "
            "numbers in the column's own unit"
        )
    return times


def _bound(name: str, value: str | float | None) -> tuple[float, bool] | None:
    """(number, whether it was a date)."""
    if value is None:
        return None
    try:
        return float(value), False
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        raise SwingError(f"{name} must be a number or a date like 2024-01-31, not '{value}'") from None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp(), True


def _column(name: str, schema: pl.Schema, where: str, flag: str = "") -> pl.Expr:
    if name not in schema:
        hint = f"; name it with {flag}" if flag else ""
        raise SwingError(f"{where}: no column '{name}' (found: {', '.join(schema.names())}){hint}")
    return pl.col(name)


def check(schema: pl.Schema, user: str, item: str, where: str) -> list[str]:
    """Warnings about a table with this schema. Raises SwingError if it has no ids that can be used."""
    if user == item:
        raise SwingError(f"{where}: users and items cannot both be column '{user}'")
    for name, flag in ((user, "--user-column"), (item, "--item-column")):
        _column(name, schema, where, flag)
        if numbering(schema[name]) is None:
            raise SwingError(f"{where}: column '{name}' has type {schema[name]}; ids are strings or integers")
    return [
        f"column '{name}' is ignored: an interaction counts once, whatever its weight"
        for name in schema
        if name.lower() in _WEIGHTS and name not in (user, item)
    ]


def scan(source: str | Path | pl.DataFrame | pl.LazyFrame) -> pl.LazyFrame:
    """A query over a frame, or over Parquet, CSV or TSV: a file, a folder (hive partitions too), a glob.

    All columns of text files are strings, so that an id "007" keeps its zeros.
    Raises SwingError where there is no such file.
    """
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        return source.lazy()
    files, kind = _files(source)
    if kind in _SEPARATORS:
        return pl.scan_csv(files, separator=_SEPARATORS[kind], infer_schema=False)
    return pl.scan_parquet(files, hive_partitioning=any("=" in part for p in files for part in p.parts))


def row_count(source: str | Path | pl.DataFrame | pl.LazyFrame) -> int | None:
    """Rows of what `scan` takes; None where all would have to be read to count them."""
    if isinstance(source, pl.DataFrame):
        return source.height
    if isinstance(source, pl.LazyFrame) or _files(source)[1] != ".parquet":
        return None
    return scan(source).select(pl.len()).collect().item()  # from the files' footers


def _files(source: str | Path) -> tuple[list[Path], str]:
    """The files at a path, and their kind. Raises SwingError where there are none, or of several kinds."""
    path = Path(source)
    if path.is_dir():
        paths = [p for p in sorted(path.rglob("*")) if not _hidden(p, path)]
        for kind in (".parquet", *_SEPARATORS):
            if files := [p for p in paths if _kind(p) == kind and p.is_file()]:
                break
        else:
            raise SwingError(f"{path}: no .parquet, .csv or .tsv file in this folder")
    else:
        fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(source), recursive=True)))
        files = [p for p in paths if not _hidden(p, fixed)]
        if not files:
            raise SwingError(f"{source}: no such file or folder")
    kinds = {_kind(p) for p in files}
    if len(kinds) > 1:
        raise SwingError(f"{source}: files of different kinds ({', '.join(sorted(kinds))}); choose one")
    if (kind := kinds.pop()) not in (".parquet", *_SEPARATORS):
        raise SwingError(f"{files[0]}: expected .parquet, .csv or .tsv, not '{kind}'")
    return files, kind


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _PACKED and suffixes[-2] in _SEPARATORS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _hidden(path: Path, root: Path) -> bool:
    """Whether an unfinished job left it there (`.part.tmp`, `_temporary/`)."""
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
