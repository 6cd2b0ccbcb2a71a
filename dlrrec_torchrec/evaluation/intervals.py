"""Paired bootstrap over users: whether one model is better than another, or the difference may be chance.

Users are drawn with replacement, as many as there are, with everything that belongs to them: rows of one user
are not independent, so the user is the unit (a cluster bootstrap: Field and Welsh 2007). Both models are
measured on the same draws. The interval is that of percentiles (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dlrrec_torchrec.features.machine_code import machine_code

DRAWS = 1000
Gap = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Interval:
    """The difference of two models in one metric, and its 95 % interval; NaN where it is undefined."""

    difference: float  # on the test users themselves
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval excludes zero, else "level"."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "level"


def mean_difference(
    first: np.ndarray, second: np.ndarray, draws: int = DRAWS, seed: int = 0, share: float = 0.95
) -> Interval:
    """Mean of `first` less mean of `second`, both a metric of the same n users, [n]."""
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if not len(gaps):
        return Interval(np.nan, np.nan, np.nan)
    drawn = _over_draws(lambda times: float(times @ gaps) / len(gaps), len(gaps), draws, seed)
    return _interval(float(gaps.mean()), drawn, share)


def auc_difference(
    label: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    user: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    share: float = 0.95,
) -> Interval:
    """AUC of the scores `first` less that of `second` over N rows; draws of one label only do not count.

    A draw counts every row as often as its user was drawn. The rows are sorted once: the AUC of a draw is
    one pass over them.

    Args:
        label: [N] of 0 and 1. first, second: floats [N]. user: [N] codes or strings of the rows' users.
    """
    names, codes = np.unique(user, return_inverse=True)
    return _over_users(auc_gap(label, first, second, codes), len(names), draws, seed, share)


def mixture_difference(
    label: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    user: np.ndarray,
    list_user: np.ndarray,
    first_lists: np.ndarray,
    second_lists: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    share: float = 0.95,
) -> Interval:
    """AUC plus the mean of a metric of lists, of `first` less of `second`, on the same draws of users.

    A draw without one of the labels, or without a user of lists, does not count. What the rows themselves do
    not define (an AUC of one label, lists of nobody) is left out of the sum.

    Args:
        label, first, second, user: as in `auc_difference`.
        list_user: [n] users with a list, as `user`; first_lists, second_lists: the metric of each, [n].
    """
    names, codes = np.unique(np.concatenate([user, list_user]), return_inverse=True)
    of_row, of_list = codes[: len(user)], codes[len(user) :]
    of_ratings = auc_gap(label, first, second, of_row)
    gaps = np.asarray(first_lists, np.float64) - np.asarray(second_lists, np.float64)
    both = len(np.unique(np.asarray(label) > 0)) == 2

    def difference(times: np.ndarray) -> float:
        total = of_ratings(times) if both else 0.0
        if len(gaps):
            drawn = times[of_list]
            total += float(drawn @ gaps) / drawn.sum() if drawn.any() else np.nan
        return total

    return _over_users(difference, len(names), draws, seed, share)


def pooled_difference(
    gaps: Sequence[Gap], users: int, draws: int = DRAWS, seed: int = 0, share: float = 0.95
) -> Interval:
    """The mean difference of several repeats, and its interval over draws of users.

    A user is drawn for all repeats at once, with all that belongs to her in each, because repeats on one data
    set share most of their users: their number does not make the interval narrower as new users would.

    Args:
        gaps: of each repeat (`auc_gap`, `ratio_gap`), with one code for a user in all of them.
        users: how many codes there are.
    """
    return _over_users(lambda times: float(np.mean([gap(times) for gap in gaps])), users, draws, seed, share)


def ratio_gap(
    first: np.ndarray, second: np.ndarray, counted: np.ndarray, user: np.ndarray, users: int
) -> Gap:
    """How often each user was drawn, int64 [users] -> mean of `first` less that of `second` over rows that
    count; NaN where none is drawn.

    Args:
        first, second: [N] values of rows, as whether a prediction is right.
        counted: bool [N]. user: int64 [N] codes below `users`.
    """
    gaps = (np.asarray(first, np.float64) - np.asarray(second, np.float64)) * counted
    above, below = np.bincount(user, gaps, users), np.bincount(user, counted, users)

    def gap(times: np.ndarray) -> float:
        rows = float(times @ below)
        return float(times @ above) / rows if rows else np.nan

    return gap


def auc_gap(label: np.ndarray, first: np.ndarray, second: np.ndarray, user: np.ndarray) -> Gap:
    """How often each user was drawn, int64 [users] -> the AUC of `first` less that of `second`."""
    ordered = [_ordered(label, score, user) for score in (first, second)]

    def gap(times: np.ndarray) -> float:
        one, other = (_weighted_auc(*rows, times) for rows in ordered)
        return one - other

    return gap


def _over_users(
    difference: Callable[[np.ndarray], float], users: int, draws: int, seed: int, share: float
) -> Interval:
    """The difference of the users themselves, and its interval over draws of them."""
    drawn = _over_draws(difference, users, draws, seed)
    return _interval(difference(np.ones(users, np.int64)), drawn, share)


def _over_draws(
    statistic: Callable[[np.ndarray], float], users: int, draws: int, seed: int
) -> Sequence[float]:
    """`statistic` of each draw: it gets how often each user was drawn, int64 [users]. Draw d depends on
    (seed, d) alone, so it is the same for any number of threads and for every pair of models."""

    def one(draw: int) -> float:
        chosen = np.random.default_rng((seed, draw)).integers(0, users, users)
        return statistic(np.bincount(chosen, minlength=users))

    if not users:
        return []
    workers = os.cpu_count() or 1
    parts = np.array_split(np.arange(draws), workers)
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda part: [one(int(draw)) for draw in part], parts)
        return [value for part in done for value in part]


def _interval(difference: float, drawn: Sequence[float], share: float) -> Interval:
    values = np.asarray(drawn, np.float64)
    values = values[np.isfinite(values)]
    if not len(values) or not np.isfinite(difference):
        return Interval(difference, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return Interval(difference, float(low), float(high))


def _ordered(
    label: np.ndarray, score: np.ndarray, user: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (bool), user codes, and whether a row's score is that of the row before; by rising score."""
    order = np.argsort(score, kind="stable")
    ordered = np.asarray(score, np.float64)[order]
    tied = np.zeros(len(ordered), bool)
    tied[1:] = ordered[1:] == ordered[:-1]
    return np.asarray(label)[order] > 0, user[order].astype(np.int64), tied


@machine_code
def _weighted_auc(positive, user, tied, times):
    """The AUC of sorted rows that count `times[user]` each, ties counted half; NaN with one label only."""
    below, negatives, positives, pairs = 0.0, 0.0, 0.0, 0.0  # below: negatives of lower score
    for row in range(len(positive)):
        if not tied[row]:
            below = negatives
            group_negatives, group_positives = 0.0, 0.0
        weight = times[user[row]]
        if positive[row]:
            positives += weight
            group_positives += weight
            pairs += weight * (below + 0.5 * group_negatives)
        else:
            negatives += weight
            group_negatives += weight
            pairs += 0.5 * weight * group_positives
    if positives == 0 or negatives == 0:
        return np.nan
    return pairs / (positives * negatives)
