"""The optimizers of tables and dense part, and the learning rate over the steps."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrrec_torchrec.sharding.table_optimizers import FUSED_EPS, RowAdam

_LIST_HEAD = "list_head"  # the module that holds its tables
_RESIDUAL = "residual"  # the module of the residual path
_DENSE = ("dense", _RESIDUAL)  # parts that are no tables


def make_optimizer(
    model: DistributedModelParallel, lr: float, weight_decay: float = 0.0, table_optimizer: str = "adam"
) -> CombinedOptimizer:
    """The tables' fused optimizers, the same for replicated tables, and AdamW for the dense part and, with a
    rate of its own, the residual path.

    AdamW is Adam where `weight_decay` is 0. Only the dense part's matrices decay: tables, biases, norms and
    the contrastive weights do not. `table_optimizer`: as in `sharding.apply.shard_tables`.
    """
    replicated = {
        "adam": RowAdam,
        "rowwise_adagrad": lambda params: RowWiseAdagrad(params, eps=FUSED_EPS),
        "sgd": lambda params: torch.optim.SGD(params, lr=lr),
    }[table_optimizer]

    def adam(params: list[Tensor]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr)

    not_fused = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: p for name, p in not_fused.items() if ".embedding_bags." in name}
    dense = {name: p for name, p in not_fused.items() if name not in tables}
    residual = {name: p for name, p in dense.items() if f".{_RESIDUAL}." in name}
    dense = {name: p for name, p in dense.items() if name not in residual}
    parts = [("tables", model.fused_optimizer), ("dense", KeyedOptimizerWrapper(dense, adam))]
    if residual:
        parts.append((_RESIDUAL, KeyedOptimizerWrapper(residual, adam)))
    of_list = {name: p for name, p in tables.items() if _LIST_HEAD in name}
    others = {name: p for name, p in tables.items() if name not in of_list}
    for name, replicated_tables in (("tables", others), (_LIST_HEAD, of_list)):
        if replicated_tables:
            parts.append((name, KeyedOptimizerWrapper(replicated_tables, replicated)))
    return CombinedOptimizer(parts)


def initialize(optimizer: CombinedOptimizer) -> None:
    """Make the state that optimizers otherwise make in their first step, as it is before that step."""
    for _, part in optimizer.optimizers:
        if not isinstance(part, KeyedOptimizerWrapper) or part.state:
            continue
        rates = [group["lr"] for group in part.param_groups]
        for group in part.param_groups:
            group["lr"] = 0.0  # the step that makes the state changes no weight
        part.init_state()
        part.zero_grad(set_to_none=True)
        for group, rate in zip(part.param_groups, rates, strict=True):
            group["lr"] = rate
        for state in part.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()


def dense_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What `make_optimizer`'s optimizer updates except tables; of any other optimizer, all."""
    parts = [("dense", optimizer)]
    if isinstance(optimizer, CombinedOptimizer):
        parts = optimizer.optimizers
    groups = [group for name, part in parts if name in _DENSE for group in part.param_groups]
    return [parameter for group in groups for parameter in group["params"]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rates over the steps of a training.

    A linear rise over the warm-up, (step + 1) / warmup_steps, then over the share t of the remaining steps:
    constant 1; linear 1 - t; cosine (1 + cos(pi t)) / 2.

    Attributes:
        lr, table_lr, list_lr, residual_lr: of the dense part, of the tables, of the list head's and of the
            residual path, where the factor is 1.
        kind: "constant", "linear" or "cosine".
        warmup_steps, total_steps: of the whole training.

    >>> Schedule(lr=0.1, table_lr=0.2, kind="linear", warmup_steps=2, total_steps=6).factor(3)
    0.75
    """

    lr: float
    table_lr: float
    kind: str = "constant"
    warmup_steps: int = 0
    total_steps: int = 1
    list_lr: float = 0.01
    residual_lr: float = 0.001

    def factor(self, step: int) -> float:
        """What both rates are multiplied by in step `step` of 0 … total_steps - 1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        t = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return {"constant": 1.0, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}[self.kind]

    def rates(self, step: int) -> dict[str, float]:
        """The rates `lr`, `table_lr`, `list_lr` and `residual_lr` of step `step`."""
        factor, names = self.factor(step), ("lr", "table_lr", "list_lr", "residual_lr")
        return {name: getattr(self, name) * factor for name in names}


def set_rates(
    optimizer: CombinedOptimizer,
    lr: float,
    table_lr: float,
    list_lr: float = 0.01,
    residual_lr: float = 0.001,
) -> None:
    """Set the learning rates of the next step; call it before its backward pass."""
    of_parts = {"tables": table_lr, _RESIDUAL: residual_lr}
    for name, part in optimizer.optimizers:
        # The fused optimizers of all collections are one part, each under its collection's path.
        fused = part.optimizers if isinstance(part, CombinedOptimizer) else [(name, part)]
        for path, collection in fused:
            rate = list_lr if _LIST_HEAD in path else of_parts.get(name, lr)
            for group in collection.param_groups:
                group["lr"] = rate
