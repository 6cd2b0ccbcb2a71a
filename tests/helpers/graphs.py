"""Small graphs for the tests of SWING, and what every result of it must satisfy."""

import math
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

import swing
from swing import reference


def frame(pairs):
    return pl.DataFrame(
        [tuple(p) for p in pairs], schema={"user_id": pl.String, "item_id": pl.String}, orient="row"
    )


def random_pairs(seed, users, items, edges, skew=1.0):
    draw = random.Random(seed)
    return [
        (f"u{int(users * draw.random() ** skew)}", f"i{int(items * draw.random() ** skew)}")
        for _ in range(edges)
    ]


def assert_matches(lists: pl.DataFrame, expected: dict[str, dict[str, float]], config: swing.SwingConfig):
    """Every score right, the lists best first with ties by id, and nothing better left out."""
    assert lists["id"].to_list() == sorted(expected)
    for name, neighbors, scores in lists.iter_rows():
        all_scores = expected[name]
        assert len(neighbors) == len(set(neighbors)) == min(config.top_k, len(all_scores))
        assert list(zip([-s for s in scores], neighbors, strict=True)) == sorted(
            zip([-s for s in scores], neighbors, strict=True)
        )
        if not neighbors:
            continue
        scale = max(all_scores.values()) if config.normalize else 1.0
        for other, score in zip(neighbors, scores, strict=True):
            assert score == pytest.approx(all_scores[other] / scale, rel=1e-6)
        left_out = max((s for j, s in all_scores.items() if j not in neighbors), default=-math.inf)
        assert left_out / scale <= scores[-1] * (1 + 1e-6)


def assert_equals_the_formula(pairs, config: swing.SwingConfig, side: str):
    """The result is the reference's; a refusal is right where the reference finds nothing."""
    expected = reference.scores(pairs, config, side)
    try:
        lists = swing.similar(frame(pairs), config, side, threads=1)
    except swing.SwingError:
        assert not any(expected.values())
    else:
        assert_matches(lists, expected, config)


small_graphs = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("qrstuvwxyz")), min_size=4, max_size=80
)


def configs(**parameters: st.SearchStrategy) -> st.SearchStrategy[swing.SwingConfig]:
    """Any preset, limits and top-k, with further parameters of `swing.preset`."""
    return st.builds(
        swing.preset,
        st.sampled_from(list(swing.PRESETS)),
        **parameters,
        top_k=st.sampled_from([1, 2, 3, 100]),
        min_user_items=st.sampled_from([1, 2, 3]),
        max_user_items=st.sampled_from([None, 4, 7]),
        sample_user_items=st.sampled_from([None, 2, 4]),
        max_item_users=st.sampled_from([None, 2, 3, 5]),
        normalize=st.sampled_from([None, True]),
        seed=st.integers(0, 2**40),
    )


def gathered(chunks):
    chunks = list(chunks)
    return [np.concatenate([getattr(c, part) for c in chunks]) for part in ("counts", "codes", "scores")]
