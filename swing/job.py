"""The job: read, divide, score, write Parquet with a manifest; and the same in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from swing import output as folders
from swing.config import SwingConfig, SwingError
from swing.interactions import Graph, Interactions, ReadProgress, build, read
from swing.local import Scorer
from swing.machine import peak_memory_mib
from swing.parts import Counts, Done, Part, arrow_ids, divide, read_counts, score_parts, table, versions
from swing.tables import Filters

FORMAT = 2  # raise when the same parameters and input would give another output
ENGINES = ("local", "ray")

Progress = Callable[[dict[str, Any]], None]


def similar(
    interactions: str | Path | pl.DataFrame | pl.LazyFrame,
    config: SwingConfig | None = None,
    side: str = "items",
    *,
    user: str = "user_id",
    item: str = "item_id",
    filters: Filters | None = None,
    threads: int = 0,
) -> pl.DataFrame:
    """Neighbours of every item (`side="items"`) or user (`side="users"`).

    `interactions`: a frame or a path as `swing.read` takes it, with the id columns `user` and `item`;
    `filters`: which of its rows count. `threads` 0: all cores; the result is the same for any number. Returns
    a row for each id in id order: `id`, `neighbors` list of ids, `scores` list of f32; best first, ties by
    id, possibly empty.

    >>> frame = pl.DataFrame({"user_id": list("aabbc"), "item_id": list("xyxyx")})
    >>> similar(frame)["neighbors"].to_list()
    [['y'], ['x']]
    """
    config = config or SwingConfig()
    graph = build(read(interactions, user, item, filters), config, side)
    scorer = Scorer(graph, config, threads)
    return pl.from_arrow(table(arrow_ids(graph.anchor_ids), scorer.score(0, len(graph.anchor_ids))))


def run(
    source: str | Path | pl.DataFrame | pl.LazyFrame | Interactions,
    output: str | Path,
    config: SwingConfig | None = None,
    side: str = "items",
    *,
    user: str = "user_id",
    item: str = "item_id",
    filters: Filters | None = None,
    threads: int = 0,
    engine: str = "local",
    address: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    reading: ReadProgress | None = None,
) -> dict[str, Any]:
    """Write the neighbours of one side to the folder `output`; returns its manifest.

    `output` gets part-*.parquet (columns as of `similar`), degrees.arrow (`id`, and `degree` i32: the edges
    that the limits left it) and manifest.json. A finished job with the same input and parameters is not done
    again; one that was killed continues with the missing parts; another job's output is refused unless
    `overwrite`.

    `engine` "local" scores on this machine with `threads` threads (0: all cores). "ray" scores on the Ray
    cluster at `address`, or at RAY_ADDRESS, or on one started here for this job; each of its tasks has
    `threads` threads (0: one), and `output` must be on storage that all its machines share. The files are
    byte for byte the same, so one engine can continue where the other stopped.

    `progress` is called after each piece of work with {"edges", "steps", "resumed", "total_edges",
    "total_steps"}: the work since the last call, whether an earlier attempt did it, and the whole work.
    `reading` is called while the table is read, as `swing.read` calls its `progress`.
    Raises SwingError for unusable input or output, and where the cluster cannot do the job.
    """
    config, output = config or SwingConfig(), Path(output).resolve()
    score = _engine(engine, address)
    if isinstance(source, Interactions) and filters is not None:
        raise SwingError("filters apply while a table is read: give them to swing.read")
    parts: list[Part] = []
    try:
        with folders.claimed(output) as warnings:
            before = folders.manifest_of(output, overwrite)
            times = [time.monotonic()]
            in_memory = isinstance(source, Interactions)
            interactions = source if in_memory else read(source, user, item, filters, reading)
            times.append(time.monotonic())
            fingerprint = _fingerprint(interactions, config, side)
            if before and before["fingerprint"] == fingerprint:
                return before | {"reused": True}
            if before and not overwrite:
                raise SwingError(
                    f"{output}: holds another run's output; choose another folder, or overwrite it"
                )
            graph = build(interactions, config, side)
            facts, warnings = interactions.facts, [*interactions.warnings, *warnings]
            del interactions  # a third of the memory, unless the caller holds it
            scorer = Scorer(graph, config, threads or (1 if engine == "ray" else 0))
            parts = divide(scorer)
            folder = folders.begin(output, fingerprint, overwrite)
            times.append(time.monotonic())
            report = _reporter(progress, parts)
            resumed = _resumed(folder, parts, fingerprint, report)
            missing = [part for part in parts if part not in resumed]
            written = list(score(scorer, missing, folder, fingerprint, report))
            _write_degrees(graph, folder)
            times.append(time.monotonic())
            manifest = {
                "fingerprint": fingerprint,
                "side": side,
                "parameters": dataclasses.asdict(config),
                "filters": filters and dataclasses.asdict(filters),
                "input": facts,
                "limits": graph.facts,
                "warnings": warnings,
                "ids": len(graph.anchor_ids),
                **_totals([*resumed.values(), *(result.counts for result in written)], len(graph.anchor_ids)),
                "parts": len(parts),
                "parts_resumed": len(resumed),
                "engine": engine,
                "threads": scorer.threads,
                **_effort(written, times),
                "versions": versions(),
            }
            folders.finish(output, manifest)
    except OSError as error:
        raise folders.explained(error, output, parts) from error
    return manifest


def _engine(name: str, address: str | None) -> Callable:
    """The engine's `score_parts`."""
    if name not in ENGINES:
        raise SwingError(f"unknown engine '{name}' (known: {', '.join(ENGINES)})")
    if name == "local":
        if address:
            raise SwingError("an address is that of a Ray cluster: use it with the engine ray")
        return score_parts
    try:
        from swing import cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SwingError("the engine ray needs Ray: pip install 'dlrrec-torchrec[ray]'") from None
    cluster.check_address(address)
    return functools.partial(cluster.score_parts, address=address)


