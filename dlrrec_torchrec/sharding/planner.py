"""TorchRec's planner for plain tables: where each part of each table goes, and its cost in bytes and time.

It needs neither a process group nor the planned devices: a laptop plans for 64 GPUs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError as TorchRecPlannerError
from torchrec.distributed.planner.types import ShardingOption, Stats, Storage
from torchrec.distributed.types import ModuleSharder, ParameterSharding

from dlrrec_torchrec.config import KERNELS, SHARDING_TYPES
from dlrrec_torchrec.sharding.devices import Device
from dlrrec_torchrec.sharding.tables import Table, constraints, module_of, optimizer_of, sharders
from dlrrec_torchrec.store.errors import DataError

RESERVED = 0.15  # of each rank's memory, for activations, fragments and other programs
_ID_BYTES = 8
# Of a batch's ids: two batches in the training pipeline with ten copies each, as TorchRec counts.
_ID_COPIES = 20
_MANAGED_BYTES = 32  # of a row: its id, position, count and time of use
_GRID = 1000  # up to this many combinations of choices all are tried; above, the best first


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that determines a plan.

    Args:
        tables: the tables to place.
        device: of each rank.
        world_size, local_world_size: ranks in all, and of one node.
        batch_size: examples of a step on each rank.
        optimizer: of the tables, out of optimizers.TABLE_OPTIMIZERS.
        dense_bytes: what the rest of the model takes on each rank.

    Raises:
        DataError: numbers that contradict each other, naming the flag.
    """

    tables: tuple[Table, ...]
    device: Device
    world_size: int = 1
    local_world_size: int = 1
    batch_size: int = 512
    optimizer: str = "adam"
    dense_bytes: int = 0

    def __post_init__(self) -> None:
        for flag, number in (
            ("--world-size", self.world_size),
            ("--local-world-size", self.local_world_size),
            ("--batch-size", self.batch_size),
        ):
            if number < 1:
                raise DataError(f"{flag} {number}: must be at least 1")
        if self.world_size % self.local_world_size:
            raise DataError(
                f"--world-size {self.world_size}: must be a multiple of --local-world-size "
                f"{self.local_world_size}, the ranks of one node"
            )
        if not self.tables:
            raise DataError("no tables to plan for; give some by --table NAME=ROWS,DIM or by --config")
        names = [table.name for table in self.tables]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"table {name}: named twice")


@dataclasses.dataclass(frozen=True)
class TablePart:
    """A part of a table on a rank. Bytes by kind and by the memory they must fit in; times in ms a step."""

    rank: int
    rows: int
    columns: int
    first_row: int
    first_column: int
    weight_bytes: int
    optimizer_bytes: int
    hbm: int
    ddr: int
    ssd: int
    forward_ms: float
    backward_ms: float
    communication_ms: float

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms + self.communication_ms


@dataclasses.dataclass(frozen=True)
class PlacedTable:
    """A table and where it goes; `parameter`: TorchRec's description of that."""

    table: Table
    sharding: str
    kernel: str
    parts: tuple[TablePart, ...]
    parameter: ParameterSharding


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every part of every table goes. `available`: bytes of each rank that are free for tables."""

    request: Request
    available: Storage
    tables: tuple[PlacedTable, ...]

    def ranks(self, field: str) -> list[float]:
        """The sum of `field` over the table parts of each rank."""
        sums = [0] * self.request.world_size
        for placed in self.tables:
            for part in placed.parts:
                sums[part.rank] += getattr(part, field)
        return sums

    @property
    def step_ms(self) -> float:
        """Predicted milliseconds of a step for the tables: those of the slowest rank."""
        return max(self.ranks("ms"))


class NoPlan(DataError):
    """The tables cannot be placed."""


def imbalance(loads: Sequence[float]) -> float:
    """The largest load divided by the mean load of all ranks, idle ones too; 1 is even."""
    return max(loads) * len(loads) / total if (total := sum(loads)) else 1.0


def state_bytes(optimizer: str, rows: int, columns: int) -> int:
    """Bytes of the optimizer's state for a part of a table; always fp32 (FBGEMM)."""
    return {"adam": 8 * rows * columns, "rowwise_adagrad": 4 * rows, "sgd": 0}[optimizer]


def solve(request: Request) -> Plan:
    """The fastest plan that fits, as predicted by TorchRec; equal requests have equal plans.

    Raises:
        NoPlan: there is none.
        DataError: settings of a table that leave no way to store it.
    """
    topology, enumerator, options = _prepared(request)
    reservation, chosen_options = _Reservation(request), _Chosen()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        enumerator=enumerator,
        storage_reservation=reservation,
        proposer=[
            GridSearchProposer(max_proposals=_GRID),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        stats=[chosen_options],
        debug=False,
        **options,
    )
    try:
        sharding = planner.plan(module_of(request.tables), sharders())
    except TorchRecPlannerError as error:
        raise NoPlan(str(error)) from None
    parameters = {name: p for part in sharding.plan.values() for name, p in part.items()}
    options_by_name = {option.name: option for option in chosen_options.options}
    placed = (
        _placed(t, options_by_name[t.name], parameters[t.name], request.optimizer) for t in request.tables
    )
    return Plan(request, reservation.available, tuple(placed))


