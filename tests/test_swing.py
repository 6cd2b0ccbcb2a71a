"""The compiled SWING scorer against the plain formula."""

import dataclasses
import math
import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swing
from swing import interactions, kernel, local, reference


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


def assert_matches(found: pl.DataFrame, wanted: dict[str, dict[str, float]], config: swing.SwingConfig):
    """Every score right, the lists best first with ties by id, and nothing better left out."""
    assert found["id"].to_list() == sorted(wanted)
    for name, neighbors, scores in found.iter_rows():
        all_scores = wanted[name]
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


small_graphs = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("qrstuvwxyz")), min_size=4, max_size=80
)
configs = st.builds(
    swing.preset,
    st.sampled_from(list(swing.PRESETS)),
    top_k=st.sampled_from([1, 2, 3, 100]),
    min_user_items=st.sampled_from([1, 2, 3]),
    max_user_items=st.sampled_from([None, 4, 7]),
    sample_user_items=st.sampled_from([None, 2, 4]),
    max_item_users=st.sampled_from([None, 2, 3, 5]),
    normalize=st.sampled_from([None, True]),
    seed=st.integers(0, 2**40),
)


@settings(max_examples=200, deadline=None)
@given(small_graphs, configs, st.sampled_from(["items", "users"]))
def test_small_graphs_equal_the_formula(pairs, config, side):
    wanted = reference.scores(pairs, config, side)
    try:
        found = swing.similar(frame(pairs), config, side, threads=1)
    except swing.SwingError:
        assert not any(wanted.values())
    else:
        assert_matches(found, wanted, config)


@pytest.mark.parametrize("side", ["items", "users"])
@pytest.mark.parametrize("name", list(swing.PRESETS))
def test_skewed_graphs_equal_the_formula_under_each_preset(name, side):
    """With popular ids (long lists, a full heap, the sparse and the dense way of clearing the counters)."""
    pairs = random_pairs(7, 60, 50, 1500, skew=2.0)
    config = swing.preset(name, top_k=20, max_item_users=25)
    assert_matches(swing.similar(frame(pairs), config, side), reference.scores(pairs, config, side), config)


@settings(max_examples=50, deadline=None)
@given(small_graphs)
def test_the_reference_is_the_formula_in_exact_fractions(pairs):
    """A second reading of the definition, by sets and rational numbers, shares no code with the first."""
    found = reference.scores(pairs, swing.SwingConfig(min_user_items=1, max_item_users=None))
    items_of = {u: {i for v, i in pairs if v == u} for u, _ in pairs}
    users_of = {i: {u for u, j in pairs if j == i} for _, i in pairs}
    for i, j in combinations(sorted(users_of), 2):
        wanted = sum(
            Fraction(1, 1 + len(items_of[u] & items_of[v]))
            for u, v in combinations(sorted(users_of[i] & users_of[j]), 2)
        )
        assert found[i].get(j, 0.0) == pytest.approx(float(wanted), rel=1e-12)


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
    found = {row["id"]: row for row in swing.similar(frame(HAND), config).iter_rows(named=True)}
    assert found["x"]["neighbors"] == ["y", "z"]
    assert found["x"]["scores"] == pytest.approx([xy, xz], rel=1e-6)
    assert found["y"]["neighbors"] == ["x"] and found["z"]["neighbors"] == ["x"]
    assert found["w"]["neighbors"] == [] and found["w"]["scores"] == []
    normal = swing.similar(frame(HAND), dataclasses.replace(config, normalize=True))
    assert normal.filter(pl.col("id") == "x")["scores"].to_list()[0] == pytest.approx(
        [1.0, xz / xy], rel=1e-6
    )


def test_ties_go_by_id_whatever_k():
    """A complete graph: all scores are equal, so the smallest ids win, the id itself left out."""
    pairs = [(f"u{u}", f"i{i}") for u in range(4) for i in range(9)]
    for k in (1, 3, 8, 100):
        for name, neighbors, _ in swing.similar(frame(pairs), swing.SwingConfig(top_k=k)).iter_rows():
            assert neighbors == [f"i{i}" for i in range(9) if f"i{i}" != name][:k]


