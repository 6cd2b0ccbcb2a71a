"""Directions that follow from their space alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from dlrrec_torchrec.features.low_rank import SEED, steady_turn


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_a_turned_space_has_the_same_directions(rank, more, seed):
    rng = np.random.default_rng(seed)
    space = np.linalg.qr(rng.normal(size=(rank + more, rank)))[0]
    other = space @ np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    steady = space @ steady_turn(space)
    np.testing.assert_allclose(other @ steady_turn(other), steady, atol=1e-4)
    np.testing.assert_allclose(steady.T @ steady, np.eye(rank), atol=1e-5)
    fixed = np.random.default_rng(SEED).standard_normal(space.shape)
    np.testing.assert_allclose(steady_turn(space), orthogonal_procrustes(space, fixed)[0], atol=1e-4)
