"""The parts of a plan: tables, and for each the ways to store it that its settings and the device allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import (
    CacheParams,
    KeyValueParams,
    ModuleSharder,
    QuantizedCommCodecs,
    ShardingType,
)
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from dlrrec_torchrec.config import SHARDING_TYPES, TableConfig
from dlrrec_torchrec.sharding.devices import Device
from dlrrec_torchrec.sharding.managed_sharder import ManagedSharder
from dlrrec_torchrec.sharding.table_optimizers import is_fused
from dlrrec_torchrec.store.errors import DataError

DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}
_DTYPE_NAMES = {data_type: name for name, data_type in DTYPES.items()}
COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)  # modules that hold tables
_COLUMNS = ("column_wise", "table_column_wise", "grid_shard")
_REPLICATED = "data_parallel"


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder, with sharding by rows on CPUs too (which TorchRec can do but does not offer)."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The sharding types for "cpu" or "cuda"."""
        types = super().sharding_types(compute_device_type)
        return types if ShardingType.ROW_WISE.value in types else [*types, ShardingType.ROW_WISE.value]


def sharders(codecs: dict[str, QuantizedCommCodecs] | None = None) -> list[ModuleSharder]:
    """Sharders for every kind of module with tables; `codecs`: of the data they exchange."""
    return [
        BagSharder(qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        ManagedSharder(BagSharder(qcomm_codecs_registry=codecs), qcomm_codecs_registry=codecs),
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table to plan for; the fields that are not explained here are TableConfig's.

    Raises DataError for impossible sizes, naming the setting.
    """

    name: str
    rows: int
    dim: int
    dtype: str = "fp32"
    pooling: float = 1.0
    sharding: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    cache: float = 0.2
    min_columns: int = 128
    ssd: str = ""
    ids: str = "code"
    evict: str = "lfu"
    admit: int = 1
    pooled: bool = True  # looked up as a sum, not one by one
    frozen: bool = False  # not trained: no optimizer, no backward pass

    def __post_init__(self) -> None:
        for name, fits, requirement in (
            ("rows", self.rows >= 1, "at least 1"),
            (
                "dim",
                self.dim >= 4 and self.dim % 4 == 0,
                "a multiple of 4, as FBGEMM reads four columns at once",
            ),
            ("pooling", self.pooling > 0, "above 0"),
            ("cache", 0 < self.cache <= 1, "a share of the rows, above 0 and at most 1"),
            ("min_columns", self.min_columns >= 4, "at least 4"),
        ):
            if not fits:
                raise DataError(f"table {self.name}: {name}={getattr(self, name)} must be {requirement}")

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "fp32" else 2

    @property
    def weight_bytes(self) -> int:
        return self.rows * self.dim * self.itemsize

    def __str__(self) -> str:
        return f"{self.name} ({self.rows:,} x {self.dim} {self.dtype})"


def configured(
    name: str, settings: TableConfig, rows: int | None, dim: int | None, **overrides: object
) -> Table:
    """The table `name` with its settings; `rows` and `dim` of the model, None where it does not say.

    Raises DataError where the size of the table is neither in the model nor in the settings.
    """
    sizes = {"rows": settings.rows if rows is None else rows, "dim": settings.dim if dim is None else dim}
    for key, size in sizes.items():
        if size is None:
            raise DataError(
                f"table {name}: how many {key}? set model.tables.{name}.{key} "
                "(or, for `dlrrec plan`, --table NAME=ROWS,DIM)"
            )
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    values |= {key: tuple(values[key]) for key in ("sharding", "kernels")} | sizes
    values |= {"pooling": settings.pooling or 1.0, "dtype": settings.dtype or "fp32"} | overrides
    return Table(name, **values)


def tables_in(module: nn.Module, settings: Mapping[str, TableConfig]) -> list[Table]:
    """The tables of the module's collections, with their sizes and their `settings` (by name).

    A collection's table `t_NAME` is the table NAME. Raises DataError for settings of a table that does
    not exist.
    """
    tables = []
    for collection in module.modules():
        if isinstance(collection, COLLECTIONS):
            pooled = isinstance(collection, EmbeddingBagCollection)
            configs = collection.embedding_bag_configs() if pooled else collection.embedding_configs()
            frozen = not any(p.requires_grad for p in collection.parameters())
            for table in configs:
                name = table_key(table.name)
                table_settings = settings.get(name, TableConfig())
                known_fields = {"dtype": _DTYPE_NAMES[table.data_type], "pooled": pooled, "frozen": frozen}
                if frozen:  # an example looks up its entity and, for the contrastive terms, a positive
                    known_fields["pooling"] = table_settings.pooling or 2.0
                tables.append(
                    configured(
                        name, table_settings, table.num_embeddings, table.embedding_dim, **known_fields
                    )
                )
    names = [table.name for table in tables]
    for name in settings:
        if name not in names:
            raise DataError(
                f"model.tables.{name}: the model has no such table (it has: {', '.join(names)}; "
                "model.category, model.user_id, model.item_id, list.weight and model.vectors=table "
                "switch them on)"
            )
    return tables


def dense_bytes(module: nn.Module) -> int:
    """Bytes that the module needs in training without its tables.

    Its buffers, and six times its parameters (TorchRec's rule: weights, gradients, moments, DDP's buckets).
    """
    collections = [m for m in module.modules() if isinstance(m, COLLECTIONS)]
    tables = {id(parameter) for collection in collections for parameter in collection.parameters()}
    dense_parameters = [6 * p.numel() * p.element_size() for p in module.parameters() if id(p) not in tables]
    return sum(dense_parameters) + sum(b.numel() * b.element_size() for b in module.buffers())


def table_key(name: str) -> str:
    """The name in the configuration of the table that TorchRec knows as `name`."""
    return name.removeprefix("t_")


def module_of(tables: Sequence[Table]) -> nn.Module:
    """Collections on "meta" with these tables, each under its own name."""
    module = nn.Module()
    for kind, config, pooled in (
        (EmbeddingBagCollection, EmbeddingBagConfig, True),
        (EmbeddingCollection, EmbeddingConfig, False),
    ):
        configs = [
            config(
                name=t.name,
                embedding_dim=t.dim,
                num_embeddings=t.rows,
                feature_names=[t.name],
                data_type=DTYPES[t.dtype],
            )
            for t in tables
            if t.pooled == pooled
        ]
        dims = {c.embedding_dim for c in configs} if not pooled else {0}
        for dim in sorted(dims):  # an EmbeddingCollection holds tables of one dimension
            same_dim = [c for c in configs if pooled or c.embedding_dim == dim]
            if same_dim:
                module.add_module(
                    f"{kind.__name__}{dim or ''}", kind(tables=same_dim, device=torch.device("meta"))
                )
    return module


def constraints(table: Table, device: Device, optimizer: str) -> ParameterConstraints:
    """What the planner may choose for the table.

    Raises DataError where nothing is left, with the reason against each choice.
    """
    optimizer = optimizer_of(table, optimizer)
    kernels = table.kernels or ("fused", "dense")
    if table.sharding:
        candidates = table.sharding
    elif table.ids == "managed":
        candidates = ("row_wise",)
    elif kernels == ("dense",) or not _fused(device, optimizer):
        candidates = (_REPLICATED,)
    else:
        candidates = _default_sharding(device)
    against = {k: _against_kernel(k, table, device, optimizer) for k in kernels if k != "dense"}
    usable = [kernel for kernel, reason in against.items() if not reason]
    for sharding in candidates:
        against[sharding] = _against_sharding(sharding, table, device, optimizer)
        if sharding == _REPLICATED and "dense" not in kernels:
            against[sharding] = "its kernel is dense"
        elif sharding != _REPLICATED and not usable:
            against[sharding] = against[sharding] or "no kernel is left for it"
    allowed = [sharding for sharding in candidates if not against[sharding]]
    if not allowed:
        reasons = "; ".join(f"{choice}: {reason}" for choice, reason in against.items() if reason)
        raise DataError(
            f"table {table.name}: no way to store it is left ({reasons}); "
            f"change model.tables.{table.name}.sharding, kernels or dtype, or train.table_optimizer"
        )
    cached = {"fused_uvm_caching", "key_value"} & set(usable)
    return ParameterConstraints(
        sharding_types=allowed,
        compute_kernels=[*usable, "dense"],
        min_partition=table.min_columns,
        pooling_factors=[table.pooling],
        feature_names=[table.name],
        cache_params=CacheParams(load_factor=table.cache) if cached else None,
        key_value_params=KeyValueParams(ssd_storage_directory=table.ssd or None) if cached else None,
    )


def optimizer_of(table: Table, optimizer: str) -> str:
    """A frozen table counts as one under SGD that is never updated: no state, and fused everywhere."""
    return "sgd" if table.frozen else optimizer


def _fused(device: Device, optimizer: str) -> bool:
    return is_fused(optimizer, torch.device(device.kind))


def _default_sharding(device: Device) -> tuple[str, ...]:
    offered = EmbeddingBagCollectionSharder().sharding_types(device.kind)
    return tuple(s for s in SHARDING_TYPES if s in offered and s not in (_REPLICATED, "grid_shard"))


def _against_sharding(sharding: str, table: Table, device: Device, optimizer: str) -> str | None:
    """Why the table cannot be sharded so, None if it can."""
    if sharding != "row_wise" and table.ids == "managed":
        return "tables of managed ids are sharded row_wise"
    if sharding == _REPLICATED and table.frozen:
        return "tables of content vectors are not replicated"
    if sharding == _REPLICATED:
        return None if table.dtype == "fp32" else "replicated tables are fp32"
    if not _fused(device, optimizer):
        return (
            f"needs a fused {optimizer}, which FBGEMM does not have for CPUs (it has rowwise_adagrad and sgd)"
        )
    if optimizer == "rowwise_adagrad" and sharding in _COLUMNS:
        return "row-wise Adagrad has one value a row, and each part of the columns would have its own"
    sharder = sharders()[0 if table.pooled else 1]
    if sharding not in sharder.sharding_types(device.kind):
        return f"not offered on {device.kind}" if table.pooled else "not offered for single lookups"
    return None


def _against_kernel(kernel: str, table: Table, device: Device, optimizer: str) -> str | None:
    if kernel != "fused" and table.ids == "managed":
        return "tables of managed ids are on the device"
    if not _fused(device, optimizer):
        return f"FBGEMM has no fused {optimizer} for CPUs"
    if kernel != "fused" and device.kind == "cpu":
        return "needs a GPU"
    if kernel == "key_value" and optimizer == "sgd":
        return "FBGEMM has no sgd for tables on SSD"
    return None
