"""`dlrrec experiment leakage`: its groups, differences of cells on other rows, and a run at the tiny size."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import load_config
from dlrrec_torchrec.experiments.cells import check_experiment
from dlrrec_torchrec.experiments.definitions import Options
from dlrrec_torchrec.experiments.eight_leaks import SCENARIOS
from dlrrec_torchrec.experiments.gathered import pooled
from dlrrec_torchrec.experiments.leakage_experiment import CHOSEN_ON, CHOSEN_ON_TEST, QUICK, leakage
from dlrrec_torchrec.metrics import binary_metrics, sigmoid

TABLE = {"ingest.source": "table", "ingest.columns": {"user": "u", "item": "i", "rating": "r", "text": "t"}}


def test_every_leak_stands_alone_beside_the_clean_cells():
    base = load_config(None, {"ingest.size": "tiny"})
    experiment = leakage(Options({"tiny": base}, seeds=2))
    check_experiment(experiment)
    levels = [group.levels_of(cell) for group, cell in experiment.cells()]
    assert {level["leak"] for level in levels if level[CHOSEN_ON] == "validation"} == set(SCENARIOS)
    assert {level["leak"] for level in levels if level[CHOSEN_ON] == "test"} == set(CHOSEN_ON_TEST)
    assert {level["objective"] for level in levels} == {"BCE", "BCE + contrastive"}
    assert all(group.make is not None and not group.config.prepare.affinity for group in experiment.groups)
    assert len({group.name for group in experiment.groups}) == len(experiment.groups)
    for group in experiment.groups:  # (e) is a matter of the training
        assert (group.config.protocol == "paper") == (group.levels[CHOSEN_ON] == "test")


def test_a_row_for_each_picture_needs_pictures():
    experiment = leakage(Options({"shop": load_config(None, TABLE)}, protocols=("strict",)))
    names = {group.levels["leak"] for group in experiment.groups}
    assert names == {name for name, scenario in SCENARIOS.items() if not scenario.pictures}
    assert any("come without pictures" in note for note in experiment.notes)
    pictured = load_config(None, TABLE | {"ingest.columns": TABLE["ingest.columns"] | {"images": "p"}})
    assert len(leakage(Options({"shop": pictured}, protocols=("strict",))).groups) == len(SCENARIOS)


def test_the_command_lines_settings_hold():
    base = load_config(None, {"ingest.size": "tiny", "train.epochs": 3, "prepare.text": "summary"})
    experiment = leakage(Options({"tiny": base}, given=("train.epochs", "prepare.text")))
    assert {(g.config.train.epochs, g.config.prepare.text) for g in experiment.groups} == {(3, "summary")}
    quick = leakage(Options({"tiny": base}, quick=True))
    assert {group.levels["leak"] for group in quick.groups} == set(QUICK)


@st.composite
def cells(draw):
    """A cell of 4 to 12 rows with both labels; users may have several."""
    rows = draw(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-6, 6)), min_size=4, max_size=12))
    label = draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows)))
    label[0], label[1] = 0, 1
    user, logit = zip(*rows, strict=True)
    item = [str(n) for n in range(len(rows))]
    arrays = {"user": user, "item": item, "label": np.array(label, float), "logit": np.array(logit) / 2}
    return {name: np.asarray(values) for name, values in arrays.items()}


def metric_of(cell, metric, times=None):
    """The metric of a cell whose users count so often, by repeating their rows."""
    often = np.ones(len(cell["user"]), int) if times is None else np.array([times[u] for u in cell["user"]])
    label, logit = np.repeat(cell["label"], often), np.repeat(cell["logit"], often)
    return binary_metrics(label, sigmoid(logit), score=logit)[metric]


@given(cells(), cells(), st.sampled_from(["accuracy", "fpr", "auc", "loss"]), st.integers(0, 100))
@settings(max_examples=40)
def test_cells_on_other_rows_are_compared_by_their_metrics(first, second, metric, seed):
    seeds, interval = pooled(metric, [(first, second)], 20)
    assert seeds == [pytest.approx(metric_of(first, metric) - metric_of(second, metric), abs=1e-6)]
    assert interval.difference == pytest.approx(seeds[0])
    drawn = []
    names = sorted({*first["user"], *second["user"]})
    for draw in range(20):
        chosen = np.random.default_rng((0, draw)).integers(0, len(names), len(names))
        times = dict(zip(names, np.bincount(chosen, minlength=len(names)), strict=True))
        drawn.append(metric_of(first, metric, times) - metric_of(second, metric, times))
    drawn = np.array(drawn)[np.isfinite(drawn)]
    if len(drawn):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_the_tiny_experiment_makes_its_table_and_goes_on_where_it_stopped(tmp_path, capsys):
    call = ["experiment", "leakage", "--quick", "--protocol", "strict", "--out", str(tmp_path / "out")]
    call += ["--epochs", "2", "--no-progress"]
    assert main(call) == 0
    told = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in table for name in QUICK) and "(h) the same review" in table
    with open(tmp_path / "out" / "differences.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    compared = {(row["level"], row["metric"]) for row in rows if row["factor"] == "leak"}
    assert compared == {(name, m) for name in set(QUICK) - {"clean"} for m in ("accuracy", "fpr", "auc")}
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in rows)
    assert "0 of 8 done" in told and main(call) == 0
    assert "8 of 8 done" in capsys.readouterr().out
    group = tmp_path / "out" / "groups" / "adh-strict"
    assert main(["audit", "leakage", "--run-dir", str(group), "--no-trees"]) == 1
    told = capsys.readouterr().out
    assert all(f"({leak}) open" in told for leak in "adh") and "(b) closed" in told
