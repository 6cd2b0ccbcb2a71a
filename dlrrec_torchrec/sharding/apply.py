"""From a model with tables on "meta" to DistributedModelParallel: plan, optimizers, sharding, first values.

One path for every number of ranks: without a launcher a process is a group of one, so that the same code runs
under a debugger, under torchrun on CPUs (gloo) and on GPUs (nccl).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from dlrrec_torchrec.config import TableConfig
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.sharding.advice import Impossible, make_plan
from dlrrec_torchrec.sharding.describe import to_json, to_text
from dlrrec_torchrec.sharding.devices import rank_device
from dlrrec_torchrec.sharding.fill import fill_tables
from dlrrec_torchrec.sharding.planner import Plan, Request
from dlrrec_torchrec.sharding.table_optimizers import TABLE_OPTIMIZERS
from dlrrec_torchrec.sharding.tables import COLLECTIONS, dense_bytes, sharders, table_key, tables_in
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import write_text_atomic


def plan_tables(
    module: nn.Module,
    ranks: Ranks,
    *,
    batch_size: int,
    table_optimizer: str = "adam",
    settings: Mapping[str, TableConfig] | None = None,
) -> Plan | None:
    """Where the module's tables go on these ranks: rank 0's plan, on every rank; None where it has no tables.

    Args:
        module: holds collections whose tables are on "meta".
        batch_size: rows of a step on each rank.
        table_optimizer: as `shard_tables`.
        settings: of tables, by name.

    Raises:
        DataError: settings that do not fit, or tables that do not (with what would), on all ranks.
    """
    plan, problem = None, None
    if not any(isinstance(part, COLLECTIONS) for part in module.modules()):
        return None
    if ranks.first:
        try:
            tables = tables_in(module, settings or {})
            for table in tables:
                if table.dtype == "bf16":
                    raise DataError(
                        f"model.tables.{table.name}.dtype=bf16: FBGEMM trains fp32 and fp16 tables; use fp16"
                    )
            request = Request(
                tables=tuple(tables),
                device=rank_device(ranks),
                world_size=ranks.world_size,
                local_world_size=ranks.local_world_size,
                batch_size=batch_size,
                optimizer=table_optimizer,
                dense_bytes=dense_bytes(module),
            )
            plan = make_plan(request)
        except Impossible as error:
            problem = error.for_training()
        except DataError as error:
            problem = str(error)
    plan, problem = ranks.share((plan, problem))
    if problem:
        raise DataError(problem)
    return plan


def shard_tables(
    module: nn.Module,
    ranks: Ranks,
    *,
    batch_size: int,
    table_optimizer: str = "adam",
    table_lr: float = 0.01,
    seed: int = 0,
    plan: Plan | None = None,
    comms: str = "fp32",
    static_graph: bool = True,
) -> DistributedModelParallel:
    """Shard the module's tables, with their optimizer inside the backward pass; replicate the rest.

    FBGEMM has no fused Adam for CPUs: there, tables under "adam" are replicated and updated by
    `table_optimizers.RowAdam`, which computes the same.

    Args:
        module: holds collections whose tables are on "meta".
        batch_size: rows of a step on each rank, for the planner.
        table_optimizer, table_lr: of all tables except frozen ones: "adam", "rowwise_adagrad" or "sgd".
        seed: of the tables' first values, which are the same for every number of ranks.
        plan: of the tables (default: `plan_tables` without settings).
        comms: in what numbers ranks exchange looked-up rows and their gradients: "fp32", "fp16" or "bf16".
        static_graph: every backward pass exchanges gradients: no DistributedDataParallel.no_sync.

    Raises DataError for numbers that the device's process group cannot send.
    """
    check_comms(comms, ranks.device)
    plan = plan or plan_tables(module, ranks, batch_size=batch_size, table_optimizer=table_optimizer)
    tables = plan.tables if plan else ()
    placed = {p.table.name: p for p in tables}
    sharding: dict[str, EmbeddingModuleShardingPlan] = {}
    managed = {
        f"{path}._embedding_module": path
        for path, part in module.named_modules()
        if isinstance(part, ManagedCollisionEmbeddingBagCollection)
    }
    for path, collection in module.named_modules():
        if not isinstance(collection, COLLECTIONS):
            continue
        module_plan = sharding[managed.get(path, path)] = EmbeddingModuleShardingPlan()
        for name, parameter in collection.named_parameters():
            table = name.split(".")[-2]
            module_plan[table] = placed[table_key(table)].parameter
            if placed[table_key(table)].kernel != "dense" and parameter.requires_grad:
                kind, options = TABLE_OPTIMIZERS[table_optimizer], {"lr": table_lr}
                apply_optimizer_in_backward(kind, [parameter], options)
    kind = CommType(comms)
    codecs = get_qcomm_codecs_registry(QCommsConfig(kind, kind), device=ranks.device)
    sharded = DistributedModelParallel(
        module,
        device=ranks.device,
        plan=ShardingPlan(sharding),
        sharders=sharders(codecs),
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=static_graph),
    )
    # FBGEMM fills a table on SSD by itself, `fill_content` those of content vectors; managed ones are zeros.
    filled_elsewhere = [
        p.table.name for p in tables if p.kernel == "key_value" or p.table.frozen or p.table.ids == "managed"
    ]
    fill_tables(sharded, seed, filled_elsewhere)
    return sharded


def save_plan(plan: Plan, folder: str | os.PathLike) -> None:
    """Write `folder`/plan.json, and print the plan in a few lines on stderr. For rank 0."""
    write_text_atomic(Path(folder) / "plan.json", json.dumps(to_json(plan), indent=1) + "\n")
    print(to_text(plan, brief=True), file=sys.stderr)


def describe_plan(model: DistributedModelParallel) -> dict[str, str]:
    """Table -> how it is sharded."""
    return {
        table: parameter.sharding_type
        for tables in model.plan.plan.values()
        for table, parameter in tables.items()
    }


def check_comms(comms: str, device: torch.device) -> None:
    """Raise DataError for numbers that the process group of the device cannot send."""
    if comms == "bf16" and device.type == "cpu":
        raise DataError("train.comms: gloo, which CPUs use, sends no bf16; use fp16 or fp32")
