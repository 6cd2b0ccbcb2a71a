"""What is measured on a GPU, as far as a CPU shows it: counted operations, training steps, the script."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from dlrrec_torchrec.benchmarks import gpu
from dlrrec_torchrec.benchmarks.cases import TrainCase
from dlrrec_torchrec.benchmarks.embeddings.traffic import memory_needed
from dlrrec_torchrec.benchmarks.step.batches import random_data, shards_data
from dlrrec_torchrec.benchmarks.step.roofline import Counter, peaks
from dlrrec_torchrec.benchmarks.step.trainings import Project, case_spec, random_spec
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import write_shards

CPU = torch.device("cpu")


def test_operations_are_counted():
    """A linear layer and its backward pass by hand: 2·m·k·n operations each way, views are free."""
    x, w = torch.rand(5, 7), torch.rand(7, 3, requires_grad=True)
    with Counter() as counter:
        (x @ w).t().sum().backward()
    products = [(flops, moved) for name, flops, moved in counter.operations if name == "aten.mm"]
    forward, backward = 2 * 5 * 7 * 3, 2 * 7 * 5 * 3
    assert products == [(forward, 4 * (35 + 21 + 15)), (backward, 4 * (35 + 15 + 21))]
    assert counter.flops == forward + backward
    names = {name for name, _, _ in counter.operations}
    assert "aten.sum" in names and not names & {"aten.t", "aten.expand", "aten.transpose"}


def test_gathers_move_what_they_give_back():
    table = torch.rand(1000, 4)
    with Counter() as counter:
        table.index_select(0, torch.tensor([1, 5, 5]))
        torch.empty(100).add_(1)
    assert counter.operations == [("aten.index_select", 0, 2 * 3 * 4 * 4), ("aten.add_", 0, 2 * 100 * 4)]
    counter.operations = [("a", 100, 10), ("b", 10, 100)]
    assert counter.seconds(flops_per_second=50, bytes_per_second=20) == 100 / 50 + 100 / 20
    assert counter.bytes == 110


@pytest.fixture
def alone():
    with quiet(), process_group("cpu") as ranks:
        yield ranks


def test_random_batches_have_the_form_of_real_ones(alone, tmp_path):
    """Both are trained on, with counts of operations that follow from the model."""
    case, flops = TrainCase(batch=32, negatives=8, users=30, items=20), {}
    shards = write_shards(tmp_path, rows=(90, 5, 5), users=30, items=20)
    data = {
        "random": random_data(random_spec(case), 32, 3),
        "shards": shards_data(shards, case_spec(case, ShardFacts.read(shards)), 32, 3),
    }
    assert data["shards"].spec.facts.users == 30 and len(data["shards"].batches) == 2
    real, drawn = (data[name].batches[0] for name in ("shards", "random"))
    for field in dataclasses.fields(real):
        ours, theirs = getattr(drawn, field.name), getattr(real, field.name)
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype and ours.shape[0] == theirs.shape[0], field.name
    assert real.dense.shape == drawn.dense.shape and real.sparse.keys() == drawn.sparse.keys()

    for name, weight in itertools.product(data, (0.1, 0.0)):
        project = Project(case, data[name], weight, alone)
        flops[name, weight] = project.counted_step(data[name].batches[0]).flops
    assert flops["random", 0.0] == flops["shards", 0.0] > 0
    # Of positives and negatives the distinct ones pass the towers, at most one for each use.
    for name in data:
        assert flops[name, 0.0] < flops[name, 0.1] < 2.5 * flops[name, 0.0]
    with pytest.raises(DataError, match="fewer than 91 training rows"):
        shards_data(shards, data["shards"].spec, 91, 1)


def test_the_script_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    out, printed = capsys.readouterr()
    assert not out and "no GPU" in printed and "--device cpu" in printed


def test_the_script_on_a_cpu(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body == json.loads((tmp_path / "gpu.json").read_text())
    assert set(body["headline"]) == {"forward", "backward"}
    assert body["headline"]["forward"]["published"] == 0.647
    cases = gpu.embedding_cases(gpu.CPU_SIZES, "cpu", 1 << 30)
    assert list(body["embeddings"]) == list(cases)
    assert all(result["check"] and result["ratio"] for result in body["embeddings"].values())
    assert list(body["training"]) == ["batch_64"]
    sides = body["training"]["batch_64"]["sides"]
    assert all(sides[name]["roofline"]["share"] > 0 for name in ("dlrrec", "bce")) and "plain bce" in sides
    assert body["peaks"]["fp32"].keys() == {"bytes_per_second", "flops_per_second"}


@pytest.mark.parametrize("memory", [24 << 30, 141 << 30])
def test_gpu_sizes_fit_the_gpu(memory):
    for name, case in gpu.embedding_cases(gpu.GPU_SIZES, "cuda", memory).items():
        if case.kernel == "fused":
            assert memory_needed(case) < 0.6 * memory, name
        row = case.dim * (2 if case.dtype == "fp16" else 4)
        assert case.lookups * row >= 128 << 20, f"{name}: more than the caches hold"
    large = gpu.embedding_cases(gpu.GPU_SIZES, "cuda", memory)["large_low_reuse"]
    assert large.rows * large.tables > 8 * large.lookups, "little is used again"


def test_what_fails_or_has_no_time_left_costs_no_other_part(monkeypatch, capsys):
    def broken(*_, **__):
        raise ValueError("out of order")

    monkeypatch.setattr(gpu.train_step, "run", broken)
    assert gpu.main(["--device", "cpu"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert {part["error"] for part in body["training"].values()} == {"ValueError: out of order"}
    assert all("sides" in part for part in body["embeddings"].values())

    assert gpu.main(["--device", "cpu", "--budget", "0"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert all(
        "skipped" in part for key in ("peaks", "embeddings", "training") for part in body[key].values()
    )
    assert body["headline"] == {}


def test_peaks_are_positive():
    reached = peaks(CPU, copy_mib=1, matrix=32, rounds=2)
    assert min(reached.values()) > 0
