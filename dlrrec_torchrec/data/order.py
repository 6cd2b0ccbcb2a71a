"""The order of the rows in an epoch, decided by (seed, epoch) alone.

Shuffling permutes the chunks (row groups), joins them in that order into windows of at least WINDOW_ROWS
rows, and permutes the rows within each window: memory stays bounded, and a window is many batches wide. A
batch takes the next rows of that order, and then sorts them by their place in the window: what is in a batch
is random, while a rank, which takes one slice of each batch, reads only one slice of the window's chunks.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

WINDOW_ROWS = 1 << 16  # about 160 MB with three modalities; a reader keeps at most two windows


class EpochOrder:
    """The order of the rows in one epoch.

    Args:
        sizes: rows of each chunk.
        seed, epoch: what decides the order.
        shuffle: without it, the order of the files.
        window_rows: rows of a window, at least; the last may be shorter.
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

    def rows(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(chunk, row in it), i64 [high - low] each, of places low..high-1 of the epoch.

        Within each window that the range touches, rows stand in the order of the (permuted) chunks.
        """
        places = [np.empty(0, np.int64)]
        first = int(np.searchsorted(self._edges, low, side="right")) - 1
        for window in range(first, len(self._edges) - 1):
            begin, end = self._edges[window], self._edges[window + 1]
            if begin >= high:
                break
            inside = slice(max(low, begin) - begin, min(high, end) - begin)
            places.append(begin + np.sort(self._permutation(window, end - begin)[inside]))
        place = np.concatenate(places)
        chunk = np.searchsorted(self._starts, place, side="right") - 1
        return self._chunks[chunk], place - self._starts[chunk]

    def _permutation(self, window: int, rows: int) -> np.ndarray:
        if window not in self._permutations:
            generator = np.random.default_rng([*self._key, window + 1])
            order = generator.permutation(rows) if self._shuffle else np.arange(rows)
            self._permutations[window] = order
            if len(self._permutations) > 2:
                self._permutations.popitem(last=False)
        return self._permutations[window]
