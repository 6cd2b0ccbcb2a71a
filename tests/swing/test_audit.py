"""The numbers of SWING's audit, by hand and by plain Python."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from swing.audit import agreement, audit, lists
from swing.audit.agreement import rank_biased_overlap
from tests.helpers.audits import DEGREES, OTHER, WORLD, skip_figures, write


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run", WORLD, DEGREES)


@pytest.fixture
def no_figures(monkeypatch):
    skip_figures(monkeypatch)


def test_the_numbers_by_hand(tmp_path, run):
    changed = {"parameters": {"top_k": 2, "seed": 1}, "input": {"rows": 12}, "filters": {"min_rating": 4.0}}
    other = write(tmp_path / "other", OTHER, parts=1, **changed)
    report = audit(run, other=other, k=2, threshold=1)
    assert report["problems"] == [] and report["notes"] == []
    assert report["coverage"] == {"ids": 5, "covered": 3, "share": 0.6}
    assert report["lists"] == {
        "neighbors": 5,
        "mean": 1.0,
        "mean_of_covered": pytest.approx(5 / 3),
        "median_of_covered": 2,
        "max": 2,
        "full": 0,
        "histogram": [2, 1, 2],
    }
    all_scores, best = report["scores"]["all"], report["scores"]["best"]
    assert [all_scores[name] for name in ("count", "min", "mean", "max")] == [5, 0.5, 1.3, 2]
    assert [all_scores["quantiles"][q] for q in ("0.01", "0.25", "0.5", "0.75", "0.99")] == [0.5, 1, 1, 2, 2]
    assert [best["count"], best["min"], best["quantiles"]["0.5"]] == [3, 1, 2]
    [cut] = report["thresholds"]
    assert cut == {
        "threshold": 1, "quantile": None, "neighbors": 2, "neighbors_share": 0.4, "ids": 2, "ids_share": 0.4
    }  # fmt: skip
    assert report["popularity"] == {
        "appearing": 3,
        "appearing_share": 0.6,
        "max": 2,
        "gini": pytest.approx(0.48),
        "reciprocity": 0.8,  # all but c -> b
        "gini_of_degrees": pytest.approx(0.4),
        "top": [
            {"of_ids": 0.01, "ids": 1, "appearances_share": 0.4, "edges_share": 0.4},
            {"of_ids": 0.1, "ids": 1, "appearances_share": 0.4, "edges_share": 0.4},
        ],
        "spearman": pytest.approx(9 / math.sqrt(90)),
        "arp": pytest.approx((2.5 + 4 + 3.5) / 3),
        "mean_degree": 2,
        "mean_degree_of_covered": 3,
        "mean_degree_by_edge": 3,
    }
    names = ("from", "to", "ids", "covered", "edges", "neighbors", "appearances", "coverage")
    assert [tuple(row[name] for name in names) for row in report["by_degree"]] == [
        (0, 0, 1, 0, 0, 0, 0, 0),
        (1, 1, 1, 0, 1, 0, 0, 0),
        (2, 3, 2, 2, 5, 3, 3, 1),
        (4, 7, 1, 1, 4, 2, 2, 1),
    ]
    assert report["agreement"] == {
        "other": str(other),
        "parameters": {"top_k": [100, 2], "seed": [None, 1]},
        "filters": {"min_rating": [None, 4.0]},
        "input": {"rows": [10, 12]},
        "ids": {"this": 5, "other": 4, "both": 3},
        "coverage": {"this": 0.6, "other": 1, "this_on_shared_ids": 1, "other_on_shared_ids": 1},
        "lists_in_both": 3,
        "k": 2,
        "overlap": pytest.approx(0.5),  # a: 1, b: 0, c: 1/2
        "jaccard": pytest.approx(0.5),
        "rbo": pytest.approx((0.9 + 0 + 1) / 3),  # a: (1 - p) p + p²; c: one list continues the other
        "identical": 0,
        "overlap_by_rank": [pytest.approx(1 / 3), pytest.approx(0.5)],
    }
    assert json.loads((tmp_path / "run-audit" / "audit.json").read_text()) == report


def rbo_by_definition(a, b, p):
    """Extrapolated RBO: agreement beyond the shorter list as if it went on as it was."""
    short, long = sorted((a, b), key=len)
    s, length = len(short), len(long)
    at_s = len(set(short) & set(long[:s]))
    agreement = []
    for d in range(1, length + 1):
        shared = len(set(a[:d]) & set(b[:d]))
        agreement.append(shared / d if d <= s else (shared + at_s * (d - s) / s) / d)
    return (1 - p) / p * sum(x * p**d for d, x in enumerate(agreement, 1)) + agreement[-1] * p**length


def plain(world, degrees, other, k, cut):
    """The report's numbers, straight from their definitions."""
    scores = [s for row in world.values() for _, s in row]
    best = [max(s for _, s in row) for row in world.values() if row]
    appear = {i: sum(i == j for row in world.values() for j, _ in row) for i in world}
    pairs = {(i, j) for i, row in world.items() for j, _ in row}
    spread = [abs(x - y) for x in appear.values() for y in appear.values()]
    n, edges, lengths = len(world), sum(degrees.values()), [len(row) for row in world.values()]
    arp = [np.mean([degrees[j] for j, _ in row]) for row in world.values() if row]
    varies = len(set(appear.values())) > 1 and len(set(degrees.values())) > 1
    top = []
    for share in (0.01, 0.1):
        count = math.ceil(share * n)
        bound = sorted(degrees.values())[-count]
        tied = [i for i in world if degrees[i] == bound]
        above = [i for i in world if degrees[i] > bound]
        part = (count - len(above)) / len(tied)
        weight = {i: 1 if i in above else part if i in tied else 0 for i in world}
        top.append(
            (
                sum(w * appear[i] for i, w in weight.items()) / len(pairs) if pairs else None,
                sum(w * degrees[i] for i, w in weight.items()) / edges if edges else None,
            )
        )
    listed_in_both = [(row, other[i]) for i, row in world.items() if row and other.get(i)]
    listed_in_both = [([j for j, _ in a], [j for j, _ in b]) for a, b in listed_in_both]
    depth = max((len(row) for pair in listed_in_both for row in pair), default=0)

    def overlap(a, b, d):
        return len(set(a[:d]) & set(b[:d])) / min(d, max(len(a), len(b)))

    def mean(values):
        return np.mean(values) if values else None

    return {
        "share": mean([bool(row) for row in world.values()]),
        "histogram": [lengths.count(m) for m in range(1 + max(lengths))],
        "quantiles": [np.quantile(scores, q, method="inverted_cdf") for q in (0.05, 0.5, 0.9) if scores],
        "best": [len(best), min(best, default=None), mean(best), max(best, default=None)],
        "above": [sum(s > cut for s in scores), sum(s > cut for s in best)],
        "appearing": sum(map(bool, appear.values())),
        "gini": sum(spread) / 2 / n**2 / (sum(appear.values()) / n) if pairs else None,
        "reciprocity": mean([(j, i) in pairs for i, j in pairs]),
        "spearman": stats.spearmanr(list(degrees.values()), list(appear.values()))[0] if varies else None,
        "arp": mean(arp),
        "by_edge": sum(d * d for d in degrees.values()) / edges if edges else None,
        "top": top,
        "lists_in_both": len(listed_in_both),
        "overlap": mean([overlap(a, b, k) for a, b in listed_in_both]),
        "jaccard": mean(
            [len(set(a[:k]) & set(b[:k])) / len(set(a[:k]) | set(b[:k])) for a, b in listed_in_both]
        ),
        "rbo": mean([rbo_by_definition(a, b, 0.9) for a, b in listed_in_both]),
        "identical": mean([a[:k] == b[:k] for a, b in listed_in_both]),
        "by_rank": [mean([overlap(a, b, d) for a, b in listed_in_both]) for d in range(1, depth + 1)],
    }  # fmt: skip