def _fingerprint(interactions: Interactions, config: SwingConfig, side: str) -> str:
    """A hash of the output: equal for equal edges, ids, parameters and side."""
    content = [FORMAT, side, dataclasses.asdict(config), interactions.digest()]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def _reporter(progress: Progress | None, parts: Sequence[Part]) -> Callable[..., None]:
    totals = {
        "total_edges": sum(part.edges for part in parts),
        "total_steps": sum(part.steps for part in parts),
    }

    def report(edges: int, steps: int, resumed: bool = False) -> None:
        if progress:
            progress({"edges": edges, "steps": steps, "resumed": resumed, **totals})

    return report


def _resumed(
    folder: Path, parts: Sequence[Part], fingerprint: str, report: Callable[..., None]
) -> dict[Part, Counts]:
    """The counts of the parts that an earlier attempt completed."""
    resumed, present = {}, {path.name for path in folder.iterdir()}
    for part in parts:
        if part.name in present and (counts := read_counts(folder / part.name, part, fingerprint)):
            resumed[part] = counts
            report(part.edges, part.steps, resumed=True)
    return resumed


def _totals(counts: Sequence[Counts], ids: int) -> dict[str, Any]:
    covered, neighbors, updates, size = (sum(column) for column in zip(*counts, strict=True))
    return {
        "covered": covered,
        "coverage": round(covered / ids, 6),
        "neighbors": neighbors,
        "pair_updates": updates,
        "bytes": size,
    }


def _effort(written: Sequence[Done], times: Sequence[float]) -> dict[str, Any]:
    """Time and memory of this attempt, without the parts of an earlier one."""
    read_for, build_for, score_for = (round(b - a, 3) for a, b in zip(times[:-1], times[1:], strict=True))
    edges = sum(result.part.edges for result in written)
    return {
        "seconds": {"read": read_for, "build": build_for, "score_and_write": score_for},
        "edges_per_second": round(edges / max(score_for, 1e-3)),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "workers": {
            "processes": len({result.worker for result in written}),
            "seconds": round(sum(result.seconds for result in written), 3),
            "peak_memory_mib": round(max((result.peak_memory_mib for result in written), default=0.0), 1),
            "parts_redone": sum(result.attempts - 1 for result in written),
        },
    }


def _write_degrees(graph: Graph, folder: Path) -> None:
    rows = pa.table({"id": arrow_ids(graph.anchor_ids), "degree": graph.anchor_size})
    with pa.OSFile(str(folder / "degrees.arrow"), "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
        out.write_table(rows, max_chunksize=1 << 20)
