"""The embedding benchmark: that both sides compute the same, and what the command writes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrrec_torchrec import cli
from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings import compare as embeddings
from dlrrec_torchrec.benchmarks.embeddings.compare import _slowest, run
from dlrrec_torchrec.benchmarks.embeddings.fbgemm_side import FbgemmTables, make_fused
from dlrrec_torchrec.benchmarks.embeddings.random_ids import make_requests
from dlrrec_torchrec.benchmarks.embeddings.side import RowwiseAdagrad
from dlrrec_torchrec.benchmarks.embeddings.torch_side import TorchBags
from dlrrec_torchrec.benchmarks.embeddings.traffic import traffic
from dlrrec_torchrec.benchmarks.embeddings.verify import verify
from dlrrec_torchrec.benchmarks.format import format_table, varied
from dlrrec_torchrec.benchmarks.timing import Stopwatch, summary
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.store.errors import DataError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = {"tables": 3, "rows": 500, "dim": 8, "pooling": 4, "batch": 16, "device": "cpu", "threads": 1}
TINY |= {"requests": 3, "warmup": 1, "rounds": 3, "copy_mib": 1}
NAMES = {"F": "FbgemmTables", "T": "TorchBags"}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def case(**changes) -> EmbeddingCase:
    return EmbeddingCase(**TINY | changes)


# --- what is compared


@pytest.fixture
def alone():
    with quiet(), process_group("cpu") as ranks:
        yield ranks


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "rowwise_adagrad", "reference": "dense"},
        {"optimizer": "rowwise_adagrad", "dtype": "fp16", "distribution": "zipf"},
        {"optimizer": "sgd", "output": "fp16"},
        {"optimizer": "adam", "kernel": "dense"},
        {"optimizer": "rowwise_adagrad", "kernel": "dense", "dtype": "fp16"},
        {"optimizer": "rowwise_adagrad", "sharding": "table_wise"},
        {"optimizer": "sgd", "sharding": "column_wise"},
        {"optimizer": "adam", "sharding": "data_parallel", "kernel": "dense", "reference": "dense"},
    ],
    ids=lambda c: "-".join(c.values()),
)
def test_both_sides_compute_the_same(alone, changes):
    """Directly, side by side, over more steps than the benchmark's own check."""
    bench_case = case(**changes)
    requests = make_requests(bench_case, CPU)
    sides = make_fused(bench_case, alone), TorchBags(bench_case, CPU)
    before = [part.values.clone() for part in sides[1].parts()]
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if "fp16" in changes.values() else {"atol": 1e-5, "rtol": 1e-5}
    for ids in requests.ids:
        joined = []
        for side in sides:
            sums = side.forward(side.ready(ids))
            joined.append(side.joined(sums).detach().float())
            side.backward(sums, side.apart(requests.gradient, sums))
        assert joined[0].shape == (16, 3 * 8)
        torch.testing.assert_close(*joined, **tolerance)
    touched = [requests.ids[:, table].unique() for table in range(3)]
    for fast, plain in zip(*(side.parts() for side in sides), strict=True):
        torch.testing.assert_close(fast.values, plain.values, **tolerance)
        moved = (fast.values != before[fast.table]).any(1).nonzero().squeeze(1)
        assert moved.tolist() == touched[fast.table].tolist()


def test_the_check_passes_what_is_right(alone):
    bench_case = case(optimizer="sgd")
    sides = {"fbgemm": make_fused(bench_case, alone), "torch": TorchBags(bench_case, CPU)}
    checked = verify(bench_case, alone, sides, make_requests(bench_case, CPU))
    for errors in checked.values():
        assert 0 <= errors["sums"] < 1e-6 and 0 < errors["updates"] < 1e-5


class Wrong(TorchBags):
    """A side with one fault."""

    fault = ""

    def forward(self, inputs):
        sums = super().forward(inputs)
        return [s * 1.001 for s in sums] if self.fault == "sums" else sums

    def backward(self, sums, gradients):
        factor = 1.001 if self.fault == "updates" else 1
        super().backward(sums, [g * factor for g in gradients])
        if self.fault == "stray":
            self._bags[1].weight.data[self.free, 0] += 1e-6