def told(report):
    """The same of the report."""
    popularity, agree, best = report["popularity"], report["agreement"], report["scores"]["best"]
    quantiles = report["scores"]["all"]["quantiles"]
    return {
        "share": report["coverage"]["share"],
        "histogram": report["lists"]["histogram"],
        "quantiles": [quantiles[q] for q in ("0.05", "0.5", "0.9") if quantiles],
        "best": [best[name] for name in ("count", "min", "mean", "max")],
        "above": [report["thresholds"][0][name] for name in ("neighbors", "ids")],
        **{name: popularity[name] for name in ("appearing", "gini", "reciprocity", "spearman", "arp")},
        "by_edge": popularity["mean_degree_by_edge"],
        "top": [(row["appearances_share"], row["edges_share"]) for row in popularity["top"]],
        **{name: agree[name] for name in ("lists_in_both", "overlap", "jaccard", "rbo", "identical")},
        "by_rank": agree["overlap_by_rank"],
    }


def same(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b if a is None or b is None else a == pytest.approx(b, rel=1e-9, abs=1e-12)


@st.composite
def worlds(draw):
    """{id: list}, as the job would write it, and another world that shares some of the ids."""
    kind, name = draw(st.sampled_from([(pl.String, "i{:02d}"), (pl.Int16, None), (pl.UInt64, None)]))
    drawn_worlds = []
    for _ in range(2):
        numbers = draw(st.sets(st.integers(0, 11), min_size=2, max_size=9)) | {0}
        ids = [name.format(n) if name else n for n in sorted(numbers)]
        world = {}
        for i in ids:
            values = draw(st.dictionaries(st.sampled_from(ids), st.sampled_from([0.1, 0.25, 1.0, 7.0])))
            row = [(j, float(np.float32(s))) for j, s in values.items() if j != i]
            world[i] = sorted(row, key=lambda pair: (-pair[1], pair[0]))
        drawn_worlds.append(world)
    degrees = {i: draw(st.integers(bool(row), 9)) for i, row in drawn_worlds[0].items()}
    return kind, *drawn_worlds, degrees


@settings(max_examples=60)
@given(worlds(), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.5, 1.0, 9.0]))
def test_random_outputs_agree_with_plain_python(drawn, k, threshold):
    kind, world, other, degrees = drawn
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        skip_figures(patch)
        patch.setattr(lists, "BATCH", 2)
        patch.setattr(agreement, "CELLS", 20)
        run = write(Path(folder) / "run", world, degrees, kind)
        second = write(Path(folder) / "other", other, None, kind, parts=1)
        report = audit(run, other=second, k=k, threshold=threshold)
        assert report["problems"] == []
        expected, actual = plain(world, degrees, other, k, np.float32(threshold)), told(report)
        assert {name for name in expected if not same(expected[name], actual[name])} == set()
        rows = report["by_degree"]
        for row in rows:
            inside = [i for i in world if row["from"] <= degrees[i] <= row["to"]]
            assert row["ids"] == len(inside) > 0
            assert row["covered"] == sum(bool(world[i]) for i in inside)
            assert row["edges"] == sum(degrees[i] for i in inside)
            assert row["appearances"] == sum(j in inside for r in world.values() for j, _ in r)
        assert sum(row["ids"] for row in rows) == len(world)
        histogram = report["scores"]["histogram"]
        edges = histogram["edges"]
        scores = [s for row in world.values() for _, s in row]
        bins = list(zip(edges[:-1], edges[1:], strict=True))
        inside = [sum(low <= s < high for s in scores) for low, high in bins]
        if scores:
            inside[-1] += scores.count(max(scores))
            assert [edges[0], edges[-1]] == [min(scores), max(scores)]
        assert histogram["all"] == inside and sum(histogram["best"]) == sum(map(bool, world.values()))


