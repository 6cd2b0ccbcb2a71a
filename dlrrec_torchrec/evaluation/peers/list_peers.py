"""Recommenders of lists, each fitted to the training rows: popularity, neighbours, EASE, ALS, BPR.

A peer offers one or several settings; the one with the highest NDCG@20 on the validation rows is tested, as a
model's epoch is. Rows with label 1 count; a user without any gets the most popular items.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from dlrrec_torchrec.evaluation.peers.histories import Histories, popular_where_unknown
from dlrrec_torchrec.evaluation.peers.installed import not_installed
from dlrrec_torchrec.evaluation.peers.transitions import by_transitions, transitions
from dlrrec_torchrec.ranking.ease import ease, ease_refusal
from dlrrec_torchrec.ranking.full_ranking import Relevant, Scores, rank_lists
from dlrrec_torchrec.swing_stage import item_similarities

CHOSEN_BY = "ndcg@20"
_SWING_NEIGHBOURS = 200
_MOST_PAIRS = 20_000_000  # similarities that are computed before the best are kept
_QUICK_EASE = 6_000  # of the smaller side; above it a fit takes minutes, and two penalties are tried
_MOST_TUNED = 2_000_000  # liked rows above which ALS and BPR keep their first setting
_VALIDATION_USERS = 2000
NOT_ASKED = ""  # a peer that does not apply; no note says so

Candidates = Iterator[tuple[str, Scores]]  # (its settings in words, recommender); the first is the default


@dataclasses.dataclass(frozen=True)
class ListPeer:
    """A fitted recommender.

    Attributes:
        scores: int64 [n] user codes -> f32 [n, items].
        settings: what was chosen, in words; "" where there was nothing to choose.
    """

    scores: Scores
    settings: str


def list_peers(
    histories: Histories, validation: Relevant
) -> Iterator[tuple[str, Callable[[], ListPeer] | str]]:
    """Name of each peer, and a function that fits it, or why it is left out.

    Args:
        validation: what the validation rows would have a recommender find, from among what the training
            rows do not hold.
    """
    validation = validation.sample(_VALIDATION_USERS)
    for name, (candidates, refusal) in _PEERS.items():
        why = refusal(histories)
        if why == NOT_ASKED:
            continue

        def fit(candidates: Callable[[Histories], Candidates] = candidates) -> ListPeer:
            return _best(candidates(histories), validation, histories.counts)

        yield name, why or fit


def _best(candidates: Candidates, validation: Relevant, counts: np.ndarray) -> ListPeer:
    """The candidate of the highest validation NDCG@20; the first of equals, and without validation rows."""
    settings, scores = next(candidates)
    best, worth = ListPeer(scores, settings), None
    for settings, scores in candidates if len(validation.users) else ():
        if worth is None:
            worth = rank_lists(best.scores, validation, counts, (20,)).means()[CHOSEN_BY]
        other = rank_lists(scores, validation, counts, (20,)).means()[CHOSEN_BY]
        if other > worth:
            best, worth = ListPeer(scores, settings), other
    return best


def _popularity(histories: Histories) -> Candidates:
    yield "", lambda users: np.broadcast_to(histories.likes, (len(users), len(histories.likes)))


def _swing(histories: Histories) -> Candidates:
    """SWING of liked pairs, divided by (liked_i + 1)(liked_j + 1), which undoes popularity."""
    scores = _similar(histories, "swing")
    weight = sparse.diags(1 / (histories.likes + 1))
    scores = _nearest((weight @ scores @ weight).tocsr(), _SWING_NEIGHBOURS)
    yield f"{_SWING_NEIGHBOURS} neighbours", _by_neighbours(histories, scores)


def _cosine(histories: Histories) -> Candidates:
    scores = _similar(histories, "cosine")
    for neighbours in (100, 20, 50, 200):
        yield f"{neighbours} neighbours", _by_neighbours(histories, _nearest(scores, neighbours))


def _ease(histories: Histories) -> Candidates:
    return _eases(histories, histories.liked)


def _graded_ease(histories: Histories) -> Candidates:
    return _eases(histories, histories.graded)


def _eases(histories: Histories, interactions: sparse.csr_matrix) -> Candidates:
    penalties = (100, 30, 300, 1000) if min(interactions.shape) <= _QUICK_EASE else (300, 1000)
    for penalty in penalties:
        yield f"λ = {penalty}", popular_where_unknown(ease(interactions, penalty), histories)


def _transitions(histories: Histories) -> Candidates:
    """A Markov chain of the latest items, over several places."""
    for window in (10, 3) if len(histories.sequences.items) <= _MOST_TUNED else (3,):
        follows = transitions(histories.sequences, len(histories.counts), window)
        for decay in (3, 10, 1):
            scores = by_transitions(histories.sequences, follows, decay)
            yield (
                f"{window} places, decay {decay}",
                popular_where_unknown(scores, histories, behind=True),
            )


def _als(histories: Histories) -> Candidates:
    """Hu, Koren and Volinsky 2008, with implicit's conjugate gradients."""
    from implicit.als import AlternatingLeastSquares

    for penalty, alpha in ((5, 2), (1, 2), (20, 2), (5, 8), (20, 8)):
        with one_thread_of_blas():
            model = AlternatingLeastSquares(
                factors=64, regularization=penalty, alpha=alpha, iterations=15, use_gpu=False, random_state=0
            )
            scores = _factors(model, histories)
        yield f"64 factors, penalty {penalty}, α = {alpha}", scores
        if histories.liked.nnz > _MOST_TUNED:
            return


