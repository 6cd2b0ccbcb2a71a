"""A second stage of lists: to a model's scores a share of what EASE says of the same training rows.

EASE solves in closed form which items go with which; a trained head finds much of it, and something else
besides, so that both together rank better than either. Its scores of held-out rows are out of sample, as it
is fitted to training rows alone: on these the share is chosen (Wolpert 1992, "Stacked generalization").
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from dlrrec_torchrec.ranking.ease import ease
from dlrrec_torchrec.ranking.full_ranking import Scores

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # of EASE, that validation chooses from
_PENALTY = 300.0
_LARGEST = 4_000  # of the smaller side: fitted in seconds, so it is fitted where it is used and never stored
_LARGEST_DENSE = 100_000_000  # numbers of the matrix that is kept, as f32


def left_out(users: int, items: int) -> str | None:
    """Why there is no second stage for so many users and items; None where there is one."""
    smaller = min(users, items)
    if smaller <= _LARGEST and smaller * items <= _LARGEST_DENSE:
        return None
    return (
        f"no EASE is added to the lists: with {users:,} users and {items:,} items it cannot be fitted in "
        f"seconds where lists are made (up to {_LARGEST:,} of one of them, and {_LARGEST_DENSE:,} numbers)"
    )


def fit(liked: sparse.csr_matrix) -> Scores:
    """EASE of the liked training pairs: CSR [users, items], of which the non-zeros count."""
    pairs = sparse.csr_matrix(liked, dtype=np.float32, copy=True)
    pairs.data[:] = 1.0
    return ease(pairs, _PENALTY)


def added(scores: np.ndarray, other: np.ndarray, seen: np.ndarray, share: float) -> np.ndarray:
    """f32 [n, items]: `scores` + `share` · d · z, with z the user's `other` scores standardised over the
    unseen items, and d the standard deviation of `scores` over them.

    So a share means the same for every user and model. Where a user's `other` scores are all equal (EASE of
    somebody without a liked row), nothing is added.

    Args:
        scores, other: f32 [n, items].
        seen: bool [n, items].
    """
    unseen = ~seen
    mean, deviation = _moments(other, unseen)
    _, spread = _moments(scores, unseen)
    factor = np.divide(share * spread, deviation, out=np.zeros_like(spread), where=deviation > 0)
    return (scores + factor * (other - mean)).astype(np.float32, copy=False)


def _moments(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each row's chosen values, f32 [n, 1] each; 0 of none."""
    count = np.maximum(chosen.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True, where=chosen) / count
    square = np.square(values - mean).sum(axis=1, keepdims=True, where=chosen) / count
    return mean, np.sqrt(square)
