"""The dense features, made in one place for training rows and for serving.

Scales are fixed, not fitted: a fitted mean would carry every row's rating into every other row's features.
"""

from __future__ import annotations

import numpy as np

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.schema import PRICE_TAGS

# name -> columns it takes
DENSE_FEATURES = {"item_count": 1, "user_count": 1, "user_mean": 1, "item_mean": 1, "price": 3}


def dense_width(names: list[str]) -> int:
    """Number of dense columns. Raises DataError for an unknown name."""
    for name in names:
        if name not in DENSE_FEATURES:
            raise DataError(f"prepare.dense: unknown feature '{name}' (known: {', '.join(DENSE_FEATURES)})")
    return sum(DENSE_FEATURES[name] for name in names)


def dense_matrix(
    names: list[str],
    user_count: np.ndarray,
    item_count: np.ndarray,
    user_mean: np.ndarray,
    item_mean: np.ndarray,
    price_tag: np.ndarray,
    rating_range: tuple[float, float] = (1.0, 5.0),
) -> np.ndarray:
    """The dense features of N rows, float32 [N, D] (MMREC section 5.2, DLRREC section 4.3).

    Args:
        names: features in order; `price` takes three columns (cheap, fair, overpriced; none is all zero).
        user_count, item_count: [N] numbers of reviews, without the row's own for a training row.
        user_mean, item_mean: [N] mean ratings; NaN (no review) becomes 0, the middle of the range.
        price_tag: [N] strings, each one of PRICE_TAGS.
        rating_range: lowest and highest rating, mapped to -1 and 1.
    """
    low, high = rating_range

    def scaled(mean: np.ndarray) -> np.ndarray:
        value = (np.asarray(mean, np.float64) - low) / (high - low) * 2 - 1
        return np.nan_to_num(value, nan=0.0)[:, None]

    tags = np.asarray(price_tag, dtype=object)
    columns = {
        "item_count": lambda: np.log1p(np.asarray(item_count, np.float64))[:, None],
        "user_count": lambda: np.log1p(np.asarray(user_count, np.float64))[:, None],
        "user_mean": lambda: scaled(user_mean),
        "item_mean": lambda: scaled(item_mean),
        "price": lambda: np.stack([tags == tag for tag in PRICE_TAGS[1:]], axis=1),
    }
    dense_width(names)
    return np.concatenate([columns[n]() for n in names], axis=1, dtype=np.float32, casting="unsafe")
