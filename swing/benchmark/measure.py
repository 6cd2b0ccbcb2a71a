"""Measured pieces of work, each in a new process, so that its peak memory is measured alone."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import swing
from swing import interactions
from swing.benchmark.graphs import adjacency
from swing.local import Scorer, walk_steps
from swing.machine import peak_memory_mib


def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `function` returns, and `peak_mib`, the largest resident set of the new process that ran it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    return function(*arguments) | {"peak_mib": peak_memory_mib()}


def compile_kernels(config: swing.SwingConfig) -> float:
    """Load the compiled kernels from numba's cache, or compile them; returns the seconds it took."""
    started = time.perf_counter()
    list(tiny_scorer(config).score(0, 2))
    return time.perf_counter() - started


def tiny_scorer(config: swing.SwingConfig) -> Scorer:
    """A scorer of a graph so small that it takes no time, but where every limit drops something."""
    tiny = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 4, 4], "item_id": [1, 2, 1, 2, 1, 1, 2]})
    graph = interactions.build(
        swing.read(tiny), dataclasses.replace(config, min_user_items=2, max_item_users=2)
    )
    return Scorer(graph, config, 1)


def ours(path: Path, threads: int, keep: Path | None) -> dict[str, Any]:
    """Score an adjacency list with the preset recfarm and keep all pairs; `seconds` of scoring only."""
    table = adjacency(path)
    config = swing.preset("recfarm", top_k=table["item_id"].n_unique())
    compiled = compile_kernels(config)
    started = time.perf_counter()
    graph = interactions.build(swing.read(table), config)
    built = time.perf_counter()
    chunks = list(Scorer(graph, config, threads).score(0, len(graph.anchor_ids)))
    seconds = time.perf_counter() - built
    counts = np.concatenate([chunk.counts for chunk in chunks])
    if keep:
        save(
            keep,
            counts,
            *(np.concatenate([getattr(c, part) for c in chunks]) for part in ("codes", "scores")),
        )
    return {
        "seconds": seconds,
        "compile": compiled,
        "graph": built - started,
        "pairs": int(counts.sum()),
        "updates": sum(chunk.updates for chunk in chunks),
        "edges": len(table),
    }


def theirs(path: Path, threads: int, keep: Path | None) -> dict[str, Any]:
    """The same by recfarm: `seconds` inside its `compute_swing` only."""
    from swing.benchmark import recfarm_adapter

    table = adjacency(path)
    read = swing.read(table)
    users = np.repeat(np.arange(len(read.user_ids)), np.diff(read.user_ptr))
    ptr, codes, scores, seconds = recfarm_adapter.neighbors(
        users, read.item_idx, len(read.user_ids), len(read.item_ids), 1.0, threads
    )
    if keep:
        save(keep, np.diff(ptr), codes, scores)
    return {"seconds": seconds, "pairs": len(codes), "edges": len(table)}


def save(path: Path, counts: np.ndarray, codes: np.ndarray, scores: np.ndarray) -> None:
    """Save neighbours in an order that does not depend on how ties are broken: by item, then by neighbour."""
    anchors = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((codes, anchors))
    np.savez(path, anchors=anchors, codes=codes[order], scores=scores[order])


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Whether two saved results have the same pairs, and the largest relative difference of a score."""
    ours, theirs = np.load(a), np.load(b)
    same_pairs = all(np.array_equal(ours[name], theirs[name]) for name in ("anchors", "codes"))
    gap = np.abs(ours["scores"] / theirs["scores"] - 1.0).max() if same_pairs else float("nan")
    return {"same_pairs": same_pairs, "largest_difference": float(gap)}


def job(source: Path, output: Path, threads: int, engine: str = "local") -> dict[str, Any]:
    """From the file to written neighbours, as the command does it: the manifest and the seconds in all."""
    compiled = compile_kernels(swing.SwingConfig())
    started = time.perf_counter()
    manifest = swing.run(source, output, threads=threads, engine=engine)
    return {"seconds": time.perf_counter() - started, "compile": compiled, "manifest": manifest}


def job_on_ray(source: Path, output: Path, workers: int) -> dict[str, Any]:
    """The same on a Ray cluster of `workers` cores on this machine; `start`: seconds until it is up."""
    import ray

    started = time.perf_counter()
    ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    start = time.perf_counter() - started
    try:
        return job(source, output, 1, "ray") | {"start": start}
    finally:
        ray.shutdown()


def scoring(source: Path, threads: list[int], repeats: int) -> dict[str, Any]:
    """Seconds of scoring only, by number of threads, alternating, on one graph in memory."""
    config = swing.SwingConfig()
    compile_kernels(config)
    graph = interactions.build(swing.read(source), config)
    seconds: dict[int, list[float]] = {count: [] for count in threads}
    updates = 0
    for _ in range(repeats):
        for count in threads:
            started = time.perf_counter()
            chunks = Scorer(graph, config, count).score(0, len(graph.anchor_ids))
            updates = sum(chunk.updates for chunk in chunks)
            seconds[count].append(time.perf_counter() - started)
    return {
        "seconds": seconds,
        "updates": updates,
        "edges": len(graph.anchor_idx),
        "steps": int(walk_steps(graph).sum()),
    }


def digest(output: Path) -> str:
    """A hash of the bytes of all parts of a job's output."""
    total = hashlib.blake2b()
    for part in sorted(output.glob("part-*.parquet")):
        total.update(part.read_bytes())
    return total.hexdigest()