def test_threads_chunks_and_ranges_give_the_same_bits(monkeypatch):
    graph_of = interactions.read(frame(random_pairs(3, 900, 700, 30_000, skew=1.6)))
    for name in ("dlrrec", "flink"):
        config = swing.preset(name, top_k=30)
        graph = interactions.build(graph_of, config)
        anchors = len(graph.anchor_ids)
        whole = gathered(local.Scorer(graph, config, 1).score(0, anchors))
        monkeypatch.setattr(local, "CHUNK_COST", 5000)
        many = local.Scorer(graph, config, 3)
        assert len(local.split_evenly(many.steps, 0, anchors, 5000)) > 20
        backwards = [list(many.score(a, min(a + 97, anchors))) for a in range(0, anchors, 97)][::-1]
        for other in (many.score(0, anchors), [n for chunk in backwards[::-1] for n in chunk]):
            for one, two in zip(whole, gathered(other), strict=True):
                assert one.tobytes() == two.tobytes()
        monkeypatch.undo()


def gathered(chunks):
    chunks = list(chunks)
    return [np.concatenate([getattr(c, part) for c in chunks]) for part in ("counts", "codes", "scores")]


def test_a_worn_out_clock_starts_again():
    """Times are 30-bit: after a billion users the scratch forgets, and the scores stay right."""
    config = swing.SwingConfig()
    graph = interactions.build(interactions.read(frame(random_pairs(5, 40, 30, 400))), config)
    fresh, worn = (local.Scorer(graph, config, 1) for _ in range(2))
    wanted = gathered(fresh.score(0, len(graph.anchor_ids)))
    scratch = kernel.make_scratch(len(graph.anchor_ids), int(worn.steps.max()), 40)
    scratch.clock[0] = kernel.SLOTS - 100
    scratch.last[:] = kernel.SLOTS - 101
    worn._local.scratch = scratch
    found = gathered([worn._chunk((0, len(graph.anchor_ids)))])
    assert scratch.clock[0] < kernel.SLOTS // 2
    for one, two in zip(wanted, found, strict=True):
        assert one.tobytes() == two.tobytes()


def test_order_and_duplicates_of_the_input_do_not_matter():
    pairs = random_pairs(11, 80, 60, 1200, skew=1.5)
    config = swing.SwingConfig(max_item_users=12, sample_user_items=15, seed=4)
    wanted = swing.similar(frame(pairs), config)
    shuffled = pairs + pairs[::3]
    random.Random(1).shuffle(shuffled)
    assert swing.similar(frame(shuffled), config).equals(wanted)


def test_scores_are_symmetric_under_sampling():
    pairs = random_pairs(2, 90, 20, 1000)
    found = swing.similar(frame(pairs), swing.SwingConfig(max_item_users=10))
    score = {(i, j): s for i, row, scores in found.iter_rows() for j, s in zip(row, scores, strict=True)}
    assert score and all(score[j, i] == pytest.approx(s, rel=1e-6) for (i, j), s in score.items())


def test_sampling_is_even_and_follows_the_seed():
    """Each of an item's 40 users is kept in a quarter of the seeds; |z| < 5 for the least and the most."""
    rows, users = np.zeros(40, np.int64), np.arange(40)
    seeds = 2000
    masks = [interactions._sample(rows, users, 10, seed) for seed in range(seeds)]
    kept = np.sum(masks, axis=0)
    assert kept.sum() == 10 * seeds
    assert np.abs(kept - seeds / 4).max() < 5 * math.sqrt(seeds * 0.25 * 0.75)
    together = np.sum([mask[:-1] & mask[1:] for mask in masks], axis=0)  # neighbours are drawn independently
    chance = (10 / 40) * (9 / 39)
    assert np.abs(together - seeds * chance).max() < 5 * math.sqrt(seeds * chance)


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
