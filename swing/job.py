"""The job: read, score, keep the best, write Parquet with a manifest; and the same in memory.

The output folder gets its name when it is whole. Until then its parts gather in `.NAME.partial` beside it,
each written under a temporary name first, so that a killed job goes on at the first part it does not find.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from swing import interactions as tables
from swing.config import SwingConfig, SwingError
from swing.local import Neighbors, Scorer, split_evenly

FORMAT = 1  # raise when the same parameters and input would give another output
PART_COST = 1 << 30  # steps of one part file, some seconds of work
PART_IDS = 1 << 17

Progress = Callable[[dict[str, Any]], None]


def similar(
    interactions: str | Path | pl.DataFrame | pl.LazyFrame,
    config: SwingConfig | None = None,
    side: str = "items",
    *,
    user: str = "user_id",
    item: str = "item_id",
    threads: int = 0,
) -> pl.DataFrame:
    """Neighbours of every item (`side="items"`) or user (`side="users"`).

    `interactions`: a frame or a path as `swing.interactions.read` takes it, with the id columns `user` and
    `item`. `threads` 0: all cores; the result is the same for any number. Returns a row for each id in id
    order: `id`, `neighbors` list of ids, `scores` list of f32; best first, ties by id, possibly empty.

    >>> frame = pl.DataFrame({"user_id": list("aabbc"), "item_id": list("xyxyx")})
    >>> similar(frame)["neighbors"].to_list()
    [['y'], ['x']]
    """
    config = config or SwingConfig()
    graph = tables.build(tables.read(interactions, user, item), config, side)
    scorer = Scorer(graph, config, threads)
    return pl.from_arrow(_table(graph.anchor_ids, scorer.score(0, len(graph.anchor_ids))))


def run(
    source: str | Path | pl.DataFrame | pl.LazyFrame | tables.Interactions,
    output: str | Path,
    config: SwingConfig | None = None,
    side: str = "items",
    *,
    user: str = "user_id",
    item: str = "item_id",
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the neighbours of one side to the folder `output`; returns its manifest.

    `output` gets part-*.parquet (columns as of `similar`) and manifest.json. A finished job with the same
    input and parameters is not done again; one that was killed goes on with its first missing part; another
    job's output is refused unless `overwrite`. `progress` is called after each chunk of work with
    {"edges", "steps", "total_edges", "total_steps"} done since the last call and overall.
    Raises SwingError for unusable input or output.
    """
    config = config or SwingConfig()
    started = time.monotonic()
    found = source if isinstance(source, tables.Interactions) else tables.read(source, user, item)
    graph = tables.build(found, config, side)
    read_seconds = time.monotonic() - started
    fingerprint = _fingerprint(found, config, side)
    output = Path(output)
    if (done := _finished(output, fingerprint, overwrite)) is not None:
        return done
    try:
        partial = _partial_folder(output, fingerprint)
        facts = _write_parts(Scorer(graph, config, threads), partial, progress)
        scored = time.monotonic() - started - read_seconds
        manifest = {
            "fingerprint": fingerprint,
            "side": side,
            "parameters": dataclasses.asdict(config),
            "input": found.facts,
            "limits": graph.facts,
            "ids": len(graph.anchor_ids),
            **facts,
            "seconds": {"read": round(read_seconds, 3), "score_and_write": round(scored, 3)},
            "peak_memory_mib": round(_peak_memory_mib(), 1),
        }
        _write_json(partial / "manifest.json", manifest)
        (partial / "plan.json").unlink()
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except OSError as error:
        raise SwingError(f"{output}: cannot be written: {error}") from error
    return manifest


