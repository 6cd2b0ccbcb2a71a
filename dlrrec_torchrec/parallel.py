"""Process groups, and from a model with tables on "meta" to DistributedModelParallel.

One path for every number of ranks: without a launcher a process is a group of one, so that the same code runs
under a debugger, under torchrun on CPUs (gloo) and on GPUs (nccl).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrrec_torchrec.optimizers import TABLE_OPTIMIZERS, is_fused
from dlrrec_torchrec.schema import DataError

SHARDINGS = [
    ShardingType.TABLE_WISE.value,
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.ROW_WISE.value,  # this and the next: TorchRec offers them on GPUs only
    ShardingType.TABLE_ROW_WISE.value,
]
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


def topology(ranks: Ranks) -> Topology:
    """The planner's picture of the machine, with the memory that is really there."""
    gpu = ranks.device.type == "cuda"
    return Topology(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        compute_device=ranks.device.type,
        hbm_cap=torch.cuda.get_device_properties(ranks.device).total_memory if gpu else None,
        ddr_cap=host_memory() // ranks.local_world_size,
    )


def host_memory() -> int:
    """Bytes of memory this machine, or the container around this process, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def shard(
    module: nn.Module,
    ranks: Ranks,
    *,
    batch_size: int,
    table_optimizer: str = "adam",
    table_lr: float = 0.01,
    seed: int = 0,
) -> DistributedModelParallel:
    """Plan and shard the module's tables, with their optimizer inside the backward pass; replicate the rest.

    FBGEMM has no fused Adam for CPUs: there, tables under "adam" are replicated and updated by
    `optimizers.RowAdam`, which computes the same.

    Args:
        module: holds EmbeddingBagCollections whose tables are on "meta".
        batch_size: rows of a step on each rank, for the planner.
        table_optimizer, table_lr: of all tables: "adam", "rowwise_adagrad" or "sgd".
        seed: of the tables' first values, which are the same for every number of ranks.
    """
    collections = [m for m in module.modules() if isinstance(m, EmbeddingBagCollection)]
    if is_fused(table_optimizer, ranks.device):
        for collection in collections:
            kind, options = TABLE_OPTIMIZERS[table_optimizer], {"lr": table_lr}
            apply_optimizer_in_backward(kind, collection.parameters(), options)
        # Row-wise Adagrad keeps one value a row; cut by columns, each part would keep its own.
        allowed = [s for s in SHARDINGS if table_optimizer != "rowwise_adagrad" or "column" not in s]
    else:
        allowed = [ShardingType.DATA_PARALLEL.value]
    tables = [table.name for c in collections for table in c.embedding_bag_configs()]
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(
        topology=topology(ranks),
        batch_size=batch_size,
        constraints={name: ParameterConstraints(sharding_types=allowed) for name in tables},
        debug=False,
    )
    plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    sharded = DistributedModelParallel(module, device=ranks.device, plan=plan, sharders=sharders)
    _fill_tables(sharded, seed)
    return sharded


def describe_plan(model: DistributedModelParallel) -> dict[str, str]:
    """Table -> how it is sharded."""
    return {
        table: parameter.sharding_type
        for tables in model.plan.plan.values()
        for table, parameter in tables.items()
    }


@torch.no_grad()
def _fill_tables(model: DistributedModelParallel, seed: int) -> None:
    """Uniform values in ±1/sqrt(rows), TorchRec's default, drawn so that they do not depend on the plan."""
    for name, tensor in model.state_dict().items():
        if not name.endswith(".weight") or ".embedding_bags." not in name:
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
