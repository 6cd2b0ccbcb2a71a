"""Truncated singular value decompositions, seeded."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse

SEED = 0
SAMPLE = 8192  # vectors that a basis is fitted on


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, D] rows at length 1; zeros stay zeros."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors, np.float32), where=norm > 0)


def leading_directions(matrix: np.ndarray | sparse.csr_matrix, rank: int) -> np.ndarray:
    """The right singular vectors of the largest singular values, float32 [C, rank] of [R, C].

    Fewer columns where the matrix has fewer rows or columns. Randomised (Halko, Martinsson and Tropp 2011).
    """
    from sklearn.utils.extmath import randomized_svd

    rank = min(rank, *matrix.shape)
    if rank < 1:
        return np.zeros((matrix.shape[1], 0), np.float32)
    return randomized_svd(matrix, rank, n_iter=4, random_state=SEED)[2].T.astype(np.float32)


def basis(vectors: np.ndarray, rank: int) -> np.ndarray:
    """`leading_directions` of a sample of the vectors that are not zero."""
    present = np.flatnonzero(vectors.any(axis=1))
    if len(present) > SAMPLE:
        present = np.sort(np.random.default_rng(SEED).choice(present, SAMPLE, replace=False))
    return leading_directions(np.asarray(vectors[present], np.float32), rank)


def centred(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float32 [N, D] rows minus `mean`, at length 1; rows of zeros, which are missing, stay zeros."""
    present = vectors.any(axis=1, keepdims=True)
    return unit((vectors - mean) * present)


def normalised_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The rows at length 1."""
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    return (sparse.diags(scale) @ matrix).tocsr()


def steady_turn(directions: np.ndarray) -> np.ndarray:
    """How to turn orthonormal directions float32 [C, K] within their space so that like spaces get like ones:
    float32 [K, K], to be multiplied from the right with them, or with numbers along them.

    Singular vectors of two samples differ in sign, order and turn even where their spaces agree, so numbers
    along them mean different things. Turned, they are the ones nearest to K fixed random directions (the
    orthogonal Procrustes problem, Schönemann 1966), which follow from the space alone.
    """
    fixed = np.random.default_rng(SEED).standard_normal(directions.shape)
    left, _, right = np.linalg.svd(directions.T @ fixed)
    return (left @ right).astype(np.float32)
