"""The fast side: FBGEMM's tables alone, or sharded by TorchRec."""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.composable.table_batched_embedding_slice import TableBatchedEmbeddingSlice
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings.side import EPS, LR, Part, bag_offsets, fill, stepper
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.store.errors import DataError

_PRECISIONS = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "bf16": SparseType.BF16}
_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}
_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}


def check_offered(case: EmbeddingCase, device: str) -> None:
    """Raise DataError for what FBGEMM or TorchRec do not offer on "cpu" or "cuda", with an alternative."""
    if case.sharding == "none" and case.world_size > 1:
        raise DataError("--sharding none: is for one process; with --world-size take table_wise")
    if case.sharding != "none":
        _check_sharding(case, device)
    if device == "cpu":
        if case.kernel == "fused_uvm_caching":
            raise DataError("--kernel fused_uvm_caching: is a cache on a GPU; on a CPU take fused")
        for flag, dtype in (("--dtype", case.dtype), ("--output", case.output)):
            if dtype == "bf16":
                raise DataError(f"{flag} bf16: FBGEMM's kernels for CPUs have no bf16; take fp32 or fp16")
        if case.optimizer == "adam" and case.kernel == "fused":
            raise DataError("--optimizer adam: FBGEMM has no fused Adam for CPUs; take --kernel dense")
    elif case.world_size > torch.cuda.device_count():
        raise DataError(f"--world-size {case.world_size}: there are {torch.cuda.device_count()} GPUs here")
    torch_adam = case.optimizer == "adam" and (case.kernel == "dense" or case.reference != "none")
    if torch_adam and case.dtype != "fp32":
        raise DataError(
            "--optimizer adam: torch's keeps its moments in the tables' type, where they underflow; take "
            "--dtype fp32, or on a GPU --kernel fused --reference none"
        )


def _check_sharding(case: EmbeddingCase, device: str) -> None:
    sharder = EmbeddingBagCollectionSharder()
    if case.sharding not in sharder.sharding_types(device):
        raise DataError(f"--sharding {case.sharding}: TorchRec has none on {device}; take table_wise")
    kernels = sharder.compute_kernels(case.sharding, device)
    if case.kernel not in kernels:
        usable = [k for k in ("fused", "fused_uvm_caching", "dense") if k in kernels]
        raise DataError(
            f"--kernel {case.kernel}: TorchRec has none on {device} with --sharding {case.sharding}; "
            f"take {' or '.join(usable)}"
        )
    if case.sharding == "column_wise" and case.world_size > 1:
        if case.dim % (4 * case.world_size):
            raise DataError(
                f"--dim {case.dim}: column_wise needs a multiple of 4 for each of {case.world_size} ranks"
            )
        if case.optimizer == "rowwise_adagrad":
            raise DataError(
                "--sharding column_wise: each part of a row would keep its own sum of rowwise_adagrad, "
                "which is a different update; take --optimizer sgd"
            )


def make_fused(case: EmbeddingCase, ranks: Ranks) -> FbgemmTables | ShardedTables:
    """The side that the case names, with its initial weights."""
    if case.sharding == "none":
        return FbgemmTables(case, ranks.device)
    return ShardedTables(case, ranks)


def _fused_options(case: EmbeddingCase) -> dict[str, Any]:
    """Arguments of FBGEMM's constructor, which TorchRec passes on to it.

    Updates are rounded to the nearest number rather than at random, so that they can be checked.
    """
    return {
        "optimizer": _OPTIMIZERS[case.optimizer],
        "learning_rate": LR,
        "eps": EPS,
        "stochastic_rounding": False,
        "cache_load_factor": case.cache_load,
        "cache_precision": _PRECISIONS[case.dtype],
        "output_dtype": _PRECISIONS[case.output_dtype],
    }


