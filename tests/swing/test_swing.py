"""The compiled SWING scorer against the plain formula."""

import dataclasses
import doctest
import importlib
import math
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swing
from swing import interactions, kernel, local, reference
from tests.helpers.graphs import (
    assert_equals_the_formula,
    assert_matches,
    configs,
    frame,
    gathered,
    random_pairs,
    small_graphs,
)

EXAMPLES = [p.stem for p in Path(swing.__file__).parent.glob("*.py") if ">>>" in p.read_text("utf-8")]


@settings(max_examples=200)
@given(small_graphs, configs(), st.sampled_from(["items", "users"]))
def test_small_graphs_equal_the_formula(pairs, config, side):
    assert_equals_the_formula(pairs, config, side)


@pytest.mark.parametrize("side", ["items", "users"])
@pytest.mark.parametrize("name", list(swing.PRESETS))
def test_skewed_graphs_equal_the_formula_under_each_preset(name, side):
    """With popular ids (long lists, a full heap, the sparse and the dense way of clearing the counters)."""
    pairs = random_pairs(7, 60, 50, 1500, skew=2.0)
    config = swing.preset(name, top_k=20, max_item_users=25)
    assert_matches(swing.similar(frame(pairs), config, side), reference.scores(pairs, config, side), config)


@settings(max_examples=50)
@given(small_graphs)
def test_the_reference_is_the_formula_in_exact_fractions(pairs):
    """A second reading of the definition, by sets and rational numbers, shares no code with the first."""
    scores = reference.scores(pairs, swing.SwingConfig(min_user_items=1, max_item_users=None))
    items_of = {u: {i for v, i in pairs if v == u} for u, _ in pairs}
    users_of = {i: {u for u, j in pairs if j == i} for _, i in pairs}
    for i, j in combinations(sorted(users_of), 2):
        exact = sum(
            Fraction(1, 1 + len(items_of[u] & items_of[v]))
            for u, v in combinations(sorted(users_of[i] & users_of[j]), 2)
        )
        assert scores[i].get(j, 0.0) == pytest.approx(float(exact), rel=1e-12)


# Users a, b, c and d have {x, y, z}, {x, y}, {x, y, w} and {x, z}. Pairs of users and what they share:
# ab xy, ac xy, bc xy, ad xz, bd x, cd x. So x and y are linked by ab, ac, bc; x and z by ad; y and z by none.
HAND = ["ax", "ay", "az", "bx", "by", "cx", "cy", "cw", "dx", "dz"]


