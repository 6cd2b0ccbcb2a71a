"""`dlrrec bench loader`: rows per second from Parquet shards to batches, against a plain read.

Each round measures, for every kind of row and number of workers: a plain read of the bytes that the loader
decodes, an epoch of the loader, and a plain copy of as many bytes as its batches have. The share of the two
plain ones in the loader's time shows how far it is from the best that the machine can do. All three run
within the same minute, so the share is valid on a busy machine too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrrec_torchrec.benchmarks.cases import LoaderCase
from dlrrec_torchrec.benchmarks.format import spread
from dlrrec_torchrec.benchmarks.random_shards import random_facts, write_random_shards
from dlrrec_torchrec.benchmarks.timing import summary
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import part_files
from dlrrec_torchrec.store.modality import chosen
from dlrrec_torchrec.store.shard_facts import ShardFacts

USERS, ITEMS = 30_000, 15_000


def kinds(case: LoaderCase, facts: ShardFacts) -> dict[str, BatchSpec]:
    """Name of each kind of row -> what its batches hold."""
    vectors = chosen(case.modalities, facts.row_modalities, "--modalities")
    specs = {"vectors": BatchSpec(facts, in_rows=vectors, positives=case.positives)} if vectors else {}
    specs["ids"] = BatchSpec(facts, positives=case.positives)
    if case.positives:
        specs["ids without positives"] = BatchSpec(facts)
    return specs


def run(case: LoaderCase, say: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure.

    Args:
        say: called with a line before each part.

    Returns:
        case: its settings. rows: of an epoch.
        results: for each kind of row and number of workers
            kind, workers, columns (of the files that are read);
            bytes: of an epoch, `file` (compressed, those columns) and `batches`;
            seconds: of an epoch, `loader`, `read` and `copy` (median, p10, p90 of the rounds);
            rows_per_second (median, p10, p90); rows_per_cpu_second: the same by processor time, which
                other work on the machine changes less; only without workers;
            share: (read + copy) / loader of the same round (median, p10, p90).

    Raises:
        DataError: shards that cannot be read, or an epoch that is not the files' rows.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("bench loader measures one process and its workers; start it with one rank (-j 1)")
    with _shards(case, say) as folder, one_core():
        measured = [
            _Measured(folder, case, kind, spec, workers)
            for workers in case.workers
            for kind, spec in kinds(case, ShardFacts.read(folder)).items()
        ]
        for number in range(case.warmup + case.rounds):
            say(f"round {number + 1} of {case.warmup + case.rounds}")
            for measurement in measured:
                measurement.round(number, number >= case.warmup)
        rows = measured[0].loader.rows
        return {"case": dataclasses.asdict(case), "rows": rows, "results": [m.result() for m in measured]}


class _Measured:
    """One kind of row with one number of workers, and the times of its rounds."""

    def __init__(self, folder: Path, case: LoaderCase, kind: str, spec: BatchSpec, workers: int) -> None:
        self.kind, self.workers = kind, workers
        self.loader = make_loader(
            folder, "train", case.batch, spec, seed=case.seed, shuffle=True, workers=workers
        )
        self.columns = self.loader.dataset.reader.columns
        self.ranges = column_ranges(folder / "train", self.columns)
        self.file_bytes = sum(size for parts in self.ranges.values() for _, size in parts)
        check_rows(self.loader, folder / "train")
        self.batch_bytes = 0
        self.seconds: dict[str, list[float]] = {"read": [], "copy": [], "loader": [], "cpu": []}

    def round(self, epoch: int, counts: bool) -> None:
        self.loader.dataset.forget()
        read = _timed(lambda: read_ranges(self.ranges))[0]
        self.loader.set_epoch(epoch)
        loader, cpu, self.batch_bytes = _timed(lambda: sum(batch.nbytes for batch in self.loader))
        copy = _timed(lambda: copy_bytes(self.batch_bytes))[0]
        if counts:
            for name, value in {"read": read, "copy": copy, "loader": loader, "cpu": cpu}.items():
                self.seconds[name].append(value)

    def result(self) -> dict[str, Any]:
        times, rows = self.seconds, self.loader.rows
        plain = zip(times["read"], times["copy"], times["loader"], strict=True)
        result: dict[str, Any] = {"kind": self.kind, "workers": self.workers, "columns": self.columns}
        result["bytes"] = {"file": self.file_bytes, "batches": self.batch_bytes}
        result["seconds"] = {name: summary(times[name]) for name in ("loader", "read", "copy")}
        result["rows_per_second"] = summary([rows / t for t in times["loader"]])
        if not self.workers:
            result["rows_per_cpu_second"] = summary([rows / t for t in times["cpu"]])
        result["share"] = summary([(read + copy) / loader for read, copy, loader in plain])
        return result


def format_loader(report: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: medians, with p10 to p90 in brackets."""

    header = ["rows with", "workers", "thousand rows/s", "per CPU second", "file B/row", "batch B/row"]
    table = [[*header, "plain read + copy"]]
    for result in report["results"]:
        cpu = result.get("rows_per_cpu_second")
        table.append(
            [
                result["kind"],
                str(result["workers"]),
                spread(result["rows_per_second"], "{:,.0f}", 1e-3),
                spread(cpu, "{:,.0f}", 1e-3) if cpu else "-",
                *(f"{result['bytes'][name] / report['rows']:,.0f}" for name in ("file", "batches")),
                spread(result["share"], "{:.0%}"),
            ]
        )
    return table


