"""What list recommenders learn from: the training interactions as matrices."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import sparse

from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.models.list_loss import MIDDLE
from dlrrec_torchrec.ranking.full_ranking import Scores


@dataclasses.dataclass(frozen=True)
class Histories:
    """Training rows of all users.

    Attributes:
        liked: f32 CSR [users, items], 1 where a training row has label 1.
        graded: f32 CSR of the same shape: each rated item's value in [-0.2, 1], see `of`.
        counts: int64 [items], training rows.
        sequences: each user's training items in time; None where their order says nothing of the test rows.
    """

    liked: sparse.csr_matrix
    graded: sparse.csr_matrix
    counts: np.ndarray
    sequences: Sequences | None = None

    @staticmethod
    def of(
        rows: Rows,
        users: int,
        items: int,
        rating_range: tuple[float, float],
        sequences: Sequences | None = None,
    ) -> Histories:
        """From the rows of a split.

        The graded value rises with the rating r from 0 at two fifths of the range to 1 at its top:
        clip((r - m) / (highest - m), -0.2, 1) with m = lowest + 0.4 (highest - lowest). A rating below the
        middle says little: who rates an item has chosen it.
        """
        lowest, highest = rating_range
        middle = lowest + MIDDLE * (highest - lowest)
        grades = np.clip((rows.rating - middle) / (highest - middle), -0.2, 1).astype(np.float32)
        return Histories(
            liked_matrix(rows, users, items),
            pair_matrix(rows.user, rows.item, users, items, grades),
            np.bincount(rows.item, minlength=items),
            sequences,
        )

    @functools.cached_property
    def likes(self) -> np.ndarray:
        """How many like each item, f32 [items]."""
        return np.asarray(self.liked.sum(axis=0), np.float32).ravel()


def liked_matrix(rows: Rows, users: int, items: int) -> sparse.csr_matrix:
    """f32 CSR [users, items], 1 where a row has label 1."""
    liked = rows.label > 0
    return pair_matrix(rows.user[liked], rows.item[liked], users, items)


def pair_matrix(
    user: np.ndarray, item: np.ndarray, users: int, items: int, values: np.ndarray | None = None
) -> sparse.csr_matrix:
    """f32 CSR [users, items] of the pairs (user, item), [N] codes each; of one pair's values (default: 1)
    the largest counts."""
    values = np.ones(len(user), np.float32) if values is None else values
    order = np.lexsort((values, item, user))
    user, item, values = user[order].astype(np.int64), item[order], values[order]
    last = np.ones(len(user), bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return sparse.csr_matrix((values[last], (user[last], item[last])), (users, items), np.float32)


def popular_where_unknown(scores: Scores, histories: Histories, behind: bool = False) -> Scores:
    """`scores`, but by popularity where the recommender knows nothing.

    That is for users without a liked training row; and with `behind` also for the items with score 0, which
    then come after all items with a positive score.
    """
    known = np.diff(histories.liked.indptr) > 0
    popular = histories.likes / (histories.likes.max(initial=0) + 1)  # in [0, 1)

    def filled(users: np.ndarray) -> np.ndarray:
        block = np.array(scores(users), np.float32)
        block[~known[users]] = popular
        if behind:
            block = np.where(block > 0, block, popular - 1)
        return block

    return filled
