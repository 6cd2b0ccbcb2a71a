"""Dense features against hand-computed values."""

import numpy as np
import pytest

from dlrrec_torchrec.features.dense import dense_matrix, dense_width
from dlrrec_torchrec.store.errors import DataError


def test_by_hand():
    got = dense_matrix(
        ["item_mean", "price", "user_count", "user_mean", "item_count"],
        user_count=np.array([0, 3]),
        item_count=np.array([1, 7]),
        user_mean=np.array([np.nan, 5.0]),
        item_mean=np.array([1.0, 4.0]),
        price_tag=np.array(["none", "overpriced"]),
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got,
        [[-1, 0, 0, 0, 0, 0, np.log(2)], [0.5, 0, 0, 1, np.log(4), 1, np.log(8)]],
        rtol=1e-6,
    )
    assert dense_width(["item_mean", "price"]) == 4


def test_rows_do_not_see_each_other():
    rng = np.random.default_rng(0)
    names = ["item_count", "user_mean", "item_mean", "price", "user_count"]
    columns = [rng.integers(0, 9, 50), rng.integers(0, 9, 50), rng.uniform(1, 5, 50), rng.uniform(1, 5, 50)]
    tags = rng.choice(["none", "cheap", "fair", "overpriced"], 50)
    whole = dense_matrix(names, *columns, tags)
    alone = np.concatenate(
        [dense_matrix(names, *(c[i : i + 1] for c in columns), tags[i : i + 1]) for i in range(50)]
    )
    np.testing.assert_array_equal(whole, alone)


def test_an_unknown_feature_is_named():
    with pytest.raises(DataError, match="unknown feature 'age'"):
        dense_width(["age"])
