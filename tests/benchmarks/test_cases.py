"""The embedding benchmark: what is counted, what is drawn, and the cases of a sweep."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec import cli
from dlrrec_torchrec.benchmarks.cases import EmbeddingCase, parse_sweeps, product
from dlrrec_torchrec.benchmarks.embeddings.compare import check, run
from dlrrec_torchrec.benchmarks.embeddings.random_ids import make_requests, spread, weight_blocks
from dlrrec_torchrec.benchmarks.embeddings.traffic import memory_needed, traffic
from dlrrec_torchrec.config.flags import given_settings
from dlrrec_torchrec.store.errors import DataError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = {"tables": 3, "rows": 500, "dim": 8, "pooling": 4, "batch": 16, "device": "cpu", "threads": 1}
TINY |= {"requests": 3, "warmup": 1, "rounds": 3, "copy_mib": 1}


def case(**changes) -> EmbeddingCase:
    return EmbeddingCase(**TINY | changes)


# --- what is counted


def test_bytes_by_hand():
    """2 tables, 3 bags, 2 ids each, 4 columns: 12 lookups of which 9 rows are distinct."""
    small = EmbeddingCase(tables=2, batch=3, pooling=2, dim=4, dtype="fp16", optimizer="rowwise_adagrad")
    counted = traffic(small, unique=9, output_bytes=4)
    ids = 12 * 8 + (6 + 1) * 8  # ids, offsets
    sums = 6 * 4 * 4
    assert counted["forward"] == {
        "unique": 9 * 4 * 2 + ids + sums,
        "lookups": 12 * 4 * 2 + ids + sums,
        "fbgemm": 12 * 4 * 2 + sums,
    }
    assert counted["backward"] == {
        "unique": sums + ids + 2 * 9 * (4 * 2 + 4),
        "lookups": 12 * 4 * 4 + ids + 2 * 12 * (4 * 2 + 4),
        "fbgemm": 2 * (12 * 4 * 2 + sums),
    }


@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 4), ("adam", 2 * 4 * 8)])
def test_an_optimizers_state_is_read_and_written(optimizer, state):
    plain = traffic(case(optimizer="sgd"), 100, 4)["backward"]
    with_state = traffic(case(optimizer=optimizer), 100, 4)["backward"]
    assert with_state["unique"] - plain["unique"] == 2 * 100 * state
    assert with_state["lookups"] - plain["lookups"] == 2 * 3 * 16 * 4 * state
    assert with_state["fbgemm"] == plain["fbgemm"]


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
def test_distinct_rows_are_counted_one_by_one(distribution):
    requests = make_requests(case(distribution=distribution, rows=40, requests=5), CPU)
    distinct = [{(t, int(i)) for t in range(3) for i in batch[t].flatten()} for batch in requests.ids]
    assert requests.unique == sum(map(len, distinct)) / 5
    assert requests.unique < 3 * 40


def test_memory_of_tables_state_and_reference():
    weights, state = 3 * 500 * 8 * 4, 3 * 500 * 4
    assert memory_needed(case(reference="none")) == weights + state
    assert memory_needed(case(reference="sparse")) == 2 * (weights + state)
    assert memory_needed(case(reference="dense")) == 2 * (weights + state) + weights
    assert memory_needed(case(reference="none", kernel="dense")) == 2 * weights + state
    cut = case(reference="none", sharding="table_wise", world_size=2)
    assert memory_needed(cut) == (weights + state) // 2


# --- what is drawn


def counts(**changes) -> np.ndarray:
    sample = case(tables=1, batch=1000, pooling=50, requests=4, **changes)
    return np.bincount(make_requests(sample, CPU).ids.flatten().numpy(), minlength=sample.rows)


def test_uniform_ids():
    counted = counts(rows=50)
    assert len(counted) == 50 and counted.sum() == 200_000
    assert abs(counted - 4000).max() < 5 * np.sqrt(4000)


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.7])
def test_zipf_ids_follow_the_law(exponent):
    rows = 300
    counted = counts(rows=rows, distribution="zipf", exponent=exponent)
    law = np.arange(1, rows + 1, dtype=float) ** -exponent
    expected = 200_000 * law / law.sum()
    by_rank = counted[spread(torch.arange(rows), rows).numpy()]
    assert (abs(by_rank - expected) < 5 * np.sqrt(expected) + 1).all()


@given(st.integers(1, 3000))
def test_spread_reaches_every_row_once(rows):
    assert sorted(spread(torch.arange(rows), rows).tolist()) == list(range(rows))


def test_frequent_rows_are_no_neighbours():
    places = spread(torch.arange(20), 10_000).sort().values
    assert places.diff().min() > 100


def test_draws_follow_from_the_seed():
    first, again, other = (make_requests(case(seed=seed), CPU) for seed in (0, 0, 1))
    assert torch.equal(first.ids, again.ids) and torch.equal(first.gradient, again.gradient)
    assert not torch.equal(first.ids, other.ids) and not torch.equal(first.gradient, other.gradient)
    assert not torch.equal(first.ids[0], first.ids[1]), "every batch has ids of its own"
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(first.gradient, first.gradient.to(dtype).float()), "exact in every data type"


def test_weights_do_not_depend_on_the_number_of_blocks_read(monkeypatch):
    weights = torch.cat([values for _, values in weight_blocks(case(), 0, CPU)])
    assert weights.shape == (500, 8) and weights.min() >= -1 and weights.max() <= 1
    other = torch.cat([values for _, values in weight_blocks(case(), 1, CPU)])
    assert not torch.equal(weights, other)
    monkeypatch.setattr("dlrrec_torchrec.benchmarks.embeddings.random_ids.BLOCK_ROWS", 64)
    blocks = list(weight_blocks(case(), 0, CPU))
    assert [top for top, _ in blocks] == list(range(0, 500, 64)) and len(blocks[-1][1]) == 500 % 64


# --- cases and sweeps


def test_a_sweep_is_a_product():
    sweeps = parse_sweeps(["pooling=1,11,50", "dtype=fp32,fp16", "cache-load=0.5"])
    assert sweeps == {"pooling": [1, 11, 50], "dtype": ["fp32", "fp16"], "cache_load": [0.5]}
    cases = product({"rows": 70}, sweeps)
    swept = [(c.pooling, c.dtype, c.cache_load, c.rows) for c in cases]
    assert swept == [(p, d, 0.5, 70) for p in (1, 11, 50) for d in ("fp32", "fp16")]
    assert product({"rows": 70}, {}) == [EmbeddingCase(rows=70)]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["poling=1"], "did you mean 'pooling'"),
        (["pooling=1,x"], "of type int"),
        (["pooling="], "of type int"),
        (["pooling=1", "pooling=2"], "swept twice"),
    ],
)
def test_sweeps_that_cannot_be(texts, message):
    with pytest.raises(DataError, match=message):
        parse_sweeps(texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 6}, "--dim 6: FBGEMM needs a multiple of 4"),
        ({"rows": 0}, "--rows: 0 must be at least 1"),
        ({"exponent": float("nan")}, "--exponent: nan"),
        ({"batch": 15, "world_size": 2}, "--batch 15: must be a multiple of --world-size 2"),
        ({"dtype": "fp8"}, "--dtype fp8: is not one of fp32, fp16, bf16"),
        ({"world_size": 2}, "--sharding none: is for one process"),
        ({"sharding": "row_wise"}, "--sharding row_wise: TorchRec has none on cpu"),
        ({"sharding": "table_wise", "kernel": "dense"}, "--kernel dense: .* take fused"),
        ({"sharding": "data_parallel"}, "--kernel fused: .* take dense"),
        ({"sharding": "column_wise", "world_size": 2, "optimizer": "rowwise_adagrad"}, "--optimizer sgd"),
        ({"sharding": "column_wise", "world_size": 2, "dim": 12, "optimizer": "sgd"}, "--dim 12"),
        ({"kernel": "fused_uvm_caching"}, "is a cache on a GPU"),
        ({"dtype": "bf16"}, "--dtype bf16"),
        ({"output": "bf16"}, "--output bf16"),
        ({"optimizer": "adam"}, "take --kernel dense"),
        ({"optimizer": "adam", "kernel": "dense", "dtype": "fp16"}, "take --dtype fp32"),
        ({"rows": 10**11}, "need .* GiB and there are"),
    ],
)
def test_cases_that_cannot_be_measured_here(changes, message):
    with pytest.raises(DataError, match=message):
        check(case(**changes))


def test_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DataError, match="--device cuda: torch sees no GPU"):
        check(case(device="cuda"))


def test_ranks_of_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="--world-size 4: the launcher's ranks are 2"):
        run([case(world_size=4, sharding="table_wise")])


def test_documented_commands_are_accepted():
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    matches = [
        re.fullmatch(r"(?:dlrrec|torchrun .* -m dlrrec_torchrec) (bench embeddings .*)", c) for c in lines
    ]
    commands = [shlex.split(match[1]) for match in matches if match]
    assert len(commands) > 5
    for words in commands:
        arguments = cli.build_parser().parse_args(words)
        assert product(given_settings(arguments), parse_sweeps(arguments.sweep))
