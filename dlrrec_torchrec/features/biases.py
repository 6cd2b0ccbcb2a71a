"""How much a user and an item lie above the mean: fitted together, and damped."""

from __future__ import annotations

import dataclasses

import numpy as np

DAMPING = 5.0  # pseudo-reviews without any deviation
ITERATIONS = 6


@dataclasses.dataclass(frozen=True)
class Biases:
    """A value (a rating, a label) as mean + user's deviation + item's deviation.

    Attributes:
        mean: of all values.
        user: f64 [U]; item: f64 [I]. 0 without a review.
    """

    mean: float
    user: np.ndarray
    item: np.ndarray

    def residual(self, user: np.ndarray, item: np.ndarray, value: np.ndarray) -> np.ndarray:
        """What of the values [N] of these pairs the deviations do not explain, f64 [N]."""
        return value - self.mean - self.user[user] - self.item[item]


def fit_biases(
    user: np.ndarray,
    item: np.ndarray,
    value: np.ndarray,
    users: int,
    items: int,
    damping: float = DAMPING,
    iterations: int = ITERATIONS,
) -> Biases:
    """The deviations that minimise sum (v - m - b_u - b_i)^2 + d (sum b_u^2 + sum b_i^2), m the mean.

    By alternating least squares from zero (Koren 2010, "Factor in the neighbors", section 2.1), so that a
    user who reviews good items only is not taken for a lenient one.

    Args:
        user, item: int [N] codes; value: float [N].
        users, items: how many there are.
        damping: d.
        iterations: over items and then users.
    """
    value = np.asarray(value, np.float64)
    mean = float(value.mean()) if len(value) else 0.0
    of_user, of_item = np.zeros(users), np.zeros(items)
    user_count = np.bincount(user, minlength=users) + damping
    item_count = np.bincount(item, minlength=items) + damping
    centred = value - mean
    for _ in range(iterations):
        of_item = np.bincount(item, centred - of_user[user], items) / item_count
        of_user = np.bincount(user, centred - of_item[item], users) / user_count
    return Biases(mean, of_user, of_item)
