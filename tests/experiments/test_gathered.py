"""The mathematics of an experiment's tables, against plain loops; and what is said of the numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.evaluation.intervals import Interval
from dlrrec_torchrec.experiments.definitions import ANY, Contrast, Experiment
from dlrrec_torchrec.experiments.findings import findings, signed, where
from dlrrec_torchrec.experiments.gathered import Difference, Outcome, Results, pooled
from dlrrec_torchrec.experiments.measures import measured_values
from dlrrec_torchrec.experiments.pages import difference_rows, html, markdown, table, write_results
from dlrrec_torchrec.metrics import binary_metrics, roc_auc, sigmoid

DRAWS = 40
FACTS = {
    "test": {"tp": 3, "fp": 1, "tn": 5, "fn": 1, "auc": 0.7},
    "train": {},
    "content": {"recall@20": 0.25, "ndcg@20": None},
    "parameters": {"dense": 10, "tables": 6, "bytes": 64},
    "baseline_auc": 0.6,
    "best_epoch": 3,
    "epochs": 7,
    "seconds": 1.5,
    "peak_mib": 100.0,
}


def cell(rng, users, rows, label=None, user=None):
    """A cell's predictions."""
    return {
        "user": rng.choice([f"u{n}" for n in range(users)], rows) if user is None else user,
        "item": np.arange(rows).astype(str),
        "label": (rng.random(rows) < 0.6).astype(float) if label is None else label,
        "logit": rng.integers(-3, 4, rows) / 2,
    }


def metric_of(name, rows):
    """One metric of rows (label, logit), by the function that the table's numbers come from."""
    label, logit = (np.array(column, float) for column in zip(*rows, strict=True))
    if name == "auc":
        return roc_auc(label, logit)
    return binary_metrics(label, sigmoid(logit))[name]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["auc", "accuracy", "fpr", "loss"]))
@settings(max_examples=25)
def test_a_pooled_interval_is_that_of_rows_that_are_drawn_one_by_one(seed, metric):
    """Users are drawn with their rows of all repeats; a draw that is undefined does not count."""
    rng = np.random.default_rng(seed)
    repeats = []
    for _ in range(int(rng.integers(1, 4))):
        one = cell(rng, 5, int(rng.integers(4, 20)))
        repeats.append((one, cell(rng, 5, len(one["user"]), one["label"], one["user"])))
    seeds, interval = pooled(metric, repeats, DRAWS)
    names = sorted({name for one, _ in repeats for name in one["user"].tolist()})

    def difference(times):
        gaps = []
        for pair in repeats:
            values = []
            for of in pair:
                rows = [
                    row
                    for name, *row in zip(of["user"], of["label"], of["logit"], strict=True)
                    for _ in range(times[name])
                ]
                values.append(metric_of(metric, rows) if rows else np.nan)
            gaps.append(values[0] - values[1])
        return gaps

    own = difference(dict.fromkeys(names, 1))
    assert seeds == pytest.approx(own, nan_ok=True, abs=1e-12)
    assert interval.difference == pytest.approx(np.mean(own), nan_ok=True, abs=1e-12)
    drawn = []
    for draw in range(DRAWS):
        chosen = np.random.default_rng((0, draw)).integers(0, len(names), len(names)).tolist()
        drawn.append(np.mean(difference({name: chosen.count(k) for k, name in enumerate(names)})))
    drawn = [value for value in drawn if np.isfinite(value)]
    if not drawn or not np.isfinite(interval.difference):
        assert np.isnan(interval.low)
        return
    assert (interval.low, interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)


def test_lists_are_compared_user_by_user():
    one = {"user": np.array(["a", "b"]), "value": np.array([0.5, 0.0])}
    other = {"user": np.array(["a", "b"]), "value": np.array([0.25, 0.5])}
    seeds, interval = pooled("content_recall@20", [(one, other), (other, one)], DRAWS)
    assert seeds == [-0.125, 0.125] and interval.difference == 0


