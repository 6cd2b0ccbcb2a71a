"""What a row is left with: exact to the last bit, and no comparison of rows tells what was taken away."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from dlrrec_torchrec.features.left_out import Groups, PooledVectors, rating_statistics
from dlrrec_torchrec.metrics import roc_auc
from dlrrec_torchrec.store.errors import DataError


@given(st.data())
def test_means_do_not_move_by_a_bit_whatever_is_taken_away(data):
    size = st.floats(-100, 100, width=32)
    ratings = np.array(data.draw(st.lists(size, min_size=2, max_size=30)), np.float32)
    changed = ratings.copy()
    k = data.draw(st.integers(0, len(ratings) - 1))
    changed[k] = data.draw(size)
    entity = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(ratings), max_size=len(ratings))))
    smoothing = data.draw(st.sampled_from([0.0, 2.5]))
    a, b = (rating_statistics(r, entity, 3, None, smoothing, 3.0).row_mean[k] for r in (ratings, changed))
    assert a.tobytes() == b.tobytes()
    others = ratings[(entity == entity[k]) & (np.arange(len(ratings)) != k)].astype(np.float64)
    if len(others) and not smoothing:
        assert a == pytest.approx(others.mean(), rel=1e-6, abs=1e-5)
    assert len(others) or smoothing or np.isnan(a)


@pytest.mark.parametrize("by_fold", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.7, 3.0])
def test_comparing_rows_tells_nothing_of_their_labels(by_fold, smoothing):
    """Rows that are left with the same number and sum of ratings have the same bits, whatever their own."""
    rng = np.random.default_rng(0)
    rating, entity = rng.integers(1, 6, 4000).astype(np.float32), rng.integers(0, 1200, 4000)
    left_out = Groups(entity, rng.integers(0, 3, 4000)) if by_fold else None
    statistics = rating_statistics(rating, entity, 1200, left_out, smoothing, 3.0)
    number = None if left_out is None else left_out.number
    left_out_ratings = rating if number is None else np.bincount(number, rating)[number]
    remaining = np.bincount(entity, rating)[entity] - left_out_ratings
    _, group = np.unique(np.c_[statistics.row_count, remaining], axis=0, return_inverse=True)
    bits = statistics.row_mean.view(np.int32)
    assert len(np.unique(np.c_[group, bits], axis=0)) == len(np.unique(group))
    if not by_fold:  # a tree that may split between any two floats: on half of the rows, judged by the others
        assert len(np.unique(np.c_[group, rating], axis=0)) > 3 * len(np.unique(group))
        within = (bits - np.array([bits[group == g].min() for g in range(group.max() + 1)])[group])[:, None]
        half, label = rng.random(4000) < 0.5, rating > 3
        tree = DecisionTreeClassifier(max_depth=6, random_state=0).fit(within[half], label[half])
        assert abs(roc_auc(label[~half], tree.predict_proba(within[~half])[:, 1]) - 0.5) < 0.02


def test_sums_that_could_round_are_refused():
    with pytest.raises(DataError, match="too large to sum exactly"):
        rating_statistics(np.array([1e10, 1.0]), np.array([0, 0]), 1, None)
    reviews = np.full((2**14, 1), 65504, np.float16).repeat(384, axis=1)
    with pytest.raises(DataError, match="too large to sum exactly"):
        PooledVectors(reviews, np.zeros(2**14, np.int64), 1, None)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_pooled_vectors_are_those_of_the_reviews_that_a_row_may_see(seed, later):
    """Against plain loops; groups of one review and of several, with sums in files and in memory."""
    rng = np.random.default_rng(seed)
    rows, entities, folds = 14, 5, 3
    entity, fold = rng.integers(0, entities - 1, rows), rng.integers(0, folds, rows)
    reviews = (rng.standard_normal((rows, 4)) * (rng.random((rows, 1)) < 0.8)).astype(np.float16)
    own = rng.standard_normal((entities, 4)).astype(np.float16)

    def direction(chosen, code):
        total = reviews[chosen].astype(np.float64).sum(axis=0) + own[code].astype(np.float64)
        norm = np.linalg.norm(total)
        return (total / norm if norm else total).astype(np.float16)

    def seen(code, k):
        return (entity == code) & ((fold < k) if later else (fold != k))

    with tempfile.TemporaryDirectory() as folder:
        for scratch in (None, Path(folder, "sums")):
            groups = Groups(entity, fold, later)
            pooled = PooledVectors(reviews, entity, entities, groups, own, scratch)
            for row, vector in enumerate(pooled.of_rows(np.arange(rows))):
                expected = direction(seen(entity[row], fold[row]), entity[row])
                np.testing.assert_array_equal(vector, expected)
            for k in range(folds):
                for code, vector in enumerate(pooled.as_seen_by(k, np.arange(entities))):
                    np.testing.assert_array_equal(vector, direction(seen(code, k), code))
            for code, vector in enumerate(pooled.of_entities(np.arange(entities))):
                np.testing.assert_array_equal(vector, direction(entity == code, code))
            assert pooled.number() == entities
