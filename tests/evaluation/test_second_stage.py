"""A share of EASE beside a model's list scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dlrrec_torchrec.ranking import second_stage
from dlrrec_torchrec.ranking.ease import ease


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2))
def test_added_scores_are_those_of_plain_loops(seed, share):
    random = np.random.default_rng(seed)
    users, items = int(random.integers(1, 5)), int(random.integers(1, 12))
    scores, other = random.normal(size=(2, users, items)).astype(np.float32) * 5
    seen = random.random((users, items)) < 0.4
    other[random.random(users) < 0.3] = 0.25  # EASE knows nothing of these users
    found = second_stage.added(scores, other, seen, share)
    for user in range(users):
        unseen = [item for item in range(items) if not seen[user, item]]
        expected = scores[user].astype(np.float64)
        mine = other[user][unseen].astype(np.float64)
        if unseen and mine.max() > mine.min():
            spread = np.std(scores[user][unseen].astype(np.float64))
            expected = expected + share * spread * (other[user] - mine.mean()) / mine.std()
        np.testing.assert_allclose(found[user], expected, rtol=1e-3, atol=1e-3)


def test_a_share_means_the_same_on_any_scale():
    random = np.random.default_rng(0)
    scores, other = random.normal(size=(2, 6, 40)).astype(np.float32)
    seen = random.random((6, 40)) < 0.2
    plain = np.argsort(-second_stage.added(scores, other, seen, 0.3), axis=1)
    for scaled in ((scores * 9 + 4, other), (scores, other * 0.01 - 3)):
        np.testing.assert_array_equal(np.argsort(-second_stage.added(*scaled, seen, 0.3), axis=1), plain)
    np.testing.assert_array_equal(second_stage.added(scores, other, seen, 0.0), scores)


def test_repeated_pairs_count_once():
    pairs = sparse.csr_matrix(np.random.default_rng(1).integers(0, 3, (30, 12)), dtype=np.float32)
    users = np.arange(30)
    once = ease((pairs > 0).astype(np.float32), 300.0)(users)
    np.testing.assert_allclose(second_stage.fit(pairs)(users), once, rtol=1e-6)


@pytest.mark.parametrize(
    ("users", "items", "fits"),
    [(610, 9_000, True), (10**6, 4_000, True), (4_001, 4_001, False), (4_000, 10**6, False)],
)
def test_it_is_left_out_where_a_fit_takes_long(users, items, fits):
    why = second_stage.left_out(users, items)
    assert (why is None) == fits
    assert fits or f"{users:,} users and {items:,} items" in why