def _write_parts(scorer: Scorer, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Write every part that is not there yet. Returns counts over all parts."""
    graph = scorer.graph
    totals = {"total_edges": len(graph.anchor_idx), "total_steps": int(scorer.steps.sum())}
    updates = resumed = 0
    report = progress and (lambda edges, steps: progress({"edges": edges, "steps": steps, **totals}))
    parts = [
        (a, min(a + PART_IDS, end))
        for begin, end in split_evenly(scorer.steps, 0, len(graph.anchor_ids), PART_COST)
        for a in range(begin, end, PART_IDS)
    ]
    covered = pairs = 0
    for number, (begin, end) in enumerate(parts):
        path = folder / f"part-{number:05d}.parquet"
        if path.exists():
            counts = _list_lengths(path)
            resumed += 1
            if report:
                ptr = graph.anchor_ptr
                report(int(ptr[end] - ptr[begin]), int(scorer.steps[begin:end].sum()))
        else:
            chunks = list(scorer.score(begin, end, report))
            counts = np.concatenate([chunk.counts for chunk in chunks])
            updates += sum(chunk.updates for chunk in chunks)
            temporary = path.with_name(f".{path.name}.tmp")
            pq.write_table(_table(graph.anchor_ids, chunks), temporary, compression="zstd")
            os.replace(temporary, path)
        covered += int(np.count_nonzero(counts))
        pairs += int(counts.sum())
    return {
        "covered": covered,
        "coverage": round(covered / len(graph.anchor_ids), 6),
        "neighbors": pairs,
        "pair_updates": updates,  # of this process: those of resumed parts are not known
        "parts": len(parts),
        "parts_resumed": resumed,
    }


def _table(ids: pl.Series, chunks: Iterable[Neighbors]) -> pa.Table:
    """Consecutive chunks as an Arrow table of id, neighbors, scores."""
    chunks = list(chunks)
    counts = np.concatenate([chunk.counts for chunk in chunks])
    codes = np.concatenate([chunk.codes for chunk in chunks])
    scores = np.concatenate([chunk.scores for chunk in chunks])
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    own = ids.slice(chunks[0].begin, chunks[-1].end - chunks[0].begin).to_arrow()
    others = ids.gather(codes).to_arrow()
    kind = pa.large_string() if ids.dtype == pl.String else own.type
    return pa.table(
        {
            "id": own.cast(kind),
            "neighbors": pa.LargeListArray.from_arrays(offsets, others.cast(kind)),
            "scores": pa.LargeListArray.from_arrays(offsets, pa.array(scores)),
        }
    )


def _list_lengths(path: Path) -> np.ndarray:
    return pl.read_parquet(path, columns=["scores"])["scores"].list.len().to_numpy()


def _fingerprint(found: tables.Interactions, config: SwingConfig, side: str) -> str:
    """Names the output: equal for equal edges, ids, parameters and side."""
    total = hashlib.blake2b(digest_size=12)
    total.update(json.dumps([FORMAT, side, dataclasses.asdict(config)], sort_keys=True).encode())
    total.update(np.ascontiguousarray(found.pairs))
    for ids in (found.user_ids, found.item_ids):
        total.update(str(ids.dtype).encode())
        total.update(np.ascontiguousarray(ids.hash(seed=0).to_numpy()))
    return total.hexdigest()


def _finished(output: Path, fingerprint: str, overwrite: bool) -> dict[str, Any] | None:
    if not output.exists():
        return None
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("fingerprint") == fingerprint:
        return manifest | {"reused": True}
    if output.is_dir() and (not any(output.iterdir()) or (overwrite and manifest.get("fingerprint"))):
        return None
    what = "holds another run's output" if manifest.get("fingerprint") else "exists and is no output of swing"
    raise SwingError(f"{output}: {what}; choose another folder" + (", or overwrite it" if manifest else ""))


def _partial_folder(output: Path, fingerprint: str) -> Path:
    """The folder where the parts gather, emptied if it is another job's."""
    partial = output.parent / f".{output.name}.partial"
    plan = partial / "plan.json"
    if partial.exists() and not (
        plan.exists() and json.loads(plan.read_text())["fingerprint"] == fingerprint
    ):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    _write_json(plan, {"fingerprint": fingerprint})
    return partial


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
