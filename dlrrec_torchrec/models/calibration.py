"""Probabilities from a model's logits, calibrated on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from dlrrec_torchrec.metrics import sigmoid

LEAST_ROWS = 100  # to calibrate on
LEAST_OF_A_LABEL = 20
# Twice the gain in log-likelihood that an intercept must bring: chi-squared with one degree of freedom, 5 %.
GAIN = 3.84
_SLOPES = (-6.0, 6.0)  # of ln(1 / temperature)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """p = sigmoid(logit / temperature + bias); it changes no order, and so no AUC.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2: for two classes Platt scaling
    with, or without, its intercept.

    Attributes:
        rows: that it was fitted on.
        loss_before, loss_after: their mean cross-entropy in nats without and with it.
        note: why there is none.

    Example::

        >>> Calibration(temperature=2.0, bias=1.0).probability(np.array([-2.0, 8.0])).round(3)
        array([0.5  , 0.993])
    """

    temperature: float = 1.0
    bias: float = 0.0
    rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    note: str = ""

    def probability(self, logit: np.ndarray) -> np.ndarray:
        """Probabilities f64 [N] of logits [N]."""
        return sigmoid(np.asarray(logit, np.float64) / self.temperature + self.bias)

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Calibration:
        """From a training's facts; without any, the sigmoid alone."""
        return Calibration(**facts.get("calibration") or {})


def fit_calibration(label: np.ndarray, logit: np.ndarray) -> Calibration:
    """The temperature of lowest cross-entropy on held-out rows, and an intercept where it gains enough.

    An intercept always lowers the loss of the rows that it is fitted on; it is kept where twice the gain in
    log-likelihood is above GAIN.

    Args:
        label: [N] of 0 and 1; logit: [N].

    None is fitted (`note` says why) with fewer than LEAST_ROWS rows or LEAST_OF_A_LABEL of a label, and with
    logits that are all equal or rank the rows backwards.
    """
    label, logit = np.asarray(label, np.float64), np.asarray(logit, np.float64)
    rows, positives = len(label), int((label > 0).sum())
    fewest = min(positives, rows - positives)
    if rows < LEAST_ROWS or fewest < LEAST_OF_A_LABEL:
        return Calibration(
            rows=rows,
            note=f"probabilities are not calibrated: {rows:,} validation rows, {fewest:,} of the rarer label "
            f"(it takes {LEAST_ROWS} and {LEAST_OF_A_LABEL})",
        )
    spread = float(logit.std())
    if not np.isfinite(logit).all() or not spread > 0:
        return Calibration(
            rows=rows, note="probabilities are not calibrated: the validation logits are all equal"
        )

    # In units of the logits' own spread, the slope that is looked for is around 1.
    x = logit / spread

    def loss(slope: float, bias: float = 0.0) -> float:
        z = slope * x + bias
        return float(np.mean(np.logaddexp(0, z) - label * z))

    found = minimize_scalar(lambda a: loss(np.exp(a)), bounds=_SLOPES, method="bounded")
    slope, bias = float(np.exp(found.x)), 0.0

    def both(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        error = sigmoid(z) - label
        return loss(*parameters), np.array([np.mean(error * x), np.mean(error)])

    shifted = minimize(both, np.array([slope, 0.0]), jac=True, method="BFGS")
    if shifted.x[0] > np.exp(_SLOPES[0]) and 2 * rows * (loss(slope) - loss(*shifted.x)) > GAIN:
        slope, bias = map(float, shifted.x)
    elif found.x < _SLOPES[0] + 0.01:
        return Calibration(
            rows=rows, note="probabilities are not calibrated: on validation rows the logits say nothing"
        )
    return Calibration(spread / slope, bias, rows, loss(spread), loss(slope, bias))
