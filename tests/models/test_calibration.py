"""Calibration against scikit-learn's logistic regression, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dlrrec_torchrec.metrics import cross_entropy, sigmoid
from dlrrec_torchrec.models.calibration import GAIN, LEAST_OF_A_LABEL, Calibration, fit_calibration


def rows_of(slope: float, bias: float, seed: int, rows: int = 2000):
    """(labels, logits): the true log odds are slope * logit + bias."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0.5, 2, rows)
    return (rng.random(rows) < sigmoid(slope * logit + bias)).astype(float), logit


@given(st.floats(0.15, 3), st.sampled_from([0.0, 0.0, 0.7, -0.9]), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_it_is_the_regression_of_the_label_on_the_logit(slope, bias, seed):
    label, logit = rows_of(slope, bias, seed)
    fitted = fit_calibration(label, logit)
    losses = {}
    for intercept in (False, True):
        oracle = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-9, max_iter=500)
        oracle.fit(logit[:, None], label)
        expected = (oracle.coef_[0, 0], oracle.intercept_[0] if intercept else 0.0)
        losses[intercept] = cross_entropy(label, sigmoid(logit * expected[0] + expected[1])), expected
    gains = 2 * len(label) * (losses[False][0] - losses[True][0]) > GAIN
    loss, (a, b) = losses[gains]
    assert not fitted.note and fitted.rows == len(label)
    assert (1 / fitted.temperature, fitted.bias) == pytest.approx((a, b), abs=2e-3)
    assert fitted.loss_after == pytest.approx(loss, abs=1e-6) and fitted.loss_after <= fitted.loss_before
    assert fitted.loss_before == pytest.approx(cross_entropy(label, sigmoid(logit)), abs=1e-6)
    probability = fitted.probability(logit)
    assert (np.argsort(probability, kind="stable") == np.argsort(logit, kind="stable")).all()
    assert probability == pytest.approx(sigmoid(logit / fitted.temperature + fitted.bias))


def test_overconfident_logits_are_cooled_and_an_intercept_is_there_where_it_is_needed():
    label, logit = rows_of(0.1, 0.0, 1, rows=5000)
    fitted = fit_calibration(label, logit * 100)
    assert 500 < fitted.temperature < 2000 and fitted.bias == 0
    assert fitted.probability(logit * 100).max() < 0.9  # and not 1.000
    label, logit = rows_of(1.0, -2.0, 1, rows=5000)  # as after training with class weights
    assert fit_calibration(label, logit).bias == pytest.approx(-2, abs=0.2)


def test_where_there_is_nothing_to_calibrate_on_it_says_so():
    label, logit = rows_of(1, 0, 0)
    one = np.ones(300)
    few = fit_calibration(label[:99], logit[:99])
    assert "99 validation rows" in few.note and few.temperature == 1 and few.bias == 0
    label_19 = np.r_[np.zeros(LEAST_OF_A_LABEL - 1), np.ones(300)]
    assert "19 of the rarer label" in fit_calibration(label_19, np.arange(319.0)).note
    assert "0 of the rarer label" in fit_calibration(one, np.arange(300.0)).note
    assert "all equal" in fit_calibration(np.r_[one, 0 * one], np.full(600, 3.0)).note
    balanced = np.r_[one, 0 * one]
    assert "say nothing" in fit_calibration(balanced, np.r_[-one, one]).note  # ranks backwards
    for kept in (few, fit_calibration(label, logit)):
        assert Calibration.of({"calibration": vars(kept)}) == kept
    assert Calibration.of({}).probability(np.zeros(1)) == [0.5]