@pytest.mark.parametrize(
    ("config", "xy", "xz"),
    [
        (swing.preset("dlrrec"), 3 / (1 + 2), 1 / (1 + 2)),
        (
            swing.preset("flink", min_user_items=2),
            (18**-0.3 * 17**-0.3 + 18**-0.3 * 18**-0.3 + 17**-0.3 * 18**-0.3) / 2,
            18**-0.3 * 17**-0.3 / 2,
        ),
        (
            swing.preset("pai", min_user_items=2),
            (8**0.35 * 7**0.35 + 8**0.35 * 8**0.35 + 7**0.35 * 8**0.35) / 3,
            8**0.35 * 7**0.35 / 3,
        ),
        (swing.preset("recfarm"), (2 / math.sqrt(6) + 1 / 3) / (1 + 1), 1 / math.sqrt(6) / (1 + 1)),
    ],
    ids=list(swing.PRESETS),
)
def test_hand_computed(config, xy, xz):
    lists = {row["id"]: row for row in swing.similar(frame(HAND), config).iter_rows(named=True)}
    assert lists["x"]["neighbors"] == ["y", "z"]
    assert lists["x"]["scores"] == pytest.approx([xy, xz], rel=1e-6)
    assert lists["y"]["neighbors"] == ["x"] and lists["z"]["neighbors"] == ["x"]
    assert lists["w"]["neighbors"] == [] and lists["w"]["scores"] == []
    normal = swing.similar(frame(HAND), dataclasses.replace(config, normalize=True))
    assert normal.filter(pl.col("id") == "x")["scores"].to_list()[0] == pytest.approx(
        [1.0, xz / xy], rel=1e-6
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_examples(name):
    """Worked by hand, in `config` for every preset and every similarity."""
    failed, tried = doctest.testmod(importlib.import_module(f"swing.{name}"))
    assert tried and not failed


def test_every_preset_and_similarity_has_a_worked_example():
    text = Path(swing.config.__file__).read_text("utf-8").split("from __future__")[0]
    assert all(f'preset("{name}"' in text for name in swing.PRESETS)
    others = set(swing.config.SIMILARITIES) - {"swing"}
    assert all(f'similarity="{name}"' in text for name in others)


def test_ties_go_by_id_whatever_k():
    """A complete graph: all scores are equal, so the smallest ids win, the id itself left out."""
    pairs = [(f"u{u}", f"i{i}") for u in range(4) for i in range(9)]
    for k in (1, 3, 8, 100):
        for name, neighbors, _ in swing.similar(frame(pairs), swing.SwingConfig(top_k=k)).iter_rows():
            assert neighbors == [f"i{i}" for i in range(9) if f"i{i}" != name][:k]


def test_threads_chunks_and_ranges_give_the_same_bits(monkeypatch):
    graph_of = interactions.read(frame(random_pairs(3, 900, 700, 30_000, skew=1.6)))
    for config in (
        swing.preset("dlrrec", top_k=30),
        swing.preset("flink", top_k=30),
        swing.preset("dlrrec", similarity="jaccard", top_k=30),
        swing.preset("dlrrec", similarity="adamic_adar", top_k=30),
    ):
        graph = interactions.build(graph_of, config)
        anchors = len(graph.anchor_ids)
        expected = gathered(local.Scorer(graph, config, 1).score(0, anchors))
        monkeypatch.setattr(local, "CHUNK_COST", 5000)
        threaded = local.Scorer(graph, config, 3)
        assert len(local.split_evenly(threaded.steps, 0, anchors, 5000)) > 20
        backwards = [list(threaded.score(a, min(a + 97, anchors))) for a in range(0, anchors, 97)][::-1]
        for chunks in (threaded.score(0, anchors), [n for chunk in backwards[::-1] for n in chunk]):
            for a_values, b_values in zip(expected, gathered(chunks), strict=True):
                assert a_values.tobytes() == b_values.tobytes()
        monkeypatch.undo()


def test_a_worn_out_clock_starts_again():
    """Times are 30-bit: after a billion users the scratch forgets, and the scores stay right."""
    config = swing.SwingConfig()
    graph = interactions.build(interactions.read(frame(random_pairs(5, 40, 30, 400))), config)
    fresh, worn = (local.Scorer(graph, config, 1) for _ in range(2))
    expected = gathered(fresh.score(0, len(graph.anchor_ids)))
    scratch = kernel.make_scratch(len(graph.anchor_ids), int(worn.steps.max()), 40)
    scratch.clock[0] = kernel.SLOTS - 100
    scratch.last[:] = kernel.SLOTS - 101
    worn._local.scratch = scratch
    actual = gathered([worn._chunk((0, len(graph.anchor_ids)))])
    assert scratch.clock[0] < kernel.SLOTS // 2
    for a_values, b_values in zip(expected, actual, strict=True):
        assert a_values.tobytes() == b_values.tobytes()


@pytest.mark.parametrize("similarity", ["swing", "cosine"])
def test_one_compiled_kernel_for_arrays_of_any_owner(similarity):
    """Writable or not, as those out of Ray's store are not."""
    config = swing.preset(similarity=similarity)
    graph = interactions.build(interactions.read(frame(random_pairs(5, 40, 30, 400))), config)
    owned = {k: v.copy() for k, v in vars(graph).items() if isinstance(v, np.ndarray)}
    assert owned and all(array.flags.writeable for array in owned.values())
    read_only, writable = (
        gathered(local.Scorer(g, config, 1).score(0, len(g.anchor_ids)))
        for g in (graph, dataclasses.replace(graph, **owned))
    )
    assert all(a.tobytes() == b.tobytes() for a, b in zip(read_only, writable, strict=True))
    assert all(len(k.signatures) <= 1 for k in (kernel.score_range, kernel.overlap_range))


def test_order_and_duplicates_of_the_input_do_not_matter():
    pairs = random_pairs(11, 80, 60, 1200, skew=1.5)
    config = swing.SwingConfig(max_item_users=12, sample_user_items=15, seed=4)
    expected = swing.similar(frame(pairs), config)
    shuffled = pairs + pairs[::3]
    random.Random(1).shuffle(shuffled)
    assert swing.similar(frame(shuffled), config).equals(expected)


def test_scores_are_symmetric_under_sampling():
    pairs = random_pairs(2, 90, 20, 1000)
    lists = swing.similar(frame(pairs), swing.SwingConfig(max_item_users=10))
    score = {(i, j): s for i, row, scores in lists.iter_rows() for j, s in zip(row, scores, strict=True)}
    assert score and all(score[j, i] == pytest.approx(s, rel=1e-6) for (i, j), s in score.items())


def test_limits_report_what_they_dropped():
    pairs = [("one", "i0")] + [("many", f"i{k}") for k in range(9)]
    pairs += [(f"u{n}", f"i{k}") for n in range(6) for k in range(3)]
    read = interactions.read(frame(pairs))
    config = swing.SwingConfig(min_user_items=2, max_user_items=8, max_item_users=4)
    facts = interactions.build(read, config).facts
    assert facts["edges_below_min_user_items"] == 1
    assert facts["edges_above_max_user_items"] == 9
    assert facts["edges_not_in_sample_item_users"] == 3 * 2
    assert facts["edges_left"] == 12
    assert facts["users_dropped"] >= 2  # `one` and `many`; a u whose items all went their ways counts too


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"alpha": float("nan")}, "alpha must be 0 or more"),
        ({"user_beta": float("inf")}, "user_beta must be finite"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"max_item_users": 1}, "max_item_users must be 2 or more"),
        ({"min_user_items": 5, "max_user_items": 4}, "max_user_items .4. is less than min_user_items .5."),
        ({"top_kk": 3}, "unknown parameter 'top_kk'; did you mean 'top_k'"),
        ({"similarity": "cosin"}, "unknown similarity 'cosin'; did you mean 'cosine'"),
        ({"similarity": "cosine", "alpha": 2.0}, "alpha .* no meaning for similarity 'cosine'"),
        ({"similarity": "common", "count_anchor": False}, "count_anchor .* no meaning"),
    ],
)
def test_parameters_out_of_range(changes, words):
    with pytest.raises(swing.SwingError, match=words):
        swing.preset("dlrrec", **changes)


