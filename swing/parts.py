"""The parts of an output: how the ids are divided, and the Parquet file of each part.

The division and every byte of a part depend only on the graph and the parameters, so any engine, with any
number of threads, can continue where another stopped. A file has its counts in its footer, where a resumed
job finds them; it gets its final name only when it is complete and on the disk.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from swing.machine import peak_memory_mib

if TYPE_CHECKING:
    from swing.local import Neighbors, Scorer

PART_COST = 1 << 27  # about this many steps of a walk in one part: a second or two of one core
SLOT_COST = 16  # the cost of writing one neighbour, in steps
ROW_COST = 32
NEIGHBOR = "neighbors.list.element"  # Parquet's name for the values of the lists


class Part(NamedTuple):
    """The anchors begin..end-1, and how much work they are."""

    number: int
    begin: int
    end: int
    edges: int
    steps: int
    slots: int  # most neighbours there can be

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}.parquet"


class Counts(NamedTuple):
    """What is in a part."""

    covered: int  # ids with a neighbour
    neighbors: int
    pair_updates: int
    bytes: int  # of the file


class Done(NamedTuple):
    """A part that was scored and written, and what it took."""

    part: Part
    counts: Counts
    worker: str  # machine and process
    seconds: float
    peak_memory_mib: float  # of the process, so far
    attempts: int = 1


def divide(scorer: Scorer) -> list[Part]:
    """All anchors in consecutive parts of about equal cost."""
    graph, steps = scorer.graph, scorer.steps
    slots = np.minimum(steps, scorer.config.top_k)
    total = np.cumsum(steps + SLOT_COST * slots + ROW_COST)
    pieces = int(-(-total[-1] // PART_COST))
    cuts = np.searchsorted(total, total[-1] * (np.arange(1, pieces) / pieces))
    bounds = np.unique(np.concatenate([[0], cuts, [len(steps)]]))
    starts = bounds[:-1]
    columns = (
        starts,
        bounds[1:],
        np.diff(graph.anchor_ptr[bounds]),
        np.add.reduceat(steps, starts),
        np.add.reduceat(slots, starts),
    )
    return [Part(number, *map(int, row)) for number, row in enumerate(zip(*columns, strict=True))]


def score_parts(
    scorer: Scorer, parts: Sequence[Part], folder: Path, job: str, report: Callable[[int, int], None]
) -> Iterator[Done]:
    """Score `parts` on this machine and write them to `folder`, in order.

    Several are in progress at once: while one is written, the threads score the next. `report(edges, steps)`
    is called after each chunk, by one thread at a time.
    """
    ids, turn, stopped = arrow_ids(scorer.graph.anchor_ids), threading.Lock(), threading.Event()

    def on_chunk(edges: int, steps: int) -> None:
        if stopped.is_set():
            raise CancelledError
        with turn:
            report(edges, steps)

    pool = ThreadPoolExecutor(1 + max(1, scorer.threads // 4))
    try:
        yield from pool.map(lambda part: score_part(scorer, ids, part, folder, job, on_chunk), parts)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def score_part(
    scorer: Scorer,
    ids: pa.Array,
    part: Part,
    folder: Path,
    job: str,
    on_chunk: Callable[[int, int], None] | None = None,
) -> Done:
    """Score one part and write it to `folder`. `ids`: of all anchors; `job`: the job's fingerprint.

    Raises OSError where it cannot be written, and then leaves no unfinished file.
    """
    started = time.monotonic()
    chunks = list(scorer.score(part.begin, part.end, on_chunk))
    note = {
        "job": job,
        "begin": part.begin,
        "end": part.end,
        "covered": sum(int(np.count_nonzero(chunk.counts)) for chunk in chunks),
        "neighbors": sum(len(chunk.codes) for chunk in chunks),
        "pair_updates": sum(chunk.updates for chunk in chunks),
    }
    size = write(table(ids, chunks, pack=True), folder / part.name, json.dumps(note))
    counts = Counts(note["covered"], note["neighbors"], note["pair_updates"], size)
    return Done(part, counts, process_name(), time.monotonic() - started, peak_memory_mib())


def table(ids: pa.Array, chunks: Iterable[Neighbors], pack: bool = False) -> pa.Table:
    """Consecutive chunks as a table of id, neighbors, scores; nothing is null.

    `pack` leaves string neighbours as a dictionary, which Parquet stores as it is: a third of the time and of
    the bytes of writing each string. Readers still get strings.
    """
    chunks = list(chunks)
    counts, codes, scores = (
        np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("counts", "codes", "scores")
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    if pack and pa.types.is_large_string(ids.type):
        used, codes = _distinct(codes, len(ids))
        neighbors = pa.DictionaryArray.from_arrays(codes, ids.take(pa.array(used)))
    else:
        neighbors = ids.take(pa.array(codes))
    columns = {"id": ids.slice(chunks[0].begin, chunks[-1].end - chunks[0].begin)}
    for name, values in (("neighbors", neighbors), ("scores", pa.array(scores))):
        kind = pa.large_list(pa.field("element", values.type, nullable=False))
        columns[name] = pa.LargeListArray.from_arrays(offsets, values, type=kind)
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in columns.items()])
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _distinct(codes: np.ndarray, ids: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes, ascending, and the position of each code among them."""
    if ids > 4 * len(codes):
        used, places = np.unique(codes, return_inverse=True)
        return used, places.astype(np.int32)
    mask = np.zeros(ids, bool)
    mask[codes] = True
    return np.flatnonzero(mask), (np.cumsum(mask, dtype=np.int32) - 1)[codes]


def write(rows: pa.Table, path: Path, note: str) -> int:
    """Write Parquet with a note: under another name first, then, once it is on the disk, at `path`.

    Returns its bytes.
    """
    options: dict = {"use_dictionary": [NEIGHBOR]}
    if pa.types.is_integer(rows.schema.field("id").type):
        encoding = dict.fromkeys(("id", NEIGHBOR), "DELTA_BINARY_PACKED")
        options = {"use_dictionary": False, "column_encoding": encoding}
    options |= {"compression": "zstd", "compression_level": 1, "write_statistics": ["id"]}
    options |= {"store_schema": False}  # with it, readers would return dictionaries
    # The process in the name: one that was believed lost may still be writing the same part.
    temporary = path.with_name(f".{path.name}.{process_name()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, rows.schema, **options) as writer:
                writer.write_table(rows)
                writer.add_key_value_metadata({"swing": note})
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
        return size
    finally:
        temporary.unlink(missing_ok=True)


def read_counts(path: Path, part: Part, job: str) -> Counts | None:
    """The counts of a part written before; None if it is missing, incomplete or of another job."""
    try:
        footer, size = pq.read_metadata(path), path.stat().st_size
        note = json.loads(footer.metadata[b"swing"])
        counts = Counts(*(note.pop(name) for name in Counts._fields[:-1]), size)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    complete = footer.num_rows == part.end - part.begin
    return counts if complete and note == {"job": job, "begin": part.begin, "end": part.end} else None


def arrow_ids(ids: pl.Series) -> pa.Array:
    """Ids as Arrow: integers of their type, or large_string."""
    array = ids.to_arrow()
    return array.cast(pa.large_string()) if ids.dtype == pl.String else array


def versions() -> dict[str, str]:
    """Versions of the software that the bytes of a part may depend on."""
    modules = {module.__name__: module.__version__ for module in (np, numba, pl, pa)}
    return {"python": platform.python_version(), **modules}


def process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
