"""What is measured of a training: the measures against oracles, records, alarms, traces."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.entities import first_entities, load_entities
from dlrrec_torchrec.metrics import alignment, effective_rank, uniformity
from dlrrec_torchrec.training import observe, probe, steps
from dlrrec_torchrec.training.alarms import SETTLED
from dlrrec_torchrec.training.observe import gradient_norms
from dlrrec_torchrec.training.probe import Probe, open_probe
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import MODALITIES, build, modalities_of, papers_model, write_shards

arrays = st.tuples(st.integers(2, 9), st.integers(1, 6), st.integers(0, 999))

# --- measures ----------------------------------------------------------------------------------------------


@given(arrays)
@settings(max_examples=40)
def test_measures_are_their_definitions(shape):
    rows, width, seed = shape
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(rows, width)).astype(np.float32) for _ in range(2))
    unit_x, unit_y = (torch.nn.functional.normalize(torch.from_numpy(v).double()) for v in (x, y))
    assert alignment(x, y) == pytest.approx(float((unit_x - unit_y).norm(dim=1).pow(2).mean()), abs=1e-9)
    expected = torch.pdist(unit_x).pow(2).mul(-2).exp().mean().log()
    assert uniformity(x) == pytest.approx(float(expected), abs=1e-6)
    values = torch.linalg.svdvals(torch.from_numpy(x).double())
    entropy = torch.distributions.Categorical(probs=values / values.sum()).entropy()
    assert effective_rank(x) == pytest.approx(float(entropy.exp()), rel=1e-6)
    assert 1 - 1e-9 <= effective_rank(x) <= min(rows, width) + 1e-9


def test_measures_at_their_ends():
    assert effective_rank(np.eye(7)) == pytest.approx(7) and effective_rank(np.ones((5, 4))) == pytest.approx(
        1
    )
    assert uniformity(np.ones((5, 4))) == pytest.approx(0) and alignment(np.eye(3), -2 * np.eye(3)) == 4
    assert alignment(np.eye(3), 5 * np.eye(3)) == pytest.approx(0)
    empty = np.zeros((0, 4))
    assert all(math.isnan(v) for v in (effective_rank(empty), uniformity(empty), alignment(empty, empty)))
    assert math.isnan(effective_rank(np.zeros((3, 4))))


def test_gradient_norms_are_torchs():
    names = [
        "m.dense_arch.model.0.weight",
        "m.dense_arch.towers.a.layers.0.weight",
        "m.over_arch.model.0.bias",
    ]
    parameters = {
        name: torch.nn.Parameter(torch.zeros(3, 2)) for name in [*names, "m.weights.item.s", "none"]
    }
    for parameter in list(parameters.values())[:4]:
        parameter.grad = torch.randn(3, 2)
    norms = gradient_norms(parameters)
    each = [float(parameters[name].grad.norm()) for name in names]
    parts = ("grad_norm_dense_arch", "grad_norm_towers", "grad_norm_over_arch")
    assert [norms[part] for part in parts] == pytest.approx(each)
    whole = torch.nn.utils.clip_grad_norm_([p for p in parameters.values() if p.grad is not None], 1e9)
    assert norms["grad_norm"] == pytest.approx(float(whole))


# --- the probe ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("observe") / "shards"
    return write_shards(folder, rows=(300, 60, 20), users=60, items=40)


def model(width: int = 32):
    torch.manual_seed(0)
    shape = ModelConfig(text_tower=[64, width], interaction="dcn")
    return build(shape, users=60, items=40)


def test_first_entities_are_those_of_the_whole(shards):
    whole = load_entities(shards)
    vectors, positives = first_entities(shards, modalities_of(), 25)
    for name in MODALITIES:
        assert np.array_equal(vectors[name], whole.vectors[name][:25])
    listed = whole.items.positives[:25]
    assert np.array_equal(positives["item"], listed[:, : positives["item"].shape[1]])
    assert set(first_entities(shards, modalities_of(["item_text"]), 5)[1]) == {"item"}


def test_the_probe_measures_the_towers_on_entities_and_their_neighbours(shards, monkeypatch):
    whole, towers = load_entities(shards), model().eval()
    whole.vectors["item_image"][3] = 0  # an item without a vector is left out
    every_entity = Probe(
        modalities_of(), whole.vectors, {"item": whole.items.positives, "user": whole.users.positives}
    )
    measured = every_entity.measure(towers)
    vectors = {name: torch.from_numpy(v).float() for name, v in whole.vectors.items()}
    with torch.no_grad():
        reduced = {name: towers.dense_arch.towers[name](v).numpy() for name, v in vectors.items()}
    items = np.array([n for n in range(40) if n != 3])
    joined = np.concatenate([reduced["item_text"], reduced["item_image"]], axis=1)
    near = whole.items.positives[:, 0]
    pairs = np.array([n for n in items if near[n] >= 0 and near[n] != 3])
    assert 0 < len(pairs) < 39
    assert measured["alignment_item"] == pytest.approx(
        alignment(joined[pairs], joined[near[pairs]]), rel=1e-5
    )
    assert measured["uniformity_item"] == pytest.approx(uniformity(joined[items]), rel=1e-5)
    expected = effective_rank(reduced["user_text"])
    assert measured["effective_rank_user_text"] == pytest.approx(expected, rel=1e-5)
    assert towers.train() and every_entity.measure(towers) == measured and towers.dense_arch.training
    monkeypatch.setattr(probe, "SAMPLE", 10)
    few = Probe(modalities_of(), whole.vectors, {"user": whole.users.positives})
    assert few.measure(towers)["effective_rank_user_text"] <= 10


def test_alarms_speak_of_towers_that_lose_the_content(shards):
    entities, towers = open_probe(shards, model()), model()
    vectors = {name: torch.from_numpy(v) for name, v in load_entities(shards).vectors.items()}
    for _ in range(SETTLED):
        towers.dense_arch.reduce(vectors)
    assert not entities.alarms(towers, entities.measure(towers))
    layer = towers.dense_arch.towers["user_text"].layers[-1]
    with torch.no_grad():
        layer.weight[1:] = layer.weight[:1]  # all directions are one
    alarms = entities.alarms(towers, entities.measure(towers))
    assert "effective_rank_user_text" in alarms and not [name for name in alarms if "item" in name]
    assert "the user_text tower's vectors have an effective rank of 1." in str(alarms)
    with torch.no_grad():
        for name in ("item_text", "item_image"):
            towers.dense_arch.towers[name].norm.weight.fill_(1e-4)
            towers.dense_arch.towers[name].norm.bias.fill_(1)  # all items are one point
    alarms = entities.alarms(towers, entities.measure(towers))
    assert "uniformity_item" in alarms and "hardly tell items apart" in alarms["uniformity_item"]


# --- a training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """(folder, what it said) of 12 steps in 2 epochs: a record after every fourth, a trace of three."""
    out = tmp_path_factory.mktemp("trained") / "out"
    settings = TrainConfig(
        epochs=2, batch_size=50, device="cpu", log_steps=4, profile=3, lr=0.003, warmup_steps=9
    )
    with pytest.MonkeyPatch.context() as patched:
        printed = []
        patched.setattr(observe, "SETTLED", 9)
        patched.setattr(probe, "RANK_SHARE", 1.1)  # more than possible
        patched.setattr("rich.console.Console.print", lambda self, *text, **_: printed.extend(text))
        train(papers_model(), ContrastiveConfig(num_negatives=8), settings, "strict", shards, out)
    return out, printed


def test_records_of_steps_can_be_read_as_a_table(trained):
    out, printed = trained
    table = pl.read_ndjson(out / "steps.jsonl")
    assert table["step"].to_list() == [4, 8, 12] and table["epoch"].to_list() == [1, 2, 2]
    assert table["steps"].to_list() == [4, 4, 4] and (table["rows_per_second"] > 0).all()
    assert table["data_wait"].is_between(0, 1).all() and (table["grad_norm"] > 0).all()
    parts = table.select(pl.sum_horizontal(pl.col("^grad_norm_.*$") ** 2).sqrt()).to_series()
    assert (parts <= table["grad_norm"] * 1.0001).all() and (parts > 0.5 * table["grad_norm"]).all()
    assert table["lr"].to_list() == pytest.approx([0.003 * 4 / 9, 0.003 * 8 / 9, 0.003])
    assert table["effective_rank_item_text"].is_between(1, 32).all()
    lines = [line for line in printed if str(line).startswith("step ")]
    assert len(lines) == 3 and "step 8 of 12 · epoch 2 · loss rec 0." in lines[1]


def test_tensorboard_has_the_records_and_the_losses_of_steps(trained):
    out, _ = trained
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    records = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    for name in ("loss_uu", "grad_norm_towers", "data_wait", "alignment_user", "uniformity_item", "lr"):
        scalars = [(s.step, s.value) for s in events.Scalars(f"interval/{name}")]
        assert scalars == [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records]
    losses = [s.value for s in events.Scalars("step/loss_rec")]
    assert records[0]["loss_rec"] == pytest.approx(np.mean(losses[:4]), rel=1e-5)
    assert records[1]["loss_rec"] == pytest.approx(np.mean(losses[6:8]), rel=1e-5)  # of the epoch under way
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ranks = [s.value for s in events.Scalars("epoch/effective_rank_user_text")]
    assert ranks == pytest.approx([e["effective_rank_user_text"] for e in epochs])


def test_a_trace_names_the_regions_of_a_step(trained):
    out, _ = trained
    events = json.loads((out / "profile" / "trace.json").read_text())["traceEvents"]
    named = [e["name"] for e in events if e.get("cat") == "user_annotation"]
    assert {name: named.count(name) for name in steps.REGIONS} == dict.fromkeys(steps.REGIONS, 3)
    assert "aten::addmm" in (out / "profile" / "operations.txt").read_text()


def test_an_alarm_is_said_once_and_not_before_the_training_has_settled(trained):
    _, printed = trained
    alarms = [line for line in printed if str(line).startswith("warning: ")]
    assert "step 0: val has only" in alarms[0] and len(alarms) == 1 + len(MODALITIES)
    assert all("step 12: the " in line for line in alarms[1:])
