"""The training benchmark: its sides compute the same, its parts add up, its ratios are the rounds'."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from dlrrec_torchrec import cli
from dlrrec_torchrec.benchmarks.cases import TrainCase
from dlrrec_torchrec.benchmarks.step import measure, parts, plain, trainings
from dlrrec_torchrec.benchmarks.step.batches import random_data
from dlrrec_torchrec.benchmarks.step.measure import run
from dlrrec_torchrec.benchmarks.step.parts import FORWARD, PARTS
from dlrrec_torchrec.benchmarks.step.trainings import Plain, Project, Rows, check, random_spec
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.store.errors import DataError

SMALL = {"batch": 48, "negatives": 12, "users": 40, "items": 30}
FLAGS = ["--batch", "32", "--negatives", "8", "--users", "40", "--items", "30", "--threads", "1"]
FLAGS += ["--rounds", "2", "--warmup", "0", "--steps", "2"]


@pytest.fixture
def alone():
    with quiet(), process_group("cpu") as ranks:
        yield ranks


@pytest.mark.parametrize(
    "modalities", [["user_text", "item_text", "item_image"], ["item_image", "user_text"]]
)
def test_both_sides_compute_the_same(alone, modalities):
    """Few entities, so that drawn negatives are neighbours; some rows have no positive."""
    for seed in range(3):
        found = check(TrainCase(**SMALL, modalities=modalities, seed=seed), alone)
        assert found["before"] < 1e-5 and found["after"] < 1e-3


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("_refused", staticmethod(lambda c, n, drawn, e: torch.zeros(len(c), len(drawn), dtype=torch.bool))),
        ("_info_nce", lambda self, side, number, batch, reduced: torch.tensor(1.0)),
    ],
)
def test_a_reference_of_another_model_is_refused(alone, monkeypatch, what, wrong):
    monkeypatch.setattr(plain.PlainTraining, what, wrong)
    with pytest.raises(DataError, match="differ before the first update"):
        check(TrainCase(**SMALL), alone)


def test_an_update_that_differs_is_refused(alone, monkeypatch):
    monkeypatch.setattr(trainings, "LR", 0.01)
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    with pytest.raises(DataError, match="differ after the first update"):
        check(TrainCase(**SMALL), alone)


def event(name, time, *children):
    """A profiler's event: microseconds on the CPU, twice as many on the GPU."""
    made = SimpleNamespace(name=name, cpu_time_total=time, device_time_total=2 * time)
    made.cpu_children, made.device_type = list(children), torch.autograd.DeviceType.CPU
    return made


def test_a_part_is_its_region_without_those_inside():
    tower, other = event("towers", 20, event("aten::mm", 15)), event("towers of positives, negatives", 8)
    contrast = event("contrastive", 30, event("aten::cat", 9, other))
    forward = event("forward", 70, tower, event("wrapped", 40, contrast))
    every = event("all", 200, event("copy", 5), forward, event("backward", 80), event("optimizer", 10))
    events = [every, *every.cpu_children, tower, contrast, other, event("aten::add", 3)]
    for on_gpu in (False, True):
        found = parts.sums(events, on_gpu, steps=2)
        wanted = dict.fromkeys(PARTS, 0) | {"copy": 5, "towers": 20, "contrastive": 22, "backward": 80}
        wanted |= {"towers of positives, negatives": 8, "optimizer": 10, "rest of forward": 20, "rest": 35}
        for name, time in wanted.items():
            assert found[name]["share"] == pytest.approx(time / 200)
            assert found[name]["seconds"] == pytest.approx((2 if on_gpu else 1) * time / 2 / 1e6)


def test_every_part_of_a_step_is_found(alone):
    case = TrainCase(**SMALL)
    data = random_data(random_spec(case), 48, 2)
    project, rows = Project(case, data, 0.1, alone), Rows(data.batches, 2, 1)
    project.epoch(rows, 1)
    found = parts.profiled(project.assembly.wrapper, alone.device, 2, lambda: project.once_more(rows))
    assert list(found) == list(PARTS)
    assert all(found[name]["seconds"] > 0 for name in (*FORWARD, "copy", "backward", "optimizer"))
    assert sum(part["share"] for part in found.values()) == pytest.approx(1)
    modules = [
        project.assembly.wrapper.model.sparse_arch,
        *project.assembly.wrapper.model.dense_arch.towers.values(),
    ]
    assert not any("forward" in vars(module) for module in modules)  # as before