def test_rank_biased_overlap_has_its_limits():
    same_lists = np.arange(1, 8)[None]
    assert rank_biased_overlap(same_lists, np.array([7]), np.array([7])) == pytest.approx(1)
    assert rank_biased_overlap(0 * same_lists, np.array([3]), np.array([7])) == 0
    # Two lists of four of which only the first agree: (1 - p) (1 + p/2 + p²/3 + p³/4) + p⁴ / 4.
    p = 0.9
    value = rank_biased_overlap(np.ones((1, 4), np.int32), np.array([4]), np.array([4]), p)
    assert value == pytest.approx((1 - p) * (1 + p / 2 + p**2 / 3 + p**3 / 4) + p**4 / 4)


def test_bins_of_scores_grow_by_one_ratio(tmp_path, no_figures):
    """Powers of two from the least to the greatest score: each bin begins with one, the last ends too."""
    ids = [f"{n:02d}" for n in range(42)]
    row = [(ids[41 - n], 2.0**n) for n in range(40, -1, -1)]
    write(tmp_path / "run", {i: row if i == "00" else [] for i in ids})
    histogram = audit(tmp_path / "run")["scores"]["histogram"]
    assert histogram["edges"] == [2.0**n for n in range(41)]
    assert histogram["all"] == [1] * 39 + [2] and histogram["best"] == [0] * 39 + [1]


