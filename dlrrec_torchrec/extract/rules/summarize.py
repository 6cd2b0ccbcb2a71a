"""Extractive summaries: sentences near the centre of the reviews, and different from each other."""

from __future__ import annotations

import numpy as np

RELEVANCE = 0.7  # lambda of MMR
CANDIDATES = 256  # the most central sentences among which MMR chooses: bounds the cost of a popular entity


def mmr(vectors: np.ndarray, relevance: np.ndarray, k: int, trade_off: float = RELEVANCE) -> list[int]:
    """Up to k rows by maximal marginal relevance (Carbonell and Goldstein, 1998), best first.

    Each pick maximises trade_off * relevance - (1 - trade_off) * (largest cosine to a row picked before); of
    equal ones, the first row.

    Args:
        vectors: f32 [N, D] unit rows.
        relevance: f32 [N].
    """
    picked: list[int] = []
    nearest = np.zeros(len(vectors), np.float32)
    open_rows = np.ones(len(vectors), bool)
    for _ in range(min(k, len(vectors))):
        score = trade_off * relevance - (1 - trade_off) * nearest
        best = int(np.argmax(np.where(open_rows, score, -np.inf)))
        open_rows[best] = False
        similar = vectors @ vectors[best]
        nearest = np.maximum(nearest, similar) if picked else similar
        picked.append(best)
    return picked


def summary_pieces(pieces: np.ndarray, vectors: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """The distinct pieces, i64 [<= k], that sum up `pieces`, best first.

    Args:
        pieces: i64 [M] positions in `vectors`, repeated as often as they occur.
        vectors: f16 [P, D] unit rows of all pieces.
        weights: f32 [P] in (0, 1]: how informative a piece can be; its relevance is multiplied by it.
        k: most sentences.
    """
    distinct, first, counts = np.unique(pieces, return_index=True, return_counts=True)
    order = np.argsort(first)  # in the order of the texts
    distinct, counts = distinct[order], counts[order]
    rows = vectors[distinct].astype(np.float32)
    centre = counts.astype(np.float32) @ rows
    centre /= max(float(np.linalg.norm(centre)), 1e-12)
    relevance = rows @ centre * weights[distinct]
    if len(distinct) > CANDIDATES:
        central = np.sort(np.argsort(-relevance, kind="stable")[:CANDIDATES])
        distinct, rows, relevance = distinct[central], rows[central], relevance[central]
    return distinct[mmr(rows, relevance, k)]
