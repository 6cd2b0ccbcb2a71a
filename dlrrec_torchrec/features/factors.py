"""Matrix factorisation of residual ratings by alternating least squares, on the observed entries only."""

from __future__ import annotations

import numpy as np

from dlrrec_torchrec.features.machine_code import in_parallel, machine_code
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


def _ridge(
    offsets: np.ndarray, entries: np.ndarray, values: np.ndarray, fixed: np.ndarray, penalty: float
) -> np.ndarray:
    """The factors of each row, f32 [R, D], by ridge regression on the `fixed` ones [C, D] of its entries."""
    solved = np.zeros((len(offsets) - 1, fixed.shape[1]), np.float32)
    in_parallel(_solve, len(solved), offsets, entries, values, fixed, penalty, solved)
    return solved


@machine_code
def _solve(start, stop, offsets, entries, values, fixed, penalty, solved):
    rank = fixed.shape[1]
    gram = np.zeros((rank, rank))
    right = np.zeros(rank)
    for row in range(start, stop):
        first, last = offsets[row], offsets[row + 1]
        if first == last:
            continue
        gram[:] = 0.0
        right[:] = 0.0
        for k in range(first, last):
            vector = fixed[entries[k]]
            for a in range(rank):
                right[a] += values[k] * vector[a]
                for b in range(a + 1):
                    gram[a, b] += vector[a] * vector[b]
        for a in range(rank):  # Cholesky in place, then forward and back substitution
            gram[a, a] += penalty
            for b in range(a + 1):
                total = gram[a, b]
                for c in range(b):
                    total -= gram[a, c] * gram[b, c]
                gram[a, b] = np.sqrt(total) if a == b else total / gram[b, b]
        for a in range(rank):
            for c in range(a):
                right[a] -= gram[a, c] * right[c]
            right[a] /= gram[a, a]
        for a in range(rank - 1, -1, -1):
            for c in range(a + 1, rank):
                right[a] -= gram[c, a] * right[c]
            right[a] /= gram[a, a]
            solved[row, a] = right[a]