def test_the_command(tmp_path, capsys):
    assert cli.main(["bench", "train", *FLAGS, "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "new" / "train.json").read_text())
    assert report["benchmark"] == "train" and report["steps"] == 2 and report["ranks"]["threads"] == 1
    assert list(report["sides"]) == ["dlrrec", "bce", "plain dlrrec", "plain bce"]
    for name, side in report["sides"].items():
        assert side["samples_per_second"]["p10"] <= 32 / side["seconds"]["median"] * (1 + 1e-9)
        assert side["samples_per_second"]["p90"] >= 32 / side["seconds"]["median"] * (1 - 1e-9)
        assert 0 <= side["data_wait"]["median"] < 1 and name in said
    assert sorted(report["ratio"]) == ["bce", "contrastive", "dlrrec", "plain contrastive"]
    assert report["check"]["before"] < 1e-5
    assert all(name in said for name in PARTS)
    assert (tmp_path / "new" / "train.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_of_the_same_round(alone, monkeypatch):
    """By a clock that says how long each side takes: 1, 2, 3, 4 seconds, then twice as long."""
    now, took = [0.0], iter([1, 2, 3, 4, 2, 4, 6, 8, 0])

    def epoch(self, rows, number):
        now[0] += next(took)

    monkeypatch.setattr(Project, "epoch", epoch)
    monkeypatch.setattr(Plain, "epoch", epoch)
    monkeypatch.setattr(measure, "check", lambda case, ranks: {})
    monkeypatch.setattr(measure, "profiled", lambda *given: {})
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    reached = {"bytes_per_second": 1e9, "flops_per_second": 1e10}
    report = run(TrainCase(**SMALL, rounds=2, warmup=0, steps=2), reached=reached)
    medians = {name: value["median"] for name, value in report["ratio"].items()}
    assert medians == {"contrastive": 1 / 2, "dlrrec": 3, "bce": 2, "plain contrastive": 3 / 4}
    assert report["ratio"]["dlrrec"]["p10"] == report["ratio"]["dlrrec"]["p90"]
    assert report["sides"]["bce"]["seconds"]["median"] == (2 + 4) / 2 / 2
    for name in ("dlrrec", "bce"):
        side = report["sides"][name]
        bound, floor = side["roofline"], side["floor"]
        assert bound["seconds"] >= max(bound["flops"] / 1e10, bound["bytes"] / 1e9)
        assert bound["share"] == pytest.approx(bound["seconds"] / side["seconds"]["median"])
        assert 0 < floor["bytes"] < bound["bytes"] and floor["seconds"] < bound["seconds"]
    assert "roofline" not in report["sides"]["plain bce"] and report["peaks"] == reached


def test_end_to_end_with_the_loader(tmp_path, capsys):
    flags = [*FLAGS, "--loader", "--rows", "100", "--keep", str(tmp_path / "kept"), "--reference", "none"]
    assert cli.main(["bench", "train", *flags, "--json", "--out", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 3 and list(report["sides"]) == ["dlrrec", "bce"] and report["check"] is None
    assert report["sides"]["dlrrec"]["data_wait"]["median"] > 0
    assert cli.main(["bench", "train", *flags, "--batch", "128", "--out", str(tmp_path)]) == 2
    assert "fewer than 128 training rows" in capsys.readouterr().err


def test_what_cannot_be_measured():
    for wrong, match in (
        ({"batch": 1}, "--batch: 1"),
        ({"modalities": ["user_text"]}, "one of users and one of items"),
        ({"modalities": ["x"]}, "--modalities: .x. must begin"),
    ):
        with pytest.raises(DataError, match=match):
            TrainCase(**wrong)


def test_more_negatives_than_entities_are_refused():
    with pytest.raises(DataError, match="--negatives 31: .*--users 40 and --items 30"):
        TrainCase(**SMALL | {"negatives": 31})
