import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dlrrec_torchrec import metrics
from dlrrec_torchrec.store.manifest import jsonable


@st.composite
def scored(draw, min_rows=1, both_labels=False):
    """Labels, probabilities on a grid of random fineness (so with ties) and users."""
    n = draw(st.integers(max(min_rows, 2 if both_labels else 0), 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1, 3, 10, 10**9]))
    label = (rng.random(n) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(np.float32)
    if both_labels:
        label[:2] = [0, 1]
    return label, np.round(rng.random(n) * steps) / steps, rng.integers(0, max(n // 3, 1), n)


@given(scored(both_labels=True))
def test_against_sklearn(rows):
    label, p, user = rows
    computed = metrics.binary_metrics(label, p, user)
    predicted = p >= 0.5
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    tn, fp, fn, tp = sk.confusion_matrix(label, predicted).ravel()
    assert (computed["tn"], computed["fp"], computed["fn"], computed["tp"]) == (tn, fp, fn, tp)
    base = np.full(len(label), label.mean(dtype=np.float64))
    expected = {
        "accuracy": sk.accuracy_score(label, predicted),
        "fpr": fp / (fp + tn),
        "loss": sk.log_loss(label, clipped),
        "auc": sk.roc_auc_score(label, p),
        "auprc": sk.average_precision_score(label, p),
        "ne": sk.log_loss(label, clipped) / sk.log_loss(label, base),
        "calibration": p.sum() / label.sum(),
    }
    for name, value in expected.items():
        assert computed[name] == pytest.approx(value, rel=1e-9), name


@given(scored())
def test_user_auc_by_brute_force(rows):
    label, score, user = rows
    total = weight = used = 0
    for u in set(user.tolist()):
        of_user = user == u
        if 0 < label[of_user].sum() < of_user.sum():
            total += of_user.sum() * sk.roc_auc_score(label[of_user], score[of_user])
            weight += of_user.sum()
            used += 1
    auc, share = metrics.user_auc(label, score, user)
    assert share == pytest.approx(used / len(set(user.tolist())))
    assert auc == pytest.approx(total / weight) if weight else math.isnan(auc)


def test_user_auc_takes_names_and_float_scores_of_any_range():
    label = np.array([1, 0, 1, 0, 1])
    score = np.array([5.0, -3.0, -100.0, 7.0, 0.0])
    user = np.array(["ann", "ann", "bob", "bob", "eve"])
    assert metrics.user_auc(label, score, user) == (0.5, pytest.approx(2 / 3))


@given(scored(min_rows=2))
def test_expected_auc_by_brute_force(rows):
    p = rows[1]
    order = (p[:, None] > p) + (p[:, None] == p) / 2
    weight = p[:, None] * (1 - p) * (1 - np.eye(len(p)))
    computed = metrics.expected_auc(p)
    if weight.sum() == 0:
        assert math.isnan(computed)
    else:
        assert computed == pytest.approx((order * weight).sum() / weight.sum())


@given(scored(min_rows=2), st.integers(0, 1000))
def test_no_other_score_has_a_higher_expected_auc(rows, seed):
    p = rows[1]
    other = np.random.default_rng(seed).normal(size=len(p))
    weight = p[:, None] * (1 - p) * (1 - np.eye(len(p)))
    if weight.sum():
        other_auc = ((other[:, None] > other) * weight).sum() / weight.sum()
        assert other_auc <= metrics.expected_auc(p) + 1e-12


@settings(max_examples=3)
@given(st.integers(0, 1000))
def test_expected_auc_is_what_drawn_labels_show(seed):
    rng = np.random.default_rng(seed)
    p = rng.beta(4, 1, 3000)
    sampled_aucs = [metrics.roc_auc(rng.random(3000) < p, p) for _ in range(30)]
    assert np.mean(sampled_aucs) == pytest.approx(metrics.expected_auc(p), abs=0.01)


def test_scores_of_any_scale_rank_alike():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 200), rng.normal(size=200)
    assert metrics.roc_auc(label, score) == metrics.roc_auc(label, np.exp(5 * score))
    assert metrics.roc_auc(label, -score) == pytest.approx(1 - metrics.roc_auc(label, score))


def test_threshold_counts_equality_as_positive():
    computed = metrics.binary_metrics([1, 0, 1, 0], [0.7, 0.7, 0.2, 0.1], threshold=0.7)
    assert [computed[k] for k in ("tp", "fp", "tn", "fn")] == [1, 1, 1, 1]
    assert computed["accuracy"] == computed["fpr"] == 0.5


def test_a_constant_at_the_base_rate_has_normalised_entropy_one():
    label = np.array([1, 1, 1, 0])
    computed = metrics.binary_metrics(label, np.full(4, 0.75), np.zeros(4))
    assert computed["ne"] == pytest.approx(1) and computed["calibration"] == pytest.approx(1)
    assert computed["auc"] == computed["user_auc"] == 0.5 and computed["auprc"] == 0.75


@pytest.mark.parametrize(
    ("label", "probability", "undefined", "defined"),
    [
        ([], [], {"accuracy", "fpr", "loss", "auc", "auprc", "ne", "calibration", "user_auc"}, {"tp": 0}),
        (
            [1, 1],
            [0.9, 0.4],
            {"fpr", "auc", "ne", "user_auc"},
            {"accuracy": 0.5, "auprc": 1, "calibration": 0.65},
        ),
        (
            [0, 0],
            [0.9, 0.4],
            {"auc", "auprc", "ne", "calibration", "user_auc"},
            {"accuracy": 0.5, "fpr": 0.5},
        ),
        ([1, 0], [np.nan, 0.2], {"loss", "auc", "auprc", "ne", "calibration", "user_auc"}, {"accuracy": 0.5}),
    ],
)
def test_what_is_undefined_is_nan_and_becomes_null(label, probability, undefined, defined):
    computed = metrics.binary_metrics(label, probability, np.zeros(len(label)))
    assert {k for k, v in computed.items() if math.isnan(v)} - {"user_auc_users"} == undefined
    for name, value in defined.items():
        assert computed[name] == pytest.approx(value)
    read = json.loads(json.dumps(jsonable(computed), allow_nan=False))
    assert all(read[name] is None for name in undefined)


def test_probabilities_rounded_to_zero_and_one_keep_the_loss_finite():
    assert metrics.cross_entropy([1, 0], [0.0, 1.0]) == pytest.approx(-math.log(1e-7))


def test_jsonable_reaches_into_containers_and_numpy():
    value = {"a": [np.float32("nan"), math.inf, np.int64(3)], 1: (0.5, None, "x", True), "b": np.array([1.0])}
    assert jsonable(value) == {"a": [None, None, 3], "1": [0.5, None, "x", True], "b": [1.0]}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 rows.*3"):
        metrics.binary_metrics([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="user has 1 rows, label 2"):
        metrics.user_auc([0, 1], [0.1, 0.2], [0])


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0, 7.0]), max_size=30))
def test_mean_ranks_against_scipy(values):
    np.testing.assert_array_equal(metrics.mean_ranks(np.array(values)), rankdata(np.array(values)))