def outcome(levels, auc=(0.7, 0.8), published=None, **values):
    known = {"auc": list(auc), "accuracy": [0.5] * len(auc), "yes": [0.5] * len(auc)}
    known |= {"seconds": [60.0] * len(auc), "peak_mib": [512.0] * len(auc), "parameters": [16] * len(auc)}
    known |= {"baseline_auc": [0.55] * len(auc)}
    known |= {"epoch": [3] * len(auc), "epochs": [7] * len(auc)} | values
    return Outcome(levels, published or {}, known, dict.fromkeys(range(len(auc)), None), 100.0, 0.9)


def results(outcomes, differences=(), missing=None, **experiment):
    made = Experiment(
        **{
            "name": "x",
            "title": "Title <1>",
            "question": "Why?",
            "groups": (),
            "metrics": ("auc", "accuracy"),
            "compared": ("auc",),
            "contrasts": (Contrast("kind", "b"),),
        }
        | experiment
    )
    object.__setattr__(made, "groups", _Groups(outcomes))
    return Results(made, list(outcomes), list(differences), missing or {})


class _Groups(tuple):
    """Groups of cells with the levels of outcomes."""

    def __new__(cls, outcomes):
        return super().__new__(cls, [_Group(outcome.levels) for outcome in outcomes])


class _Group:
    cells = (None,)

    def __init__(self, levels):
        self._levels = levels

    def levels_of(self, _):
        return self._levels


def difference(level="a", low=0.01, high=0.03, mean=0.02, protocol="strict", seeds=(0.01, 0.03), **levels):
    levels = {"kind": level, "protocol": protocol} | levels
    return Difference("kind", level, "b", levels, "auc", list(seeds), Interval(mean, low, high))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_means_and_deviations_are_those_of_the_statistics_module(values):
    of = outcome({}, values)
    assert of.mean("auc") == pytest.approx(statistics.fmean(values))
    assert of.deviation("auc") == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert np.isnan(outcome({}, values[:1]).deviation("auc")) and np.isnan(of.mean("nothing"))
    assert outcome({}, [None, values[0]]).mean("auc") == pytest.approx(values[0])


def test_values_of_a_measured_cell():
    facts = FACTS | {"train": dict.fromkeys(("accuracy", "fpr", "loss", "auc", "user_auc", "auprc"))}
    facts["test"] = FACTS["test"] | dict.fromkeys(("accuracy", "fpr", "loss", "user_auc", "auprc"))
    values = measured_values(facts)
    assert (values["parameters"], values["yes"], values["content_recall@20"]) == (16, 0.4, 0.25)
    assert values["baseline_auc"] == 0.6
    assert values["content_ndcg@20"] is None and values["mebibytes"] == 64 / 2**20


def test_the_table_has_what_varies_published_numbers_and_costs():
    found = results(
        [
            outcome({"kind": "a", "data": "d", "protocol": "paper"}, published={"accuracy": 0.9984}),
            outcome({"kind": "b", "data": "d", "protocol": "strict"}, auc=(None, None)),
        ]
    )
    titles, rows, words = table(found)
    assert titles[:6] == ["kind", "protocol", "AUC", "accuracy", "published", "parameters"] and words == 2
    assert rows[0][:6] == ["a", "paper", "0.750 ± 0.071", "0.500 ± 0.000", "0.9984", "16"]
    assert rows[1][2:5] == ["–", "0.500 ± 0.000", ""]


def test_findings_follow_from_the_numbers():
    outcomes = [
        outcome({"kind": kind, "protocol": "strict"}, yes=share)
        for kind, share in (("a", [0.995, 0.5]), ("b", [0.0, 0.5]))
    ]
    text = " ".join(findings(results(outcomes, [difference()])))
    assert "Protocol strict, AUC, a less b: +0.020 [+0.010, +0.030], higher" in text
    assert "over 2 seeds, 2 of them above zero" in text
    assert "2 of 4 trainings say the same" in text and "(1 no, 1 yes)" in text
    assert "4 trainings took 4.0 minutes in all, 60 to 60 seconds each; peak memory 512 MiB" in text
    assert "Test rows of , protocol strict: 100, 90.0% of them positive" in text
    assert "logistic regression on the dense features alone has AUC 0.550" in text
    assert "With one seed" not in text
    text = " ".join(findings(results(outcomes, [difference(low=-0.01, seeds=(0.02,))])))
    assert "zero is in the interval" in text and "With one seed" in text