def test_a_neighbour_named_twice_counts_once(tmp_path, no_figures):
    world = WORLD | {"a": [("b", 2.0), ("b", 1.5), ("c", 1.0)]}
    run = write(tmp_path / "run", world, DEGREES)
    other = write(tmp_path / "other", {"a": [("b", 1.0), ("c", 0.5), ("e", 0.1)], "e": []})
    assert audit(run, other=other)["agreement"]["overlap_by_rank"] == pytest.approx([1, 1 / 2, 2 / 3])


def test_without_a_threshold_quantiles_are_told(run, no_figures):
    rows = audit(run)["thresholds"]
    assert [(row["quantile"], row["threshold"], row["neighbors"], row["ids"]) for row in rows] == [
        (0.1, 0.5, 4, 3), (0.25, 1.0, 2, 2), (0.75, 2.0, 0, 0)
    ]  # fmt: skip


def test_without_degrees_the_rest_is_told(tmp_path, no_figures):
    report = audit(write(tmp_path / "run", WORLD))
    assert report["problems"] == [] and report["by_degree"] == []
    assert report["notes"] == [
        "nothing is reported by degree: degrees.arrow is missing; do the run again to have it"
    ]
    assert report["popularity"]["gini"] == pytest.approx(0.48) and "arp" not in report["popularity"]


def test_unknown_neighbours_stay_out_of_the_numbers(tmp_path, no_figures):
    dirty = WORLD | {"b": [("z", 9.0), ("a", 2.0), ("z", 1.0)], "d": [("y", 3.0)]}
    clean, damaged = (
        audit(write(tmp_path / name, world, DEGREES)) for name, world in (("c", WORLD), ("d", dirty))
    )
    assert damaged["popularity"] == clean["popularity"]
    assert damaged["lists"]["histogram"] == [1, 1, 2, 1]


def test_ids_of_another_width_are_the_same_ids(tmp_path, no_figures):
    small = {1: [(2, 1.0)], 2: [(1, 1.0)], 3: []}
    wide = small | {3: [(2**40, 1.0)], 2**40: []}
    write(tmp_path / "small", small, kind=pl.Int8)
    write(tmp_path / "wide", wide, kind=pl.Int64)
    agreement = audit(tmp_path / "small", other=tmp_path / "wide")["agreement"]
    assert agreement["ids"]["both"] == 3 and agreement["lists_in_both"] == 2 and agreement["overlap"] == 1