def _bpr(histories: Histories) -> Candidates:
    """Rendle et al. 2009. One thread: with several, the result would change from run to run."""
    from implicit.bpr import BayesianPersonalizedRanking

    for penalty, passes in ((0.01, 100), (0.01, 200), (0.05, 100)):
        model = BayesianPersonalizedRanking(
            factors=64,
            learning_rate=0.01,
            regularization=penalty,
            iterations=passes,
            use_gpu=False,
            num_threads=1,
            random_state=0,
        )
        yield f"64 factors, penalty {penalty}, {passes} passes", _factors(model, histories)
        if histories.liked.nnz > _MOST_TUNED:
            return


@contextlib.contextmanager
def one_thread_of_blas() -> Iterator[None]:
    """As implicit, which has threads of its own, advises in a warning."""
    with threadpool_limits(1, "blas"):
        yield


def _factors(model: object, histories: Histories) -> Scores:
    """Fit a model of implicit, and score by its factors."""
    model.fit(histories.liked, show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return popular_where_unknown(lambda chosen: users[chosen] @ items.T, histories)


def _similar(histories: Histories, similarity: str) -> sparse.csr_matrix:
    items = histories.liked.shape[1]
    most = max(_SWING_NEIGHBOURS, min(items, _MOST_PAIRS // max(items, 1)))
    pairs = histories.liked.tocoo()
    return item_similarities(pairs.row, pairs.col, items, similarity, most)


def _nearest(scores: sparse.csr_matrix, neighbours: int) -> sparse.csr_matrix:
    """The `neighbours` largest of each row; of equal ones those of the lower code."""
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    order = np.lexsort((scores.indices, -scores.data, rows))
    rank = np.arange(len(order)) - scores.indptr[rows]  # rows are in order
    kept = order[rank < neighbours]
    return sparse.csr_matrix((scores.data[kept], (rows[kept], scores.indices[kept])), scores.shape)


def _by_neighbours(histories: Histories, similar: sparse.csr_matrix) -> Scores:
    """A user's score of item j: the sum, over the liked items i that have j as neighbour, of its score."""
    liked = histories.liked
    return popular_where_unknown(lambda users: (liked[users] @ similar).toarray(), histories, behind=True)


def _none(_: Histories) -> None:
    return None


def _needs_implicit(histories: Histories) -> str | None:
    return not_installed("implicit") or (None if histories.liked.nnz else "no training row has label 1")


def _needs_order(histories: Histories) -> str | None:
    return None if histories.sequences is not None else NOT_ASKED


def _ease_fits(histories: Histories) -> str | None:
    return ease_refusal(*histories.liked.shape)


# name -> its candidates, and why it is left out (None: it is not)
_PEERS: dict[str, tuple[Callable[[Histories], Candidates], Callable[[Histories], str | None]]] = {
    "popularity": (_popularity, _none),
    "item kNN": (_cosine, _none),
    "SWING": (_swing, _none),
    "transitions": (_transitions, _needs_order),
    "EASE": (_ease, _ease_fits),
    "EASE, graded": (_graded_ease, _ease_fits),
    "ALS": (_als, _needs_implicit),
    "BPR": (_bpr, _needs_implicit),
}