def test_many_differences_are_told_by_their_number_and_their_ends():
    outcomes = [outcome({"kind": kind, "w": f"{w}", "protocol": "strict"}) for kind in "ab" for w in range(8)]
    many = [difference(mean=0.01 * w, low=0.01 * w - 0.035, high=1, w=f"{w}") for w in range(8)]
    text = " ".join(findings(results(outcomes, many)))
    assert "of 8 differences 4 exclude zero (4 higher, 0 lower); the ends are w 0 0.000" in text
    assert "; w 7 +0.070" in text and "w 3" not in text


def test_a_gap_to_published_numbers_is_told_by_protocol():
    outcomes = [
        outcome({"kind": kind, "protocol": protocol}, published={"accuracy": 0.9})
        for kind in "ab"
        for protocol in ("paper", "strict")
    ]
    text = " ".join(findings(results(outcomes)))
    assert text.count("Accuracy of 2 cells whose number is published") == 2
    assert "published 0.900 to 0.900, here 0.500 to 0.500; here less published -0.400" in text


@pytest.mark.parametrize(
    ("rows", "positives", "told"),
    [(100.0, 0.9, "have 10 negative ones"), (300.0, 0.05, "have 15 positive ones"), (250.0, 0.9, None)],
)
def test_few_rows_of_one_label_are_told(rows, positives, told):
    """A single negative row makes an interval that says nothing of other negative rows."""
    one = dataclasses.replace(outcome({"kind": "a", "protocol": "strict"}), rows=rows, positives=positives)
    text = " ".join(findings(results([one])))
    assert ("intervals are too narrow" in text) == (told is not None) and (told or "") in text


def test_levels_in_words():
    assert where({"kind": "a", "w": "0.1", "none": ANY}, ["kind", "w", "none"]) == "a, w 0.1"
    assert where({"kind": "a", "w": "0.1"}, ["kind", "w"], without=["kind"]) == "w 0.1"
    assert (signed(0.00049), signed(-0.00049), signed(0.1)) == ("0.000", "0.000", "+0.100")


def test_pages_are_whole_and_escape_what_they_show(tmp_path):
    outcomes = [outcome({"kind": kind, "protocol": "strict"}) for kind in ("<a>", "b")]
    found = results(outcomes, [difference("<a>")], missing={"strict <a>": "loss is NaN"}, notes=("A note.",))
    text = markdown(found, "dlrrec experiment x", "dots")
    assert "```text\ndlrrec experiment x\n```" in text and "![dots](cells.png)" in text
    assert "- A note.\n- strict <a>: not in the table: loss is NaN" in text
    assert "| <a> less b |" in text and "2 cells, 2 seeds, mean ± standard deviation" in text
    page = html(found, "dlrrec experiment x", None)
    assert "<title>Title &lt;1&gt;</title>" in page and "&lt;a&gt;" in page and "<td><a>" not in page
    write_results(found, tmp_path, "dlrrec experiment x")
    names = {"table.md", "index.html", "cells.csv", "differences.csv", "cells.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cells.csv").read_text(encoding="utf-8"))))
    assert [(row["kind"], row["seed"], row["auc"]) for row in rows[:2]] == [
        ("<a>", "0", "0.7"),
        ("<a>", "1", "0.8"),
    ]
    (row,) = difference_rows(found)
    assert (row["level"], row["base"], row["verdict"], row["seeds"]) == ("<a>", "b", "higher", 2)
    assert row["deviation"] == pytest.approx(statistics.stdev([0.01, 0.03]))


def test_nothing_measured_is_still_a_page(tmp_path):
    nothing = Outcome({"kind": "a", "protocol": "paper"}, {}, {}, {}, np.nan, np.nan)
    text = write_results(results([nothing], missing={"a": "failed"}), tmp_path, "x")
    assert "| – |" in text and "not in the table: failed" in text and not (tmp_path / "cells.png").exists()
