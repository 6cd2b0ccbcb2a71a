"""What comes next: how often one item follows another in the training sequences."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from dlrrec_torchrec.data.sequences import Sequences, ragged
from dlrrec_torchrec.ranking.full_ranking import Scores

_PRIOR = 10.0  # transitions that an item has to no other one, so that rare items say little
_LATEST = 30  # items of a user that count


def transitions(sequences: Sequences, items: int, window: int) -> sparse.csr_matrix:
    """f32 CSR [items, items]: how often j comes at most `window` places after i in a user's sequence, each
    pair weighted by 1 / (places between them), over all of i's and _PRIOR."""
    owner = np.repeat(np.arange(len(sequences.offsets) - 1), np.diff(sequences.offsets))
    counts = sparse.csr_matrix((items, items), dtype=np.float64)
    for step in range(1, window + 1):
        same = owner[step:] == owner[:-step]
        pair = sequences.items[:-step][same], sequences.items[step:][same]
        counts += sparse.csr_matrix((np.full(same.sum(), 1 / step), pair), (items, items))
    share = sparse.diags(1 / (np.asarray(counts.sum(1)).ravel() + _PRIOR))
    return (share @ counts).astype(np.float32).tocsr()


def by_transitions(sequences: Sequences, follows: sparse.csr_matrix, decay: float) -> Scores:
    """A user's score of item j: the sum of `follows`[i, j] over her latest items i, times
    exp(-k / decay) for the one k places from the end."""

    def scores(users: np.ndarray) -> np.ndarray:
        users = np.asarray(users, np.int64)
        rows, latest = sequences.latest(users, _LATEST)
        number = np.minimum(sequences.number(users), _LATEST)
        back = number[rows] - 1 - ragged(number)[1]
        weights = np.exp(-back / decay).astype(np.float32)
        shape = len(users), follows.shape[0]
        return (sparse.csr_matrix((weights, (rows, latest)), shape) @ follows).toarray()

    return scores