@contextlib.contextmanager
def _shards(case: LoaderCase, say: Callable[[str], Any]) -> Iterator[Path]:
    if case.shards:
        yield Path(case.shards)
        return
    with contextlib.ExitStack() as stack:
        folder = Path(case.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrrec-loader-")))
        say(f"{case.rows:,} random rows in {folder}")
        options = {"modalities": case.modalities, "vector_dim": case.vector_dim}
        facts = random_facts(users=USERS, items=ITEMS, positives=case.positives, **options)
        write_random_shards(folder, case.rows, facts, case.seed)
        yield folder


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Limit this process to one thread: torch, and Arrow's decoding and reading."""
    threads_before = torch.get_num_threads(), pa.cpu_count(), pa.io_thread_count()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before[0])
        pa.set_cpu_count(threads_before[1])
        pa.set_io_thread_count(threads_before[2])


def check_rows(loader: ShardLoader, folder: Path) -> None:
    """Raise DataError unless an epoch's labels and ids have the same sums as those of the files."""
    names = ("label", "user", "item")
    loader_sums = np.zeros(len(names), np.int64)
    for batch in loader:
        loader_sums += [int(getattr(batch, name).sum()) for name in names]
    file_sums = np.zeros(len(names), np.int64)
    for path in part_files(folder):
        table = pq.read_table(path, columns=list(names))
        file_sums += [int(table[name].to_numpy().sum(dtype=np.float64)) for name in names]
    if not np.array_equal(loader_sums, file_sums):
        raise DataError(
            f"{folder}: the loader's rows are not the files' (sums {loader_sums} and {file_sums})"
        )


def column_ranges(folder: Path, columns: Sequence[str]) -> dict[Path, list[tuple[int, int]]]:
    """Part -> (offset, bytes) of each column of each row group."""
    ranges: dict[Path, list[tuple[int, int]]] = {}
    for path in part_files(folder):
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            parts = [metadata.row_group(group).column(k) for k in range(metadata.num_columns)]
            for part in parts:
                if part.path_in_schema.split(".")[0] in columns:
                    start = part.dictionary_page_offset or part.data_page_offset
                    ranges.setdefault(path, []).append((start, part.total_compressed_size))
    return ranges


def read_ranges(ranges: dict[Path, list[tuple[int, int]]]) -> int:
    """Read the ranges into one buffer; returns the bytes."""
    buffer, total = memoryview(bytearray(max(size for parts in ranges.values() for _, size in parts))), 0
    for path, parts in ranges.items():
        with open(path, "rb", buffering=0) as file:
            for start, size in parts:
                file.seek(start)
                total += file.readinto(buffer[:size])
    return total


def copy_bytes(number: int) -> None:
    """Copy `number` bytes, 16 MiB at a time, which is more than the caches of one core."""
    source, target = np.ones(1 << 24, np.uint8), np.zeros(1 << 24, np.uint8)
    for start in range(0, number, len(source)):
        size = min(len(source), number - start)
        target[:size] = source[:size]


def _timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """(seconds by the clock, seconds of this process's threads on a core, what it returns)."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - start, time.process_time() - cpu, result
