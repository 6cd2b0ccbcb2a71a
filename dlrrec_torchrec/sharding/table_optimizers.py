"""The optimizers of embedding tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

TABLE_OPTIMIZERS = {"adam": torch.optim.Adam, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}


FUSED_EPS = 1e-8  # FBGEMM's, in fused Adagrad


def is_fused(table_optimizer: str, device: torch.device) -> bool:
    """Whether FBGEMM updates tables inside the backward pass with this optimizer on this device."""
    return not (table_optimizer == "adam" and device.type == "cpu")


class RowAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) on the rows that have a gradient; the others keep their moments.

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


@contextlib.contextmanager
def uncounted(model: nn.Module) -> Iterator[None]:
    """Forward passes within the block do not count as steps of the fused optimizers.

    FBGEMM takes every forward pass of a table for a step, also one without gradients, and the bias correction
    of its Adam follows from their number. Without this an evaluation would change the steps that come after
    it, and a resumed training (which counts its own steps) would be another one.
    """
    counts = [
        (count, count.clone())
        for module in model.modules()
        for lookup in getattr(module, "_lookups", ())
        for kernel in lookup.modules()
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)
        for count in (kernel.iter, kernel.iter_cpu)
    ]
    try:
        yield
    finally:
        for count, before in counts:
            count.copy_(before)
