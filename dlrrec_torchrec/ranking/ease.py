"""EASE: the item-item weights of least squares with a zero diagonal, in closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equations 3 and 8: with the interactions X
[users, items] and P = (X'X + λI)^-1,

    B_ij = -P_ij / P_jj,  B_jj = 0,  scores of user u = X_u B.

Because X_u P = A_u with A = (XX' + λI)^-1 X and P_jj = (1 - Σ_u X_uj A_uj) / λ (Woodbury), the scores of the
training users are also X - A / diag(P), which needs a matrix of users, not of items: the same numbers, by way
of whichever side is smaller.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse

from dlrrec_torchrec.ranking.full_ranking import Scores

LARGEST = 20_000  # of the smaller side: the matrix of it that is inverted takes 3.2 GB then
_LARGEST_DENSE = 500_000_000  # numbers of the matrix of scores or of weights that is kept, as f32


def ease_refusal(users: int, items: int) -> str | None:
    """Why EASE is left out for so many users and items; None where it can be computed."""
    smaller = min(users, items)
    if smaller > LARGEST:
        return f"its matrix of {smaller:,} x {smaller:,} is above {LARGEST:,} x {LARGEST:,}"
    if items * smaller > _LARGEST_DENSE:
        return f"its matrix of {smaller:,} x {items:,} is above {_LARGEST_DENSE:,} numbers"
    return None


def ease(interactions: sparse.csr_matrix, penalty: float) -> Scores:
    """The recommender fitted to `interactions` f32 [users, items] with λ = `penalty`."""
    users, items = interactions.shape
    return _dual(interactions, penalty) if users < items else _primal(interactions, penalty)


def _primal(interactions: sparse.csr_matrix, penalty: float) -> Scores:
    gram = (interactions.T @ interactions).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = linalg.inv(gram, overwrite_a=True, check_finite=False)
    weights = (-inverse / np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return lambda users: interactions[users] @ weights


def _dual(interactions: sparse.csr_matrix, penalty: float) -> Scores:
    gram = (interactions @ interactions.T).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    solved = linalg.solve(gram, interactions.toarray().astype(np.float64), assume_a="pos", overwrite_a=True)
    diagonal = (1 - np.asarray(interactions.multiply(solved).sum(axis=0)).ravel()) / penalty
    scaled = (solved / diagonal).astype(np.float32)
    return lambda users: interactions[users].toarray() - scaled[users]
