"""Matrix factorisation of residual ratings by alternating least squares, on the observed entries only."""

from __future__ import annotations

import numba
import numpy as np

from dlrrec_torchrec.features.review_lists import Lists

SEED = 0


def factorise(
    by_user: Lists, by_item: Lists, rank: int = 8, penalty: float = 10.0, iterations: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Factors float32 [U, rank] and [I, rank], whose products approximate the values.

    They minimise sum (r - p . q)^2 + penalty (sum |p|^2 + sum |q|^2) over the entries (Zhou et al. 2008,
    "Large-scale parallel collaborative filtering", without the weighting by counts).
    """
    items = len(by_item.offsets) - 1
    item = np.random.default_rng(SEED).standard_normal((items, rank)).astype(np.float32) * 0.3
    user = np.zeros((len(by_user.offsets) - 1, rank), np.float32)
    for _ in range(iterations):
        user = _ridge(*by_user.arrays, item, penalty)
        item = _ridge(*by_item.arrays, user, penalty)
    return user, item


@numba.njit(parallel=True, cache=True)
def _ridge(
    offsets: np.ndarray, entries: np.ndarray, values: np.ndarray, fixed: np.ndarray, penalty: float
) -> np.ndarray:
    """The factors of each row, f32 [R, D], by ridge regression on the `fixed` ones [C, D] of its entries."""
    size, rank = len(offsets) - 1, fixed.shape[1]
    solved = np.zeros((size, rank), np.float32)
    for row in numba.prange(size):
        first, last = offsets[row], offsets[row + 1]
        if first == last:
            continue
        gram = np.zeros((rank, rank))
        right = np.zeros(rank)
        for k in range(first, last):
            vector = fixed[entries[k]]
            for a in range(rank):
                right[a] += values[k] * vector[a]
                for b in range(a + 1):
                    gram[a, b] += vector[a] * vector[b]
        for a in range(rank):
            for b in range(a):
                gram[b, a] = gram[a, b]
            gram[a, a] += penalty
        solved[row] = np.linalg.solve(gram, right).astype(np.float32)
    return solved
