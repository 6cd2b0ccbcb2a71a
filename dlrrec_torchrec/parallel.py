"""Process groups, and from a model with tables on "meta" to DistributedModelParallel.

One path for every number of ranks: without a launcher a process is a group of one, so that the same code runs
under a debugger, under torchrun on CPUs (gloo) and on GPUs (nccl).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from dlrrec_torchrec.config import TableConfig
from dlrrec_torchrec.optimizers import TABLE_OPTIMIZERS
from dlrrec_torchrec.planning import (
    Device,
    Plan,
    Request,
    cpu_device,
    cuda_device,
    dense_bytes,
    make_plan,
    sharders,
    table_key,
    tables_in,
    to_json,
    to_text,
)
from dlrrec_torchrec.schema import DataError, write_text_atomic

_INIT_ROWS = 1 << 16  # rows of a table drawn at once


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def share(self, value: Any) -> Any:
        """Rank 0's `value` (any object that pickles), on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def agree(self, error: DataError | None) -> None:
        """Raise the first rank's error on all ranks, so that none waits for one that has stopped."""
        errors: list[str | None] = [None] * self.world_size
        dist.all_gather_object(errors, str(error) if error else None)
        for message in filter(None, errors):
            raise DataError(message)


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """The default process group: the launcher's to the end of the process, or one of a single process.

    Args:
        device: "cpu", "cuda", or "auto" for cuda where there is one. Under a launcher each rank takes the GPU
            of its LOCAL_RANK.

    A group that is there already is used and left alone. Raises DataError for cuda where there is none.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    local_rank = int(os.environ.get("LOCAL_RANK", 0)) if launched else 0
    place = resolve_device(device, local_rank)
    owner = not dist.is_initialized()
    if owner:
        backend = "gloo" if place.type == "cpu" else "nccl"
        if launched:
            # For the rest of the process: a second group would meet the first one's keys in the launcher's
            # store, and its ranks wait for each other for ever.
            dist.init_process_group(backend)
            atexit.register(_leave_group)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        world = dist.get_world_size()
        yield Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_WORLD_SIZE", world)), place)
    finally:
        if owner and not launched:
            dist.destroy_process_group()


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Raises DataError for cuda where there is none."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; use --device cpu (see `dlrrec doctor`)")
    if local_rank >= torch.cuda.device_count():
        raise DataError(
            f"local rank {local_rank} has no GPU ({torch.cuda.device_count()} here); lower --nproc_per_node"
        )
    place = torch.device("cuda", local_rank)
    torch.cuda.set_device(place)
    return place


def rank_device(ranks: Ranks) -> Device:
    """What a rank really has: its GPU, if it is on one, and its share of this machine's memory."""
    host = host_memory() // ranks.local_world_size
    if ranks.device.type == "cuda":
        return cuda_device(torch.cuda.get_device_properties(ranks.device), host)
    return cpu_device(host)


def host_memory() -> int:
    """Bytes of memory this machine, or the container around this process, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def plan_tables(
    module: nn.Module,
    ranks: Ranks,
    *,
    batch_size: int,
    table_optimizer: str = "adam",
    settings: Mapping[str, TableConfig] | None = None,
) -> Plan:
    """Where the module's tables go on these ranks: rank 0's plan, on every rank.

    Args:
        module: holds collections whose tables are on "meta".
        batch_size: rows of a step on each rank.
        table_optimizer: as `shard`.
        settings: of tables, by name.

    Raises:
        DataError: settings that do not fit, or tables that do not (with what would), on all ranks.
    """
    plan, problem = None, None
    if ranks.rank == 0:
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
        except DataError as error:
            problem = str(error)
    plan, problem = ranks.share((plan, problem))
    if problem:
        raise DataError(problem)
    return plan


def shard(
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
    `optimizers.RowAdam`, which computes the same.

    Args:
        module: holds collections whose tables are on "meta".
        batch_size: rows of a step on each rank, for the planner.
        table_optimizer, table_lr: of all tables but frozen ones: "adam", "rowwise_adagrad" or "sgd".
        seed: of the tables' first values, which are the same for every number of ranks.
        plan: of the tables (default: `plan_tables` without settings).
        comms: in what numbers ranks exchange looked-up rows and their gradients: "fp32", "fp16" or "bf16".
        static_graph: every backward pass exchanges gradients: no DistributedDataParallel.no_sync.

    Raises DataError for numbers that the device's process group cannot send.
    """
    if comms == "bf16" and ranks.device.type == "cpu":
        raise DataError("train.comms: gloo, which CPUs use, sends no bf16; use fp16 or fp32")
    plan = plan or plan_tables(module, ranks, batch_size=batch_size, table_optimizer=table_optimizer)
    placed = {p.table.name: p for p in plan.tables}
    sharding: dict[str, EmbeddingModuleShardingPlan] = {}
    managed = {
        f"{path}._embedding_module": path
        for path, part in module.named_modules()
        if isinstance(part, ManagedCollisionEmbeddingBagCollection)
    }
    for path, collection in module.named_modules():
        if not isinstance(collection, (EmbeddingBagCollection, EmbeddingCollection)):
            continue
        own = sharding[managed.get(path, path)] = EmbeddingModuleShardingPlan()
        for name, parameter in collection.named_parameters():
            table = name.split(".")[-2]
            own[table] = placed[table_key(table)].parameter
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
    # FBGEMM fills a table on SSD by itself, `content.fill_content` those of content vectors; managed ones
    # are zeros.
    others = [
        p.table.name
        for p in plan.tables
        if p.kernel == "key_value" or p.table.frozen or p.table.ids == "managed"
    ]
    _fill_tables(sharded, seed, others)
    return sharded


def save_plan(plan: Plan, folder: str | os.PathLike) -> None:
    """Write `folder`/plan.json, and say on stderr in a few lines what the plan is. For rank 0."""
    write_text_atomic(Path(folder) / "plan.json", json.dumps(to_json(plan), indent=1) + "\n")
    print(to_text(plan, brief=True), file=sys.stderr)


def describe_plan(model: DistributedModelParallel) -> dict[str, str]:
    """Table -> how it is sharded."""
    return {
        table: parameter.sharding_type
        for tables in model.plan.plan.values()
        for table, parameter in tables.items()
    }


@torch.no_grad()
def _fill_tables(model: DistributedModelParallel, seed: int, left_out: Sequence[str]) -> None:
    """Uniform values in ±1/sqrt(rows), TorchRec's default, drawn so that they do not depend on the plan."""
    for name, tensor in model.state_dict().items():
        table = re.search(r"\.(?:embedding_bags|embeddings)\.(\w+)\.weight$", name)
        if not table or table_key(table[1]) in left_out:
            continue
        if isinstance(tensor, ShardedTensor):
            parts = [(s.tensor, s.metadata.shard_offsets) for s in tensor.local_shards()]
        else:
            parts = [(tensor, [0, 0])]
        rows, columns = tensor.size()
        for part, (top, left) in parts:
            for block in range(top // _INIT_ROWS, -(-(top + part.shape[0]) // _INIT_ROWS)):
                start, end = block * _INIT_ROWS, min((block + 1) * _INIT_ROWS, rows)
                key = np.random.SeedSequence([seed, zlib.crc32(name.encode()), block])
                generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
                values = (torch.rand(end - start, columns, generator=generator) * 2 - 1) / math.sqrt(rows)
                first, last = max(start, top), min(end, top + part.shape[0])
                part[first - top : last - top].copy_(
                    values[first - start : last - start, left : left + part.shape[1]]
                )
