"""A finished output, read back: its lists as CSR, its degrees, and the broken promises of the job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import feather

from swing.compiled import compiled
from swing.config import SwingError

BATCH = 1 << 16  # rows of a part that are decoded at once


class Rows:
    """The row of an id among `ids`; -1 for an id that is not among them."""

    def __init__(self, ids: pl.Series):
        self.family, self._type = _family(ids.dtype)
        self._ids = ids.to_arrow().cast(self._type)

    def __call__(self, ids: pa.Array) -> np.ndarray:
        """i32[len(ids)]."""
        if pa.types.is_dictionary(ids.type):
            return self(ids.dictionary)[ids.indices.to_numpy()]
        return pc.index_in(ids.cast(self._type), self._ids).fill_null(-1).to_numpy()


@dataclasses.dataclass(frozen=True)
class Lists:
    """The lists of a finished output, one after the other."""

    directory: Path
    manifest: dict[str, Any]
    ids: pl.Series  # strings or integers, in the order of the files
    rows: Rows  # the rows by which neighbours are numbered: of `ids`, or of another output
    ptr: np.ndarray  # i64[ids + 1]
    codes: np.ndarray  # i32[neighbours]: their row, -1 for an id that `rows` does not know
    scores: np.ndarray  # f32[neighbours]

    @property
    def counts(self) -> np.ndarray:
        """Length of each list, i64[ids]."""
        return np.diff(self.ptr)

    def known(self) -> Lists:
        """The same without the neighbours that `rows` does not know."""
        keep = self.codes >= 0
        if keep.all():
            return self
        ptr = np.concatenate([[0], np.cumsum(keep)])[self.ptr]
        return dataclasses.replace(self, ptr=ptr, codes=self.codes[keep], scores=self.scores[keep])


def read(directory: str | Path, rows: Rows | None = None) -> Lists:
    """Read a finished output. The neighbours are numbered by `rows`, or else by the output's own ids.

    Raises SwingError for a folder that is no finished output, for a part that cannot be read, and for ids
    of another kind than those of `rows`.
    """
    directory = Path(directory)
    manifest = _manifest(directory)
    paths = sorted(directory.glob("part-*.parquet"))
    if not paths:
        raise SwingError(f"{directory}: has a manifest.json but no part-*.parquet; do the run again")
    parts = [pl.from_arrow(ids) for path in paths for (ids,) in _batches(path, "id")]
    if not parts:
        raise SwingError(f"{directory}: its parts hold no ids; do the run again")
    for kind in {part.dtype for part in parts}:
        if kind != parts[0].dtype:
            raise SwingError(f"{directory}: the parts have ids of different types ({parts[0].dtype}, {kind})")
    ids = pl.concat(parts).alias("id")
    if rows is None:
        rows = Rows(ids)
    elif (family := _family(ids.dtype)[0]) != rows.family:
        raise SwingError(
            f"{directory}: its ids are {family}, those of the other output are {rows.family}: "
            "read the same input into both"
        )
    counts, codes, scores = [], [], []
    for path in paths:
        for neighbors, values in _batches(path, "neighbors", "scores"):
            lengths = neighbors.value_lengths()
            if not lengths.equals(values.value_lengths()):
                raise SwingError(f"{path}: a list of neighbors and its scores differ in length: damaged")
            counts.append(lengths.to_numpy())
            codes.append(rows(neighbors.flatten()))
            scores.append(values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False))
    ptr = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
    return Lists(directory, manifest, ids, rows, ptr, np.concatenate(codes), np.concatenate(scores))


def _manifest(directory: Path) -> dict[str, Any]:
    again = "start the same `python -m swing items` or `users` command again, it continues where it stopped"
    resolved = directory.resolve()
    if resolved.name.startswith(".") and resolved.name.endswith(".partial"):
        raise SwingError(f"{directory}: unfinished output; {again}")
    if not directory.exists() and (partial := resolved.with_name(f".{resolved.name}.partial")).exists():
        raise SwingError(f"{directory}: not finished yet (its parts are in {partial.name}); {again}")
    if not directory.is_dir():
        raise SwingError(f"{directory}: no such folder")
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SwingError(f"{directory}: no output of swing (it has no manifest.json)") from None
    except (OSError, ValueError) as error:
        raise SwingError(f"{directory / 'manifest.json'}: cannot be read: {error}") from None
    if not (isinstance(manifest, dict) and {"fingerprint", "side", "parameters"} <= manifest.keys()):
        raise SwingError(f"{directory}: no output of swing (its manifest.json is of another kind)")
    return manifest


def _batches(path: Path, *columns: str) -> Iterator[tuple[pa.Array, ...]]:
    """The columns of a part, some rows at a time."""
    try:
        schema = pq.read_metadata(path).schema
        _check_schema(path, schema.to_arrow_schema())
        names = [schema.column(n).path for n in range(len(schema))]
        # Strings as the dictionary that the job writes: each is looked up once, in a fifth of the time.
        packed = [name for name in names if name.startswith("neighbors.")]
        with pq.ParquetFile(path, read_dictionary=packed) as file:
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                for name, column in zip(columns, batch.columns, strict=True):
                    if column.null_count or (name != "id" and column.flatten().null_count):
                        raise SwingError(f"{path}: column '{name}' holds nulls: damaged; do the run again")
                yield tuple(batch.columns)
    except (OSError, pa.ArrowException) as error:
        raise SwingError(f"{path}: cannot be read: {error}") from None


def _check_schema(path: Path, schema: pa.Schema) -> None:
    missing = {"id", "neighbors", "scores"} - set(schema.names)
    if missing:
        columns = ", ".join(schema.names)
        raise SwingError(f"{path}: no column '{min(missing)}' (found: {columns}): no part of swing's output")
    id_type, neighbors, scores = (schema.field(name).type for name in ("id", "neighbors", "scores"))
    lists = all(pa.types.is_list(kind) or pa.types.is_large_list(kind) for kind in (neighbors, scores))
    is_id = pa.types.is_integer(id_type) or _plain(id_type) == pa.string()
    if not (
        (lists and is_id)
        and _plain(neighbors.value_type) == _plain(id_type)
        and pa.types.is_floating(scores.value_type)
    ):
        raise SwingError(
            f"{path}: id, neighbors and scores have types {id_type}, {neighbors} and {scores}; expected "
            "strings or integers, lists of the same, and lists of floats"
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without the width of a string's offsets."""
    return pa.string() if pa.types.is_large_string(kind) else kind


