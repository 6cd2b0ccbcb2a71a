"""The optimizers of tables and dense part, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

TABLE_OPTIMIZERS = {"adam": torch.optim.Adam, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
_FUSED_EPS = 1e-8  # FBGEMM's, in fused Adagrad


def is_fused(table_optimizer: str, device: torch.device) -> bool:
    """Whether FBGEMM updates tables inside the backward pass with this optimizer on this device."""
    return not (table_optimizer == "adam" and device.type == "cpu")


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) on the rows that have a gradient; the others' moments rest too.

    What FBGEMM's fused Adam computes on a GPU, for tables that have an ordinary gradient [rows, columns]. The
    bias correction counts the steps of the whole table.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(table)
                    state["exp_avg_sq"] = torch.zeros_like(table)
                state["step"] += 1
                count = state["step"].item()
                rows = table.grad.any(1).nonzero().squeeze(1)
                gradient = table.grad[rows]
                first = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
                second = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
                scale = (second / (1 - beta2**count)).sqrt_().add_(eps)
                table[rows] -= group["lr"] / (1 - beta1**count) * first / scale


def make_optimizer(
    model: DistributedModelParallel, lr: float, weight_decay: float = 0.0, table_optimizer: str = "adam"
) -> CombinedOptimizer:
    """The tables' fused optimizers, the same for replicated tables, and AdamW for the dense part.

    AdamW is Adam where `weight_decay` is 0. Only the dense part's matrices decay: tables, biases, norms and
    the contrastive weights do not. `table_optimizer`: as in `parallel.shard`.
    """
    replicated = {
        "adam": RowAdam,
        "rowwise_adagrad": lambda params: RowWiseAdagrad(params, eps=_FUSED_EPS),
        "sgd": lambda params: torch.optim.SGD(params, lr=lr),
    }[table_optimizer]

    def adam(params: list[Tensor]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr)

    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: p for name, p in rest.items() if ".embedding_bags." in name}
    dense = {name: p for name, p in rest.items() if name not in tables}
    parts = [("tables", model.fused_optimizer), ("dense", KeyedOptimizerWrapper(dense, adam))]
    if tables:
        parts.append(("tables", KeyedOptimizerWrapper(tables, replicated)))
    return CombinedOptimizer(parts)


def dense_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What `make_optimizer`'s optimizer updates but for tables; of any other optimizer, all."""
    parts = [("dense", optimizer)]
    if isinstance(optimizer, CombinedOptimizer):
        parts = optimizer.optimizers
    groups = [group for name, part in parts if name == "dense" for group in part.param_groups]
    return [parameter for group in groups for parameter in group["params"]]


def lr_factor(step: int, total: int, schedule: str, warmup: int) -> float:
    """What the learning rates are multiplied by in step `step` of 0..total-1.

    A linear rise over `warmup` steps, (step + 1) / warmup, then over the share t of the steps that remain:
    constant 1; linear 1 - t; cosine (1 + cos(pi t)) / 2.
    """
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(total - warmup, 1)
    return {"constant": 1.0, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}[schedule]


def set_lr(optimizer: CombinedOptimizer, lr: float, table_lr: float) -> None:
    """Set the learning rates of the next step; to be called before its backward pass."""
    for name, part in optimizer.optimizers:
        for group in part.param_groups:
            group["lr"] = table_lr if name == "tables" else lr