@pytest.mark.parametrize("fault", ["sums", "updates", "stray"])
def test_the_check_finds_what_is_wrong(alone, fault):
    bench_case = case(optimizer="sgd")
    requests = make_requests(bench_case, CPU)
    side = Wrong(bench_case, CPU)
    side.fault = fault
    side.free = next(r for r in range(500) if r not in set(requests.ids[:2, 1].flatten().tolist()))
    with pytest.raises(DataError, match="torch computes wrong results"):
        verify(bench_case, alone, {"torch": side}, requests)


@given(st.booleans(), st.integers(0, 100))
@settings(max_examples=20)
def test_rowwise_adagrad_is_torchrecs(sparse, seed):
    """TorchRec's has dense gradients only; a sparse one says the same in other words."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(6, 4, generator=draw)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = RowwiseAdagrad([ours], lr=0.1, eps=1e-8), RowWiseAdagrad([theirs], lr=0.1, eps=1e-8)
    for _ in range(3):
        rows = torch.randint(6, (1, 5), generator=draw)
        gradient = torch.sparse_coo_tensor(
            rows, torch.randn(5, 4, generator=draw), (6, 4), check_invariants=True
        )
        ours.grad, theirs.grad = gradient if sparse else gradient.to_dense(), gradient.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


# --- measured


def check_result(result: dict) -> None:
    """What every result has, and how its numbers hang together."""
    bench_case = EmbeddingCase(**result["case"])
    assert result["requests"]["lookups"] == bench_case.lookups >= result["requests"]["unique"] > 0
    assert result["bytes"] == traffic(
        bench_case, result["requests"]["unique"], 2 if bench_case.dtype == "fp16" else 4
    )
    copy = result["copy"]
    assert copy["bytes"] == 2 * bench_case.copy_mib * 2**20 * bench_case.world_size
    assert copy["bandwidth"] == pytest.approx(copy["bytes"] / copy["seconds"]["median"])
    names = ["fbgemm"] + ["torch"] * (bench_case.reference != "none")
    assert list(result["sides"]) == list(result["check"]) == names
    for side in result["sides"].values():
        for phase, phase_result in side.items():
            seconds = phase_result["seconds"]
            assert 0 < seconds["p10"] <= seconds["median"] <= seconds["p90"]
            if phase == "step":
                continue
            for count, moved in result["bytes"][phase].items():
                assert phase_result["bandwidth"][count] == pytest.approx(moved / seconds["median"])
            shares = {count: s / result["bytes"][phase][count] for count, s in phase_result["share"].items()}
            assert max(shares.values()) == pytest.approx(min(shares.values())) and min(shares.values()) > 0
        assert side["step"]["seconds"]["p90"] >= side["forward"]["seconds"]["p10"]
    assert ("ratio" in result) == (bench_case.reference != "none")
    for ratio in result.get("ratio", {}).values():
        assert 0 < ratio["p10"] <= ratio["median"] <= ratio["p90"]


def test_times_become_ratios_and_shares(monkeypatch):
    """With a clock that the timed calls set forward: a copy 1 s, FBGEMM 2 and 3 s, torch 8 and 27 s."""
    clock, calls = [0.0], []

    def lasts(owner: type, method: str, seconds: float) -> None:
        real = getattr(owner, method)

        def timed(self, *arguments):
            clock[0] += seconds
            calls.append(f"{owner.__name__}.{method}")
            return real(self, *arguments)

        monkeypatch.setattr(owner, method, timed)

    class Watch(Stopwatch):
        def __call__(self, function):
            start = clock[0]
            return function(), clock[0] - start

    monkeypatch.setattr(embeddings, "Stopwatch", Watch)
    lasts(embeddings.Copy, "__call__", 1)
    for owner, forward, backward in ((FbgemmTables, 2, 3), (TorchBags, 8, 27)):
        lasts(owner, "forward", forward)
        lasts(owner, "backward", backward)
    (result,) = run([case(rounds=2)])
    check_result(result)
    ratios = {phase: ratio["median"] for phase, ratio in result["ratio"].items()}
    assert ratios == {"forward": 4, "backward": 9, "step": 7}
    for name, phase, seconds in (("fbgemm", "forward", 2), ("torch", "backward", 27)):
        for count, share in result["sides"][name][phase]["share"].items():
            assert share == pytest.approx(result["bytes"][phase][count] / seconds / (2 * 2**20 / 1))
    turns = [c.split(".")[0] for c in calls if c.endswith("backward")][-6:]
    assert turns == [n for pair in (("F", "T"), ("T", "F"), ("F", "T")) for n in map(NAMES.get, pair)]
    assert calls.count("Copy.__call__") == 6, "one before each side's turn"


def test_the_slowest_rank_counts(monkeypatch):
    ranks = [{"fbgemm": {"forward": [1.0, 5.0]}}, {"fbgemm": {"forward": [3.0, 2.0]}}]
    monkeypatch.setattr(embeddings, "_gather", lambda value, _: ranks)
    assert _slowest(ranks[0], None) == {"fbgemm": {"forward": [3.0, 5.0]}}


def test_the_command(tmp_path, capsys):
    """A sweep end to end: the table, the JSON and the picture."""
    sweeps = ["--sweep", "pooling=1,4", "--sweep", "dtype=fp32,fp16"]
    assert cli.main(["bench", "embeddings", *FLAGS, *sweeps, "--out", str(tmp_path / "new" / "bench")]) == 0
    output = capsys.readouterr().out
    body = json.loads((tmp_path / "new" / "bench" / "embeddings.json").read_text())
    assert body["benchmark"] == "embeddings" and body["machine"]["cores"] >= 1
    results = body["results"]
    assert [(r["case"]["pooling"], r["case"]["dtype"]) for r in results] == [
        (1, "fp32"), (1, "fp16"), (4, "fp32"), (4, "fp16"),
    ]  # fmt: skip
    for result in results:
        check_result(result)
    assert varied(results) == ["pooling", "dtype"]
    table = format_table(results).splitlines()
    assert table[0].split()[:4] == ["pooling", "dtype", "lookups", "unique"] and len(table) == 5
    assert all(line in output for line in table)
    for line, result in zip(table[1:], results, strict=True):
        fbgemm = result["sides"]["fbgemm"]["forward"]
        cells = [f"{1e3 * fbgemm['seconds']['median']:.3f}", f"{fbgemm['share']['unique']:.1%}"]
        assert all(cell in line.split() for cell in cells)
    picture = (tmp_path / "new" / "bench" / "embeddings.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_json_on_standard_output(tmp_path, capsys):
    arguments = ["bench", "embeddings", *FLAGS, "--reference", "none", "--json", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert output == (tmp_path / "embeddings.json").read_text()
    (result,) = json.loads(output)["results"]
    check_result(result)
    assert "ratio" not in format_table([result])


def test_input_that_cannot_be_used(tmp_path, capsys):
    assert cli.main(["bench", "embeddings", "--sweep", "pool=1", "--out", str(tmp_path)]) == 2
    assert "did you mean 'pooling'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "embeddings", *FLAGS, "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_two_processes(tmp_path):
    """Started by the benchmark itself; that the sides agree shows averaged gradients and rows in place."""
    common = {"world_size": 2, "rounds": 1, "warmup": 0}
    cases = [
        case(**common, sharding="table_wise"),
        case(**common, sharding="column_wise", optimizer="sgd", reference="dense"),
        case(**common, sharding="data_parallel", kernel="dense"),
    ]
    lines: list[str] = []
    results = run(cases, say=lines.append)
    assert lines == ["cases 1 to 3 of 3, in 2 processes"]
    for result, bench_case in zip(results, cases, strict=True):
        assert result["case"] == dataclasses.asdict(bench_case)
        assert result["ranks"] == {"processes": 2, "threads": 1, "device": "cpu"}
        check_result(result)
        assert max(e["updates"] for e in result["check"].values()) < 1e-5


def test_under_torchrun(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "dlrrec_torchrec", "bench", "embeddings", *FLAGS]
    command += ["--sharding", "table_wise", "--rounds", "1", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("written:") == 1, "rank 0 alone reports"
    (result,) = json.loads((tmp_path / "embeddings.json").read_text())["results"]
    assert result["case"]["world_size"] == 2 and result["ranks"]["processes"] == 2
    check_result(result)


def test_summary_and_stopwatch():
    assert summary([5, 1, 3, 2, 4]) == {"median": 3, "p10": 1.4, "p90": 4.6}
    result, seconds = Stopwatch(CPU)(lambda: "done")
    assert result == "done" and seconds > 0
