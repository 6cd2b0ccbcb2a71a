"""Plans that cannot be and what would help; devices; settings; `dlrrec plan`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torchrec.distributed.planner.types import Storage

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import SHARDING_TYPES, ModelConfig, TableConfig, load_config
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.sharding.advice import Impossible, make_plan
from dlrrec_torchrec.sharding.apply import plan_tables
from dlrrec_torchrec.sharding.describe import to_text
from dlrrec_torchrec.sharding.devices import DEVICES, cuda_device, named_device
from dlrrec_torchrec.sharding.planner import solve
from dlrrec_torchrec.sharding.request import run_request
from dlrrec_torchrec.sharding.tables import Table, constraints, tables_in
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.plans import BATCH, DIM, GIB, ROWS, only, request, without_known_warnings  # noqa: F401
from tests.helpers.shards import build, write_shards

# Requests that cannot be planned: arguments of `dlrrec plan`, what the message names, a change that helps.
BIG = "id=1e9,64"
WHOLE = "id=1e9,64,1,sharding=table_wise"
IMPOSSIBLE = {
    "too few ranks": (f"--table {BIG} --world-size 2 --device h100", "id (1,000,000,000", "--world-size 16"),
    "rows not allowed": (
        f"--table {WHOLE} small=9,4 --world-size 8 --device h100 --table-optimizer rowwise_adagrad",
        "id (1,000,000,000",
        "--set model.tables.id.sharding=row_wise",
    ),
    "columns not allowed": (
        "--table id=1e8,256,1,sharding=table_wise --world-size 2 --device h100 --table-optimizer sgd",
        "id (100,000,000",
        "--set model.tables.id.sharding=column_wise",
    ),
    "half as wide": (
        "--table id=1e9,64 --world-size 1 --device h200 --table-optimizer sgd --ddr 8",
        "needs 238.4 GiB of device memory, 111.6 GiB are free",
        None,
    ),
    "fp16": (
        "--table id=4e8,64 --world-size 1 --device h100 --table-optimizer sgd --ddr 8",
        "id (400,000,000",
        "--set model.tables.id.dtype=fp16",
    ),
    "host memory": (
        "--table id=8e8,64 --world-size 1 --device h100 --table-optimizer sgd",
        "id (800,000,000",
        "--set model.tables.id.kernels=fused_uvm_caching",
    ),
    "state of the optimizer": (
        "--table id=4e8,64 --world-size 1 --device h200",
        "id (400,000,000",
        "--set train.table_optimizer=rowwise_adagrad",
    ),
    "not together": (
        "--table a=2.5e8,64 b=1.5e8,64 c=1.5e8,64 --world-size 2 --device h100 --table-optimizer sgd --ddr 1",
        "fit one by one but not together",
        "--set model.tables.a.dtype=fp16",
    ),
    "all together": (
        "--table a=3e8,64 b=2e8,64 c=2e8,64 --world-size 2 --device h100 --table-optimizer sgd --ddr 1",
        "fit one by one but not together",
        "--set model.tables.a.dtype=fp16 model.tables.b.dtype=fp16 model.tables.c.dtype=fp16",
    ),
    "several changes": (
        f"--table {BIG} --world-size 2 --device cpu",
        "data_parallel, dense",
        None,
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_plan_names_the_table_and_what_helps(case, capsys):
    arguments, named_table, helps = IMPOSSIBLE[case]
    arguments = ["plan", *arguments.split()]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert named_table in message and "small" not in message
    problem, *changes = message.split("what would fit:\n")[1].rstrip("\n").split("\n  ")
    changes = [problem.strip(), *changes]
    assert helps is None or helps in changes
    for change in changes:  # each of them, added to the command, really gives a plan
        assert main([*arguments, *shlex.split(change)]) == 0, change
        assert "most on a rank" in capsys.readouterr().out


def test_more_ranks_are_not_advised_where_they_cannot_help():
    with pytest.raises(Impossible) as error:
        make_plan(request(Table("id", 10**10, 64, sharding=("table_wise",)), ranks=2, node=2))
    assert error.value.suggestions
    for suggestion in error.value.suggestions:
        assert solve(suggestion.request)
        assert "--world-size" not in suggestion.words or "sharding" in suggestion.words
    alone = named_device("cpu", ddr=1)
    with pytest.raises(Impossible, match="no change that was tried would fit"):
        make_plan(request(Table("id", 10**12, 256), device=alone, optimizer="sgd", dense_bytes=2**40))


def test_the_rest_of_the_model_takes_its_room():
    table = Table("t", 10**6, 64)
    free, with_model = (make_plan(request(table, dense_bytes=size)).available.hbm for size in (0, 5 * GIB))
    assert free - with_model == 5 * GIB


def test_devices_tell_torchrec_what_they_have():
    topology = DEVICES["h200"].topology(16, 8)
    assert topology.devices[3].storage == Storage(hbm=141 * 10**9, ddr=256 * 10**9, ssd=2 * 10**12)
    assert topology.hbm_mem_bw == pytest.approx(4.8e9)  # bytes a millisecond
    assert (topology.intra_host_bw, topology.inter_host_bw) == pytest.approx((0.45e9, 0.05e9))
    assert (topology.world_size, topology.local_world_size, topology.compute_device) == (16, 8, "cuda")
    assert DEVICES["cpu"].topology(2, 2).devices[0].storage.hbm == 0
    for device in DEVICES.values():
        assert device.kind == "cpu" or device.hbm_bandwidth > device.intra_node >= device.inter_node


def test_a_real_gpu_is_described_by_its_driver():
    reported = SimpleNamespace(
        name="NVIDIA H200", total_memory=150_100_000_000, memory_clock_rate=3_201_000, memory_bus_width=6144
    )
    device = cuda_device(reported, 200 * GIB)
    assert (device.hbm, device.ddr, device.name) == (150_100_000_000, 200 * GIB, "NVIDIA H200")
    assert device.hbm_bandwidth == pytest.approx(4.917e12, rel=1e-3)
    assert device.intra_node == DEVICES["h200"].intra_node
    reported = SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=42_300_000_000)  # an older torch
    assert cuda_device(reported, GIB).hbm_bandwidth == DEVICES["a100-40"].hbm_bandwidth
    reported = SimpleNamespace(name="Tesla V100-SXM2-16GB", total_memory=16_900_000_000)
    assert cuda_device(reported, GIB).intra_node == DEVICES["v100"].intra_node
    assert cuda_device(SimpleNamespace(name="New", total_memory=GIB), GIB).hbm == GIB


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: named_device("h300"), "--device h300: not known .*h200"),
        (lambda: named_device("cpu", hbm=4), "--hbm: a cpu has no device memory"),
        (lambda: named_device("l4", ddr=-1), "--ddr -1: must be a size"),
        (lambda: named_device("l4", hbm=float("inf")), "--hbm inf: must be a size above 0 and finite"),
        (lambda: named_device("l4", ddr=float("nan")), "--ddr nan: must be a size"),
        (lambda: Table("t", 0, 8), "table t: rows=0"),
        (lambda: Table("t", 9, 6), "table t: dim=6 must be a multiple of 4"),
        (lambda: Table("t", 9, 8, cache=0), "cache=0"),
        (lambda: request(), "no tables to plan for"),
        (lambda: request(Table("t", 9, 8), Table("t", 9, 8)), "table t: named twice"),
        (lambda: request(Table("t", 9, 8), ranks=3, node=2), "multiple of --local-world-size 2"),
        (lambda: request(Table("t", 9, 8), ranks=0, node=1), "--world-size 0"),
        (
            lambda: only(Table("t", 9, 8, sharding=("row_wise",)), device="cpu", optimizer="adam"),
            "row_wise: needs a fused adam, which FBGEMM does not have for CPUs",
        ),
        (
            lambda: only(Table("t", 9, 8, dtype="fp16"), device="cpu", optimizer="adam"),
            "data_parallel: replicated tables are fp32",
        ),
        (
            lambda: only(Table("t", 9, 256, sharding=("column_wise",)), optimizer="rowwise_adagrad"),
            "column_wise: row-wise Adagrad has one value a row",
        ),
        (lambda: only(Table("t", 9, 8, kernels=("fused_uvm",)), device="cpu"), "fused_uvm: needs a GPU"),
        (lambda: only(Table("t", 9, 8, kernels=("key_value",))), "key_value: FBGEMM has no sgd"),
        (
            lambda: only(Table("t", 9, 8, kernels=("fused",), sharding=("data_parallel",))),
            "data_parallel: its kernel is dense",
        ),
        (
            lambda: only(Table("t", 9, 8, kernels=("dense",), sharding=("row_wise",))),
            "row_wise: no kernel is left for it",
        ),
        (lambda: only(Table("t", 9, 8, pooled=False, sharding=("table_row_wise",))), "single lookups"),
        (lambda: only(Table("t", 9, 8, sharding=("grid_shard",)), device="cpu"), "not offered on cpu"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_settings_of_a_model_must_fit_it():
    def model(**tables):
        config = ModelConfig(user_id=True, tables={k: TableConfig(**v) for k, v in tables.items()})
        return build(config, users=50, items=9, device="meta"), config

    with pytest.raises(DataError, match="model.tables.user.rows: 10, but there are 50 ids"):
        model(user={"rows": 10})
    with pytest.raises(DataError, match=r"model.tables.user.dim=64, .*model.embedding_dim \(32\)"):
        model(user={"dim": 64})
    module, config = model(item={"dtype": "fp16"})
    with pytest.raises(DataError, match="model.tables.item: the model has no such table .*category, user"):
        tables_in(module, config.tables)
    module, config = model(user={"dtype": "bf16"})
    with process_group("cpu") as ranks, pytest.raises(DataError, match="user.dtype=bf16.*use fp16"):
        plan_tables(module, ranks, batch_size=9, settings=config.tables)
    module, config = model(user={"rows": 64, "dtype": "fp16"})
    assert [(t.name, t.rows, t.dtype) for t in tables_in(module, config.tables)] == [
        ("category", 180, "fp32"),
        ("user", 64, "fp16"),
    ]


def test_a_plan_of_64_gpus_is_made_by_one_process_without_any(capsys):
    command = "plan --table id=1e9,64,1,sharding=row_wise --world-size 64 --local-world-size 8 --device h200"
    assert main([*command.split(), "--table-optimizer", "rowwise_adagrad", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not dist.is_initialized()
    assert (plan["world_size"], plan["device"]["name"], len(plan["ranks"])) == (64, "h200", 64)
    assert [r["weight_bytes"] for r in plan["ranks"]] == [10**9 // 64 * 64 * 4] * 64
    assert [r["optimizer_bytes"] for r in plan["ranks"]] == [10**9 // 64 * 4] * 64
    assert plan["imbalance"] == pytest.approx({"hbm": 1, "ms": 1})
    assert main([*command.split(), "--set", "train.batch_size=65536"]) == 0
    text = capsys.readouterr().out
    assert "64 x h200 on 8 nodes, 1,024 rows" in text and "0-63" in text and "1,000,000,000 x 64" in text


def test_a_plan_of_a_run_knows_its_ids_and_its_settings(tmp_path, capsys):
    write_shards(tmp_path / "shards", rows=(60, 20, 20), users=50, items=30)
    (tmp_path / "config.yaml").write_text(
        "model: {user_id: true, item_id: true, tables: {user: {dtype: fp16, sharding: row_wise}}}\n"
    )
    command = ["plan", "--run-dir", str(tmp_path), "--set", "model.tables.other={rows: 1e6, dim: 16}"]
    command += ["train.table_optimizer=sgd", "--device", "l4", "--world-size", "2", "--json"]
    assert main([*command, "--table", "user=100", "item=40,32,2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    tables = {t["name"]: (t["rows"], t["dim"], t["dtype"], t["sharding"]) for t in plan["tables"]}
    assert tables["user"] == (100, 32, "fp16", "row_wise")
    assert tables["item"][:2] == (40, 32) and tables["category"][:2] == (180, 32)
    assert tables["other"][:2] == (10**6, 16)
    assert plan["dense_bytes"] > 80 * 384 * 2  # the vectors of users and items, and the rest of the model
    assert main([*command, "--set", "model.tables.user.rows=7"]) == 2
    assert "model.tables.user.rows: 7, but there are 50 ids" in capsys.readouterr().err


def test_a_plan_without_a_run_asks_for_what_it_cannot_know(capsys):
    config = load_config(None, {"model.user_id": True})
    with pytest.raises(DataError, match="table user: how many rows"):
        run_request(config, DEVICES["l4"])
    vectors = {"prepare.vectors": {"item_audio": "audio.parquet"}, "model.vectors": "table"}
    rows = {f"model.tables.{name}.rows": 9 for name in ("user_text", "item_text", "item_image", "item_audio")}
    with pytest.raises(DataError, match="table item_audio: how many columns.*model.tables.item_audio.dim=N"):
        run_request(load_config(None, vectors | rows), DEVICES["l4"])
    planned = run_request(
        load_config(None, vectors | rows | {"model.tables.item_audio.dim": 128}), DEVICES["l4"]
    )
    assert {t.name: t.dim for t in planned.tables}["item_audio"] == 128
    with pytest.raises(DataError, match="table user_text: how many columns"):
        run_request(load_config(None, {"extract.encoder": "mine"}), DEVICES["l4"])
    assert main("plan --table id=,64 --device l4".split()) == 2
    assert "write rows,dim,pooling" in capsys.readouterr().err
    assert main("plan --table id=dim=64 --device l4".split()) == 2
    assert "table id: how many rows" in capsys.readouterr().err
    assert main("plan --table id=9,64 --hbm 3".split()) == 2
    assert "name the --device too" in capsys.readouterr().err


def test_the_plan_in_a_few_lines_and_in_full():
    tables = Table("id", 64 << 20, 64, sharding=("table_wise",)), Table("c", 180, 64, kernels=("dense",))
    plan = make_plan(request(*tables, ranks=4, optimizer="adam"))
    brief, full = to_text(plan, brief=True).splitlines(), to_text(plan).splitlines()
    assert len(brief) == 5 and brief[:4] == full[:4] and full[-2] == brief[-1]
    row = next(line.split() for line in brief if line.startswith("id"))
    assert row[-5:-4] + row[-4:] == ["0", "16.0", "GiB", "32.0", "GiB"]
    assert "not measured" in full[-1] and "fused" in brief[2] and "data_parallel" in brief[3]
    ranks = [line.split()[0] for line in full[full.index("") + 2 : -2]]
    assert ranks == ["0", "1-3"]  # the table is on rank 0, the others are alike


def test_the_help_names_what_is_not_chosen_by_default():
    text = {f.name: f for f in dataclasses.fields(TableConfig)}["sharding"].metadata["help"]
    gpu, cpu = (
        constraints(Table("t", 64, 8), DEVICES[name], "sgd").sharding_types for name in ("h200", "cpu")
    )
    exceptions = set(SHARDING_TYPES) - set(gpu)
    assert f"all except {' and '.join(sorted(exceptions, reverse=True))}, on CPUs those by tables and" in text
    assert {name.removesuffix("_wise") for name in cpu} == {"table", "column", "table_column"}
    assert constraints(Table("t", 64, 8), DEVICES["cpu"], "adam").sharding_types == ["data_parallel"]
    managed = Table("t", 64, 8, ids="managed")
    assert constraints(managed, DEVICES["h200"], "sgd").sharding_types == ["row_wise"]
