"""The narrowest common scale, and what is positive on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec.store.rating_scale import SCALES, positive_from, rating_scale


@given(st.sampled_from(SCALES), st.data())
def test_a_scale_holds_its_ratings_and_no_narrower_one_does(scale, data):
    low, high = scale
    ratings = data.draw(st.lists(st.floats(low, high), min_size=1))
    found = rating_scale(min(ratings), max(ratings))
    assert found is not None and found[0] <= min(ratings) and max(ratings) <= found[1]
    assert found[1] - found[0] <= high - low
    if {low, high} <= set(ratings):
        assert found == scale
    assert found[0] < positive_from(found) <= found[1]


@given(st.floats(100.5, 1e6))
def test_beyond_all_scales_there_is_none(rating):
    assert rating_scale(1, rating) is None and rating_scale(-rating, 1) is None
