"""The order of the rows in an epoch, a function of (seed, epoch).

Shuffling permutes the chunks (row groups), joins them in that order into windows of at least WINDOW_ROWS
rows, and permutes the rows within each window: memory stays bounded, and a window is many batches wide. A
batch takes the next rows of that order and sorts them by position in the window: the content of a batch is
random, while a rank, which takes one slice of each batch, reads only one slice of the window's chunks.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import numpy as np

WINDOW_ROWS = 1 << 16  # about 160 MB with three modalities; a reader keeps at most two windows


class EpochOrder:
    """The order of the rows in one epoch.

    Args:
        sizes: rows of each chunk.
        seed, epoch: they determine the order.
        shuffle: without it, the order of the files.
        window_rows: fewest rows of a window; the last may have fewer.
    """

    def __init__(
        self, sizes: list[int], seed: int, epoch: int, shuffle: bool, window_rows: int = WINDOW_ROWS
    ) -> None:
        self._key, self._shuffle = (seed, epoch), shuffle
        chunks = (
            np.random.default_rng([seed, epoch]).permutation(len(sizes)) if shuffle else range(len(sizes))
        )
        self._chunks = np.array(chunks, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64)[self._chunks])])
        edges = [0]
        for start in self._starts[1:]:
            if start - edges[-1] >= window_rows:
                edges.append(int(start))
        if edges[-1] != self._starts[-1]:
            edges.append(int(self._starts[-1]))
        self._edges = np.array(edges)
        self._permutations: OrderedDict[int, np.ndarray] = OrderedDict()

    def places(self, low: int, high: int) -> np.ndarray:
        """The rows of the epoch's places low..high-1, i64 [high - low], ascending.

        A row is given by its position in the concatenated (permuted) chunks.
        """
        rows = [np.empty(0, np.int64)]
        first = int(np.searchsorted(self._edges, low, side="right")) - 1
        for window in range(first, len(self._edges) - 1):
            begin, end = self._edges[window], self._edges[window + 1]
            if begin >= high:
                break
            inside = slice(max(low, begin) - begin, min(high, end) - begin)
            rows.append(begin + np.sort(self._permutation(window, end - begin)[inside]))
        return np.concatenate(rows)

    def pieces(self, places: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(chunk, rows in it, i64 and ascending) for ascending `places`, as many rows in all."""
        if not len(places):
            return []
        first, last = np.searchsorted(self._starts, places[[0, -1]], side="right") - 1
        cuts = [0, *np.searchsorted(places, self._starts[first + 1 : last + 1]).tolist(), len(places)]
        return [
            (int(self._chunks[chunk]), places[a:b] - self._starts[chunk])
            for chunk, (a, b) in enumerate(pairwise(cuts), start=first)
            if a < b
        ]

    def _permutation(self, window: int, rows: int) -> np.ndarray:
        if window not in self._permutations:
            generator = np.random.default_rng([*self._key, window + 1])
            order = generator.permutation(rows) if self._shuffle else np.arange(rows)
            self._permutations[window] = order.astype(np.int32)  # sorts in half the time
            if len(self._permutations) > 2:
                self._permutations.popitem(last=False)
        return self._permutations[window]
