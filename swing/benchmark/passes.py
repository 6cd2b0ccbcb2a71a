"""How the time of a job divides into passes, in one thread; and the limit set by the machine's memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import swing
from swing import interactions, kernel
from swing.benchmark.measure import tiny_scorer
from swing.compiled import compiled
from swing.local import Scorer
from swing.tables import scan


@compiled
def _walk_only(edges, scratch):
    """Step 1 of the kernel for every anchor. Returns the hits."""
    total = 0
    for anchor in range(edges.anchor_ptr.size - 1):
        hits, _ = kernel._walk(anchor, edges, scratch)
        total += hits
    return total


@compiled
def _walk_and_pair(edges, inverse, scratch):
    """Steps 1 and 2, without keeping neighbours. Returns the pair updates."""
    updates = 0
    for anchor in range(edges.anchor_ptr.size - 1):
        hits, slots = kernel._walk(anchor, edges, scratch)
        row = edges.anchor_ptr[anchor]
        for a in range(edges.anchor_ptr[anchor + 1] - row):
            scratch.weight[a] = edges.user_weight[edges.anchor_idx[row + a]]
        scratch.score[:slots] = 0.0
        updates += kernel._score(hits, inverse, scratch)
    return updates


@compiled
def _touch(edges, last):
    """The memory that a walk must touch, and nothing else: each edge within two hops, and its item's mark."""
    for edge in range(edges.anchor_idx.size):
        kernel._fetch_ahead(edge, edges)
        user = edges.anchor_idx[edge]
        for step in range(edges.user_ptr[user], edges.user_ptr[user + 1]):
            last[edges.user_idx[step]] = edge


def _kernels(scorer: Scorer) -> dict[str, tuple[Any, ...]]:
    """The passes of scoring, and their arguments for the scorer's graph."""
    edges, inverse, scratch = scorer._edges, scorer._measure, scorer._make_scratch()
    last = np.zeros(edges.anchor_ptr.size - 1, np.int32)
    return {
        "touch": (_touch, edges, last),
        "walk": (_walk_only, edges, scratch),
        "pair": (_walk_and_pair, edges, inverse, scratch),
    }


def shares(source: Path, output: Path) -> dict[str, Any]:
    """Seconds and share of each pass over the graph of `source`, and the rate of each in its own unit.

    The passes of the kernel are separated by running it up to each of them. Writing is what the whole job
    takes more than the others; it overlaps with scoring.
    """
    config = swing.SwingConfig()
    list(tiny_scorer(config).score(0, 2))
    clock: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        clock[name] = time.perf_counter() - started
        return result

    rows = timed("scan", lambda: sum(map(len, scan(source).select("user_id", "item_id").collect_batches())))
    read = timed("read", swing.read, source)
    graph = timed("build", interactions.build, read, config)
    scorer = timed("ready", Scorer, graph, config, 1)
    steps = int(scorer.steps.sum())
    for function, *arguments in _kernels(tiny_scorer(config)).values():
        function(*arguments)  # compiles
    results = {}
    for _ in range(2):  # the better of two, alternating
        for name, call in _kernels(scorer).items():
            before = clock.get(name, float("inf"))
            results[name] = timed(name, *call)
            clock[name] = min(clock[name], before)
    chunks = timed("score", lambda: list(scorer.score(0, len(graph.anchor_ids))))
    neighbors = sum(len(chunk.codes) for chunk in chunks)
    del chunks
    timed("job", lambda: swing.run(read, output, config, threads=1, overwrite=True))
    updates = results["pair"]
    passes = {
        "scan the file": (clock["scan"], rows, "rows"),
        "number ids, sort": (clock["read"] - clock["scan"], rows, "rows"),
        "limits, both layouts": (clock["build"] + clock["ready"], rows, "edges"),
        "walk": (clock["walk"], steps, "steps"),
        "pair": (clock["pair"] - clock["walk"], updates, "pair updates"),
        "keep the best": (clock["score"] - clock["pair"], neighbors, "kept"),
        "write, not hidden": (
            clock["job"] - clock["build"] - clock["ready"] - clock["score"],
            neighbors,
            "kept",
        ),
    }
    total = sum(max(0.0, seconds) for seconds, _, _ in passes.values())
    return {
        "edges": rows,
        "passes": {
            name: {
                "seconds": max(0.0, seconds),
                "share": max(0.0, seconds) / total,
                "of": f"{count:,} {unit}",
                "rate": f"{count / seconds / 1e6:,.1f} M/s" if seconds > 0.01 else "",
            }
            for name, (seconds, count, unit) in passes.items()
        },
        "touch_seconds": clock["touch"],
        "limit": f"Only touching the memory that the walk touches takes {clock['touch']:.2f} s, "
        f"{clock['touch'] / clock['walk']:.0%} of its time.",
    }