class FbgemmTables:
    """FBGEMM's module alone: one kernel for all tables."""

    def __init__(self, case: EmbeddingCase, device: torch.device) -> None:
        self._case = case
        cpu, precision = device.type == "cpu", _PRECISIONS[case.dtype]
        if case.kernel == "dense":
            self._module = DenseTableBatchedEmbeddingBagsCodegen(
                [(case.rows, case.dim)] * case.tables,
                weights_precision=precision,
                output_dtype=_PRECISIONS[case.output_dtype],
                pooling_mode=PoolingMode.SUM,
                use_cpu=cpu,
            )
        else:
            cached = case.kernel == "fused_uvm_caching"
            place = EmbeddingLocation.MANAGED_CACHING if cached else EmbeddingLocation.DEVICE
            where = (EmbeddingLocation.HOST, ComputeDevice.CPU) if cpu else (place, ComputeDevice.CUDA)
            self._module = SplitTableBatchedEmbeddingBagsCodegen(
                [(case.rows, case.dim, *where)] * case.tables,
                device=device,
                weights_precision=precision,
                pooling_mode=PoolingMode.SUM,
                **_fused_options(case),
            )
        fill(case, self.parts())
        self._step = None
        if case.kernel == "dense":
            size = case.rows * case.dim
            tables = [
                TableBatchedEmbeddingSlice(
                    self._module.weights, t * size, (t + 1) * size, case.rows, case.dim
                )
                for t in range(case.tables)
            ]
            self._step = stepper(case, tables, sparse=False)

    def ready(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids.reshape(-1), bag_offsets(ids)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [self._module(*inputs)]

    def joined(self, sums: list[Tensor]) -> Tensor:
        return sums[0]

    def apart(self, gradient: Tensor, sums: list[Tensor]) -> list[Tensor]:
        return [gradient.to(sums[0].dtype)]

    def backward(self, sums: list[Tensor], gradients: list[Tensor]) -> None:
        sums[0].backward(gradients[0])
        if self._step:
            self._step()

    def parts(self) -> list[Part]:
        _flush(self._case, self._module)
        return [Part(t, 0, 0, values) for t, values in enumerate(self._module.split_embedding_weights())]


class ShardedTables:
    """An EmbeddingBagCollection under DistributedModelParallel: lookups with the exchange of ids and sums."""

    def __init__(self, case: EmbeddingCase, ranks: Ranks) -> None:
        self._case = case
        self._names = [f"t{t}" for t in range(case.tables)]
        self._order: list[str] = []  # of the features in the sums
        collection = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=name,
                    embedding_dim=case.dim,
                    num_embeddings=case.rows,
                    feature_names=[f"f_{name}"],
                    data_type=_DATA_TYPES[case.dtype],
                )
                for name in self._names
            ],
        )
        sharder = EmbeddingBagCollectionSharder(fused_params=_fused_options(case))
        plan = construct_module_sharding_plan(
            collection,
            {name: self._place(t) for t, name in enumerate(self._names)},
            sharder,
            ranks.local_world_size,
            case.world_size,
            ranks.device.type,
        )
        self._model = DistributedModelParallel(
            collection, device=ranks.device, plan=ShardingPlan({"": plan}), sharders=[sharder]
        )
        fill(case, self.parts())
        self._step = None
        if case.kernel == "dense":
            self._step = stepper(case, list(self._model.parameters()), sparse=False)

    def _place(self, table: int) -> Any:
        """TorchRec's sharding of the table: whole tables on the ranks in turn, the others over all ranks."""
        world, kernel = self._case.world_size, self._case.kernel
        if self._case.sharding == "table_wise":
            return table_wise(rank=table * world // self._case.tables, compute_kernel=kernel)
        if self._case.sharding == "column_wise":
            return column_wise(ranks=list(range(world)), compute_kernel=kernel)
        return row_wise(compute_kernel=kernel) if self._case.sharding == "row_wise" else data_parallel()

    def ready(self, ids: Tensor) -> KeyedJaggedTensor:
        lengths = torch.full((ids[..., 0].numel(),), ids.shape[-1], dtype=torch.int32, device=ids.device)
        return KeyedJaggedTensor([f"f_{name}" for name in self._names], ids.reshape(-1), lengths=lengths)

    def forward(self, inputs: KeyedJaggedTensor) -> list[Tensor]:
        pooled = self._model(inputs)
        self._order = pooled.keys()
        return [pooled.values()]

    def joined(self, sums: list[Tensor]) -> Tensor:
        return torch.cat([sums[0][:, self._columns(f"f_{name}")] for name in self._names], dim=1)

    def _columns(self, key: str) -> slice:
        place = self._order.index(key) * self._case.dim
        return slice(place, place + self._case.dim)

    def apart(self, gradient: Tensor, sums: list[Tensor]) -> list[Tensor]:
        pieces = dict(zip(self._names, gradient.split(self._case.dim, dim=1), strict=True))
        return [torch.cat([pieces[key.removeprefix("f_")] for key in self._order], dim=1).to(sums[0].dtype)]

    def backward(self, sums: list[Tensor], gradients: list[Tensor]) -> None:
        sums[0].backward(gradients[0])
        if self._step:
            self._step()

    def parts(self) -> list[Part]:
        _flush(self._case, self._model)
        parts = []
        for name, tensor in self._model.state_dict().items():
            table = self._names.index(name.split(".")[-2])
            if isinstance(tensor, ShardedTensor):
                parts += [Part(table, *s.metadata.shard_offsets, s.tensor) for s in tensor.local_shards()]
            else:
                parts.append(Part(table, 0, 0, tensor))
        return parts


def _flush(case: EmbeddingCase, module: torch.nn.Module) -> None:
    """Write the changed rows of the GPU's cache back to the tables."""
    if case.kernel == "fused_uvm_caching":
        for part in module.modules():
            if isinstance(part, SplitTableBatchedEmbeddingBagsCodegen):
                part.flush()
