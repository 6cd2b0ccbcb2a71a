"""Scoring on one machine: chunks of anchors of equal cost, handed to threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from swing import kernel
from swing.config import SwingConfig, SwingError
from swing.interactions import Graph
from swing.machine import available_cores

CHUNK_COST = 1 << 21  # steps of one chunk: some tens of milliseconds


class Neighbors(NamedTuple):
    """Neighbours of the anchors begin..end-1, one anchor after the other, best first."""

    begin: int
    end: int
    counts: np.ndarray  # i32[end - begin]
    codes: np.ndarray  # i32[sum of counts]
    scores: np.ndarray  # f32[sum of counts]
    updates: int  # what the kernel counts: pair updates, or additions to an overlap


def walk_steps(graph: Graph) -> np.ndarray:
    """Edges within two hops of each anchor, i64[anchors]: the cost of its walk."""
    degree = np.diff(graph.user_ptr)
    total = np.zeros(len(graph.anchor_idx) + 1, np.int64)
    np.cumsum(degree[graph.anchor_idx], out=total[1:])
    return np.diff(total[graph.anchor_ptr])


def split_evenly(cost: np.ndarray, begin: int, end: int, target: int) -> list[tuple[int, int]]:
    """Cut begin..end into consecutive ranges of about `target` cost each."""
    total = np.cumsum(cost[begin:end] + 1)
    pieces = max(1, int(-(-total[-1] // target)))
    cuts = begin + np.searchsorted(total, total[-1] * np.arange(1, pieces) / pieces)
    bounds = np.unique(np.concatenate([[begin], cuts, [end]]))
    return [(int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


class Scorer:
    """A graph made ready for scoring; `score` may be called for any ranges, in any order.

    Raises SwingError if one anchor's walk does not fit 31 bits.
    """

    def __init__(self, graph: Graph, config: SwingConfig, threads: int = 0):
        self.graph, self.config = graph, config
        self.threads = threads if threads > 0 else available_cores()
        self.steps = walk_steps(graph)
        steps, anchors = int(self.steps.max(initial=0)), len(graph.anchor_ids)
        if steps >= kernel.SLOTS:
            raise SwingError("an id has more than a billion edges within two hops: set max_item_users")
        self._edges = kernel.Edges(*(_read_only(getattr(graph, name)) for name in kernel.Edges._fields))
        if config.similarity == "swing":
            overlap = np.arange(int(np.diff(graph.user_ptr).max(initial=0)) + 1) + float(config.count_anchor)
            with np.errstate(divide="ignore"):  # n = 0 besides the anchor never occurs
                self._measure = 1.0 / (config.alpha + overlap)
            degree = int(np.diff(graph.anchor_ptr).max(initial=0))
            self._range, scratch = kernel.score_range, (kernel.make_scratch, anchors, steps, degree)
        else:
            measures = {"cosine": kernel.COSINE, "jaccard": kernel.JACCARD}
            self._measure = measures.get(config.similarity, kernel.PLAIN)
            self._range, scratch = kernel.overlap_range, (kernel.make_overlap_scratch, anchors, steps)
        self._make_scratch = functools.partial(*scratch)
        self._local = threading.local()

    def score(
        self, begin: int, end: int, on_chunk: Callable[[int, int], None] | None = None
    ) -> Iterator[Neighbors]:
        """Neighbours of the anchors begin..end-1 in chunks, in order.

        `on_chunk(edges, steps)` is called after each chunk. The neighbours and scores do not depend
        on threads, ranges or chunks.
        """
        chunks = split_evenly(self.steps, begin, end, CHUNK_COST)
        pool = ThreadPoolExecutor(self.threads)
        try:
            for chunk in pool.map(self._chunk, chunks):
                if on_chunk:
                    ptr = self.graph.anchor_ptr
                    on_chunk(
                        int(ptr[chunk.end] - ptr[chunk.begin]), int(self.steps[chunk.begin : chunk.end].sum())
                    )
                yield chunk
        finally:
            pool.shutdown(cancel_futures=True)

    def _chunk(self, bounds: tuple[int, int]) -> Neighbors:
        begin, end = bounds
        if not hasattr(self._local, "scratch"):
            self._local.scratch = self._make_scratch()
        k = min(self.config.top_k, len(self.graph.anchor_ids))
        room = int(np.minimum(self.steps[begin:end], k).sum())
        counts = np.empty(end - begin, np.int32)
        codes, scores = np.empty(room, np.int32), np.empty(room, np.float32)
        updates = self._range(
            begin,
            end,
            k,
            self.config.normalize,
            self._edges,
            self._measure,
            self._local.scratch,
            counts,
            codes,
            scores,
        )
        filled = int(counts.sum())
        return Neighbors(begin, end, counts, codes[:filled].copy(), scores[:filled].copy(), updates)


def _read_only(array: np.ndarray) -> np.ndarray:
    """The array as numba sees Ray's: one type for all, so that the kernel is compiled once."""
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array