def _family(kind: pl.DataType) -> tuple[str, pa.DataType]:
    """(name, common type) of a family of ids, which can be compared whatever their width."""
    if kind == pl.String:
        return "strings", pa.large_string()
    return ("unsigned 64-bit integers", pa.uint64()) if kind == pl.UInt64 else ("integers", pa.int64())


def degrees(lists: Lists) -> tuple[np.ndarray | None, list[str]]:
    """Edges of each id, i32[ids] (None where the output does not say), and what is wrong with them.

    Raises SwingError if degrees.arrow cannot be read.
    """
    path = lists.directory / "degrees.arrow"
    if not path.exists():
        return None, []
    try:
        frame = pl.from_arrow(feather.read_table(path, memory_map=False))
    except (OSError, pa.ArrowException) as error:
        raise SwingError(f"{path}: cannot be read: {error}") from None
    if not ({"id", "degree"} <= set(frame.columns) and frame["degree"].dtype.is_integer()):
        columns = ", ".join(f"{name} {kind}" for name, kind in frame.schema.items())
        raise SwingError(f"{path}: expected id and degree, a whole number; found {columns}")
    if not frame["id"].equals(lists.ids):
        return None, ["degrees.arrow names other ids than the parts, or in another order"]
    if frame["degree"].null_count() or frame["degree"].min() < 0:
        return None, ["degrees.arrow has degrees that are null or below 0"]
    degree = frame["degree"].to_numpy()
    wrong = (degree == 0) & (lists.counts > 0)
    return degree, _noted(wrong, "ids without edges that have neighbours", lists.ids)


