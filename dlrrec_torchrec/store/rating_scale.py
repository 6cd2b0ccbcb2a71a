"""The scale that ratings are given on, by the ratings themselves, and from where on one is positive."""

from __future__ import annotations

import math

# Common scales, the narrowest first: likes, thumbs, stars, half stars, marks, percent.
SCALES = ((0, 1), (-1, 1), (1, 5), (0.5, 5), (0, 5), (1, 10), (0, 10), (-10, 10), (1, 100), (0, 100))

USUAL = (1.0, 5.0)


def rating_scale(lowest: float, highest: float) -> tuple[float, float] | None:
    """The narrowest of SCALES that holds ratings from `lowest` to `highest`; None where none does.

    Example::

        >>> rating_scale(1, 4), rating_scale(0.5, 5), rating_scale(3, 9), rating_scale(1, 2500)
        ((1.0, 5.0), (0.5, 5.0), (1.0, 10.0), None)
    """
    for low, high in SCALES:
        if low <= lowest and highest <= high:
            return float(low), float(high)
    return None


def positive_from(scale: tuple[float, float]) -> float:
    """The least positive rating: three quarters up the scale; 4 of 1 to 5, as the papers have it.

    On a half, where the scale is longer than that of thumbs.

    Example::

        >>> [positive_from(scale) for scale in ((1, 5), (0.5, 5), (1, 10), (0, 100), (0, 1), (-1, 1))]
        [4.0, 4.0, 8.0, 75.0, 0.75, 0.5]
    """
    low, high = scale
    point = low + 0.75 * (high - low)
    return point if high - low <= 2 else math.ceil(2 * point) / 2
