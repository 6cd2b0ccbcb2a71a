import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.evaluation.intervals import Interval, auc_difference, mean_difference, mixture_difference
from dlrrec_torchrec.metrics import roc_auc


def rows(seed, users=12, count=90, levels=8):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    first, second = (np.round(rng.random(count) * levels + weight * label) for weight in (2, 1))
    return label, first, second, rng.integers(0, users, count)


def drawn_users(seed, users, draws):
    """How the module draws, written down once more: draw d of `users` users."""
    return [np.random.default_rng((seed, d)).integers(0, users, users) for d in range(draws)]


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_auc_interval_is_that_of_rows_copied_out(seed):
    """The oracle copies each drawn user's rows and computes two plain AUCs."""
    label, first, second, user = rows(seed)
    names = np.unique(user)
    gaps = []
    for chosen in drawn_users(seed, len(names), 40):
        copied = np.concatenate([np.flatnonzero(user == names[c]) for c in chosen])
        gaps.append(roc_auc(label[copied], first[copied]) - roc_auc(label[copied], second[copied]))
    gaps = np.array(gaps)[np.isfinite(gaps)]
    found = auc_difference(label, first, second, user, draws=40, seed=seed)
    assert found.difference == pytest.approx(roc_auc(label, first) - roc_auc(label, second))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_mean_interval_is_that_of_users_copied_out(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(30), rng.random(30)
    gaps = [first[chosen].mean() - second[chosen].mean() for chosen in drawn_users(seed, 30, 50)]
    found = mean_difference(first, second, draws=50, seed=seed)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))


def test_the_interval_covers_what_it_says():
    """Of 200 pairs of equally good models, about 5 % must seem different; users' rows are correlated."""
    rng, wrong = np.random.default_rng(0), 0
    for trial in range(200):
        gap = rng.normal(size=60)
        wrong += mean_difference(gap, np.zeros(60), draws=200, seed=trial).verdict != "level"
    assert 2 <= wrong <= 24  # binomial(200, .05), and a little for the percentile method with 60 users


def test_users_not_rows_are_drawn():
    """Ten copies of every row of a user add nothing: the interval of clusters stays as it is."""
    label, first, second, user = rows(1)
    once = auc_difference(label, first, second, user, draws=100)
    ten = auc_difference(*(np.repeat(x, 10) for x in (label, first, second, user)), draws=100)
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))


def test_verdicts_and_undefined_differences():
    assert Interval(0.1, 0.01, 0.2).verdict == "better"
    assert Interval(-0.1, -0.2, -0.01).verdict == "worse"
    assert Interval(0.1, -0.01, 0.2).verdict == "level"
    ones = np.ones(5)
    assert np.isnan(auc_difference(ones, ones, ones, np.arange(5)).low)
    assert np.isnan(mean_difference(np.zeros(0), np.zeros(0)).difference)
    assert auc_difference(ones, ones, ones, np.arange(5)).verdict == "level"


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_mixture_interval_is_that_of_users_copied_out(seed):
    """Rows of some users and lists of others, on the same draws of all of them."""
    label, first, second, user = rows(seed)
    rng = np.random.default_rng(seed)
    list_user = rng.choice(16, 9, replace=False)  # some have no rows
    lists = rng.random((2, 9))
    names, gaps = np.unique(np.concatenate([user, list_user])), []
    for chosen in drawn_users(seed, len(names), 40):
        copied = np.concatenate([np.flatnonzero(user == names[c]) for c in chosen])
        listed = np.concatenate([np.flatnonzero(list_user == names[c]) for c in chosen])
        with np.errstate(invalid="ignore"):
            mean = (lists[0] - lists[1])[listed].sum() / len(listed) if len(listed) else np.nan
        gaps.append(roc_auc(label[copied], first[copied]) - roc_auc(label[copied], second[copied]) + mean)
    gaps = np.array(gaps)[np.isfinite(gaps)]
    found = mixture_difference(label, first, second, user, list_user, *lists, draws=40, seed=seed)
    whole = roc_auc(label, first) - roc_auc(label, second) + (lists[0] - lists[1]).mean()
    assert found.difference == pytest.approx(whole)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.025, 0.975])))
    alone = auc_difference(label, first, second, user, draws=40, seed=seed)
    none = np.zeros(0)
    without = mixture_difference(label, first, second, user, none, none, none, draws=40, seed=seed)
    assert (without.low, without.high) == pytest.approx((alone.low, alone.high))