def problems(lists: Lists) -> list[str]:
    """The broken promises of the job, each with a count and the first id it concerns."""
    ids, counts, codes, scores = lists.ids, lists.counts, lists.codes, lists.scores
    row = np.repeat(np.arange(len(ids), dtype=np.int32), counts)
    continues = row[1:] == row[:-1]  # whether an entry follows another of the same list
    rank = ids.rank("dense").to_numpy().astype(np.int32)  # the order of ids, in case the rows are not sorted
    tied = 1 + np.flatnonzero(continues & (scores[1:] == scores[:-1]))
    tied = tied[(codes[tied] >= 0) & (codes[tied - 1] >= 0)]
    out_of_order = rank[codes[tied]] < rank[codes[tied - 1]]
    parameters = lists.manifest["parameters"]
    repeated = np.zeros(len(ids), bool)
    _find_repeated(lists.ptr, codes, np.full(len(ids), -1, np.int32), repeated)
    rising = continues & (scores[1:] > scores[:-1])
    unusable = ~((scores > 0) & np.isfinite(scores))
    problems = [
        *_noted((ids[1:] < ids[:-1]).to_numpy(), "ids out of order", ids[1:]),
        *_noted(ids.is_duplicated().to_numpy(), "rows with an id that has another row too", ids),
        *_noted(codes < 0, "neighbours that are no id of this output", ids, row),
        *_noted(codes == row, "neighbours that are the id itself", ids, row),
        *_noted(repeated, "lists that name a neighbour twice", ids),
        *_noted(unusable, "scores that are not positive and finite", ids, row),
        *_noted(rising, "scores better than the one before", ids, row[1:]),
    ]
    if top_k := parameters.get("top_k"):
        problems += _noted(counts > top_k, f"lists longer than top_k {top_k}", ids)
    if parameters.get("normalize"):  # the quotient by the best may round different scores to a tie
        best = counts > 0
        best[best] = scores[lists.ptr[:-1][best]] != 1
        problems += _noted(best, "lists that do not begin with score 1 though normalised", ids)
    else:
        problems += _noted(out_of_order, "ties that are not in the order of ids", ids, row[tied])
    return problems + _miscounted(lists)


def _noted(wrong: np.ndarray, problem: str, ids: pl.Series, row: np.ndarray | None = None) -> list[str]:
    """The problem with its count where `wrong` bool[N]; `row` [N]: rows of the ids (None: the positions)."""
    if not wrong.any():
        return []
    first = int(wrong.argmax())
    where = ids[first if row is None else int(row[first])]
    return [f"{problem}: {np.count_nonzero(wrong):,}, first at {where!r}"]


def _miscounted(lists: Lists) -> list[str]:
    manifest, counts = lists.manifest, lists.counts
    paths = {path.name: path for path in sorted(lists.directory.glob("part-*.parquet"))}
    covered = int(np.count_nonzero(counts))
    actual = {
        "ids": len(counts),
        "covered": covered,
        "coverage": round(covered / max(1, len(counts)), 6),
        "neighbors": int(lists.ptr[-1]),
        "parts": len(paths),
    }
    if "bytes" in manifest:
        actual["bytes"] = sum(path.stat().st_size for path in paths.values())
    problems = [
        f"manifest.json says {name} {manifest.get(name)}, the parts hold {value}"
        for name, value in actual.items()
        if manifest.get(name) != value
    ]
    expected = {f"part-{number:05d}.parquet" for number in range(manifest.get("parts") or 0)}
    problems += [f"{name} is missing" for name in sorted(expected - paths.keys())]
    jobs = {name: _job(path) for name, path in paths.items()}
    return problems + [
        f"{name} is of another run"
        for name, job in jobs.items()
        if job not in (None, manifest["fingerprint"])
    ]


def _job(path: Path) -> str | None:
    """The fingerprint in a part's footer; None where there is none."""
    note = (pq.read_metadata(path).metadata or {}).get(b"swing")
    return note and json.loads(note).get("job")


@compiled
def _find_repeated(ptr, codes, last_row, repeated):
    for row in range(ptr.size - 1):
        for n in range(ptr[row], ptr[row + 1]):
            code = codes[n]
            if code >= 0:
                if last_row[code] == row:
                    repeated[row] = True
                last_row[code] = row