def test_presets():
    with pytest.raises(swing.SwingError, match="unknown preset 'flnk'; did you mean 'flink'"):
        swing.preset("flnk")
    assert swing.preset("flink", max_item_users=None).max_item_users == 1000
    assert swing.preset("flink", max_item_users=0, max_user_items=0).max_user_items is None


def test_a_preset_lends_another_similarity_its_limits_only():
    config = swing.preset("flink", similarity="jaccard", top_k=5)
    assert config == swing.SwingConfig("jaccard", top_k=5, min_user_items=10, max_user_items=1000)
    with pytest.raises(swing.SwingError, match="user_beta is a parameter of SWING"):
        swing.preset("flink", similarity="jaccard", user_beta=0.3)


def test_ties_that_normalising_makes_are_ordered_by_id():
    """Two scores that differ in the last bit of a float32 can fall together when divided by the best."""
    best, low = np.float32(15.9), np.float32(7.96)
    while np.float32(low / best) != np.float32(np.nextafter(low, np.float32(9)) / best):
        low = np.nextafter(low, np.float32(9))
    scratch = kernel.make_scratch(3, 3, 1)
    for normalize, expected in ((False, [0, 2, 1]), (True, [0, 1, 2])):
        scratch.code[:], scratch.score[:] = [1, 0, 2], [low, best, np.nextafter(low, np.float32(9))]
        codes, scores = np.empty(3, np.int32), np.empty(3, np.float32)
        assert kernel._top_k(3, 3, normalize, scratch, codes, scores) == 3
        assert codes.tolist() == expected
        assert scores[0] == (1 if normalize else best) and (scores[1] == scores[2]) == normalize
