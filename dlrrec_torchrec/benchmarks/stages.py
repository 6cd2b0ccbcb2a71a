"""`dlrrec bench stages`: seconds and memory of the stages before training, and how both grow.

Reviews of the made-up world of several sizes, with a tenth as many users and a fiftieth as many items. The
encoder makes its vectors from a hash of each text, so what is measured is all the rest. Each stage runs in a
process of its own. Its memory is what belongs to it alone (RssAnon of Linux); files that it maps are in the
system's cache, which gives way where memory is short.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.benchmarks.cases import StagesCase
from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest, stage_output
from dlrrec_torchrec.store.paths import RunPaths, run_paths

STAGES = ("split", "extract", "swing", "prepare")
DIM = 384
SAMPLE_SECONDS = 0.05
MOST_AT_ONCE = 4096
LEAST_ITEMS = 100  # of the smallest worlds, so that nobody has to visit all


class HashEncoder:
    """Unit vectors from a hash of each text."""

    identity = "hash 1"
    dim = DIM

    def encode_batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As of `extract.encoder.Encoder`."""
        for start in range(0, len(texts), MOST_AT_ONCE):
            part = texts[start : start + MOST_AT_ONCE]
            bits = [hashlib.shake_128(text.encode()).digest(DIM) for text in part]
            vectors = np.frombuffer(b"".join(bits), np.int8).reshape(-1, DIM).astype(np.float32) + 0.5
            yield (
                np.arange(start, start + len(part)),
                vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            )


def run(case: StagesCase, say: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure.

    Returns:
        case: its settings.
        results: for each number of reviews and each stage `rows`, `stage`, `seconds`, `cpu_seconds`,
            `rows_per_second`, `peak_mib` (see the module).
        slopes: stage -> `seconds` (of the processor), `memory`: of their logarithm by log rows, smallest to
            largest size; None for one size.
    """
    results = []
    for rows in sorted(case.rows):
        with tempfile.TemporaryDirectory(dir=case.folder or None, prefix="dlrrec-bench-") as folder:
            say(f"{rows:,} reviews: the world")
            in_process(_world, rows, case.seed, folder)
            for stage in STAGES:
                say(f"{rows:,} reviews: {stage}")
                (seconds, processor), peak = in_process(_stage, stage, folder)
                result = {"rows": rows, "stage": stage, "seconds": seconds, "cpu_seconds": processor}
                results.append(result | {"rows_per_second": rows / seconds, "peak_mib": peak})
    return {"case": dataclasses.asdict(case), "results": results, "slopes": growth(results)}


def growth(results: list[dict[str, Any]]) -> dict[str, dict[str, float]] | None:
    """The slopes of `run`."""
    first, last = results[0]["rows"], results[-1]["rows"]
    if first == last:
        return None
    by_size = {(r["rows"], r["stage"]): r for r in results}
    return {
        stage: {
            name: float(
                np.log(by_size[last, stage][column] / by_size[first, stage][column]) / np.log(last / first)
            )
            for name, column in (("seconds", "cpu_seconds"), ("memory", "peak_mib"))
        }
        for stage in STAGES
    }


def in_process(work: Callable, *arguments: Any) -> tuple[Any, float]:
    """What `work` returns in a new process, and the most MiB that belonged to this."""
    peak, context = 0, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            worker = pool.submit(os.getpid).result()
            done = pool.submit(work, *arguments)
            while not done.done():
                peak = max(peak, _own_kib(worker))
                wait([done], SAMPLE_SECONDS)
            return done.result(), peak / 1024
        except BrokenProcessPool:
            raise DataError(
                f"bench stages: the process of {arguments[0]} was ended from outside, as the kernel does "
                "where memory runs short; take fewer --rows"
            ) from None


def _own_kib(process: int) -> int:
    """0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def _world(rows: int, seed: int, folder: str) -> None:
    from dlrrec_torchrec.ingest.stage import write_synthetic

    paths = _paths(folder)
    manifest, items_manifest = Manifest("ingest", {}, {}), Manifest("ingest-items", {}, {})
    counts = rows, rows // 10, max(rows // 50, LEAST_ITEMS)
    with stage_output(manifest, paths.reviews) as reviews:
        write_synthetic(counts, seed, reviews, paths.items, manifest, items_manifest)


def _stage(stage: str, folder: str) -> tuple[float, float]:
    """Run one stage with the settings as they are by default; seconds, and those of the processor."""
    from dlrrec_torchrec.extract.stage import extract
    from dlrrec_torchrec.prepare.stage import prepare
    from dlrrec_torchrec.split.stage import split
    from dlrrec_torchrec.swing_stage import neighbors

    paths, config = _paths(folder), RunConfig()
    began, processor = time.perf_counter(), time.process_time()
    if stage == "split":
        split(config.split, config.protocol, paths.reviews, paths.split)
    elif stage == "extract":
        extract(config.extract, paths.split, paths.items, paths.content, paths.cache, HashEncoder())
    elif stage == "swing":
        neighbors(config.swing, paths.split, paths.swing)
    else:
        prepare(config.prepare, paths.split, paths.content, paths.swing, paths.items, paths.shards)
    return time.perf_counter() - began, time.process_time() - processor


def _paths(folder: str) -> RunPaths:
    return run_paths(folder)[0]


def format_stages(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a table, the first its head."""
    lines = [["reviews", "stage", "s", "cpu s", "reviews/s", "peak GiB", "cpu s by size", "GiB by size"]]
    largest, slopes = report["results"][-1]["rows"], report["slopes"]
    for r in report["results"]:
        numbers = [f"{r['seconds']:.1f}", f"{r['cpu_seconds']:.1f}", f"{r['rows_per_second']:,.0f}"]
        numbers.append(f"{r['peak_mib'] / 1024:.2f}")
        grown = ["", ""]
        if slopes and r["rows"] == largest:
            grown = [f"{slopes[r['stage']][name]:.2f}" for name in ("seconds", "memory")]
        lines.append([f"{r['rows']:,}", r["stage"], *numbers, *grown])
    return lines