def choices(request: Request) -> tuple[list[ShardingOption], Storage]:
    """Every way to store each table, with its costs, and the free memory of each rank. Raises as `solve`."""
    _, enumerator, _ = _prepared(request)
    return enumerator.enumerate(module_of(request.tables), sharders()), _Reservation(request).available


def _prepared(request: Request) -> tuple[Topology, EmbeddingEnumerator, dict[str, Any]]:
    allowed = {t.name: constraints(t, request.device, request.optimizer) for t in request.tables}
    options = {"batch_size": request.batch_size, "constraints": allowed}
    topology = request.device.topology(request.world_size, request.local_world_size)
    return topology, _Enumerator(request, topology, **options), options


def _placed(
    table: Table, option: ShardingOption, parameter: ParameterSharding, optimizer: str
) -> PlacedTable:
    optimizer = optimizer_of(table, optimizer)
    parts = tuple(
        TablePart(
            rank=shard.rank,
            rows=shard.size[0],
            columns=shard.size[1],
            first_row=shard.offset[0],
            first_column=shard.offset[1],
            weight_bytes=math.prod(shard.size) * table.itemsize,
            optimizer_bytes=state_bytes(optimizer, *shard.size),
            hbm=shard.storage.hbm,
            ddr=shard.storage.ddr,
            ssd=shard.storage.ssd,
            forward_ms=shard.perf.fwd_compute + shard.perf.prefetch_compute,
            backward_ms=shard.perf.bwd_compute,
            communication_ms=shard.perf.fwd_comms + shard.perf.bwd_comms,
        )
        for shard in option.shards
    )
    return PlacedTable(table, option.sharding_type, option.compute_kernel, parts, parameter)


class _Enumerator(EmbeddingEnumerator):
    """TorchRec's enumerator in a fixed order (not by string hashes), with the real optimizer state."""

    def __init__(self, request: Request, topology: Topology, **options: Any) -> None:
        super().__init__(topology, **options)
        self._request = request
        self._tables = {table.name: table for table in request.tables}

    def enumerate(self, module: nn.Module, sharders: list[ModuleSharder]) -> list[ShardingOption]:
        order = list(self._tables)

        def place(option: ShardingOption) -> tuple[int, int, int]:
            sharding, kernel = option.sharding_type, option.compute_kernel
            return order.index(option.name), SHARDING_TYPES.index(sharding), KERNELS.index(kernel)

        return sorted(super().enumerate(module, sharders), key=place)

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """TorchRec's estimates, which include no optimizer here, plus its state where FBGEMM stores it.

        TorchRec would count the state as if it had the type of the weights, and leave out the gradient of a
        replicated table and the cache of a table on SSD.
        """
        super().populate_estimates(sharding_options)
        for option in sharding_options:
            table, kernel = self._tables[option.name], option.compute_kernel
            optimizer = optimizer_of(table, self._request.optimizer)
            managed = kernel in ("fused_uvm", "fused_uvm_caching") and optimizer == "adam"
            on_host = managed or self._request.device.kind == "cpu"
            for shard in option.shards:
                weights = math.prod(shard.size) * table.itemsize
                extra = state_bytes(optimizer, *shard.size)
                extra += weights if kernel == "dense" else 0
                extra += _MANAGED_BYTES * shard.size[0] if table.ids == "managed" else 0
                extra += math.ceil(weights * table.cache) if kernel == "key_value" else 0
                if table.frozen:
                    shard.perf.bwd_compute = shard.perf.bwd_comms = 0.0
                shard.storage += Storage(hbm=0, ddr=extra) if on_host else Storage(hbm=extra, ddr=0)


class _Reservation(FixedPercentageStorageReservation):
    """Keeps RESERVED of both memories free, and room for the rest of the model in the tables' memory."""

    def __init__(self, request: Request) -> None:
        super().__init__(RESERVED)
        ids = sum(table.pooling for table in request.tables) * request.batch_size
        model_bytes = request.dense_bytes + math.ceil(ids * _ID_BYTES * _ID_COPIES)
        device = request.device
        hbm, ddr = (int((1 - RESERVED) * size) for size in (device.hbm, device.ddr))
        if device.hbm:
            hbm = max(hbm - model_bytes, 0)
        else:
            ddr = max(ddr - model_bytes, 0)
        self.available = Storage(hbm=hbm, ddr=ddr, ssd=device.ssd)

    def reserve(self, topology: Topology, *arguments: Any, **options: Any) -> Topology:
        reserved = super().reserve(topology, *arguments, **options)
        for device in reserved.devices:
            device.storage = dataclasses.replace(self.available)
        self._last_reserved_topology = reserved
        return reserved


class _Chosen(Stats):
    """Keeps the options that the planner chose."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *, best_plan: list[ShardingOption], **_: Any) -> None:
        self.options = best_plan
