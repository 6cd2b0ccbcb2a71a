"""The common interface of the compared sides, their initial weights, and updates that are not fused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings.random_ids import weight_blocks
from dlrrec_torchrec.sharding.table_optimizers import RowAdam

LR = 0.05
EPS = 1e-12  # so small that torch and FBGEMM may add it at different places of Adam's formula


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows from `top` and columns from `left` of a table, in this process; a view."""

    table: int
    top: int
    left: int
    values: Tensor


class Side(Protocol):
    """Tables that look up bags and update their rows; b bags of each of T tables on this rank."""

    def ready(self, ids: Tensor) -> Any:
        """This rank's ids, i64 [T, b, L], in the form that the side needs. Not timed."""

    def forward(self, inputs: Any) -> list[Tensor]:
        """The bags' sums, in the side's own form."""

    def joined(self, sums: list[Tensor]) -> Tensor:
        """The sums as [b, T·D]. Not timed."""

    def apart(self, gradient: Tensor, sums: list[Tensor]) -> list[Tensor]:
        """The gradient f32 [b, T·D] of the joined sums, in the form of the sums. Not timed."""

    def backward(self, sums: list[Tensor], gradients: list[Tensor]) -> None:
        """Update the rows by the mean of all ranks' gradients."""

    def parts(self) -> list[Part]:
        """The weights as they are now."""


def fill(case: EmbeddingCase, parts: Iterable[Part]) -> None:
    """Set the weights to their initial values (`random_ids.weight_blocks`)."""
    for part in parts:
        for rows, values in first_values(case, part):
            part.values[rows].copy_(values)


def first_values(case: EmbeddingCase, part: Part) -> Iterator[tuple[slice, Tensor]]:
    """(rows of the part, their initial values), block by block."""
    height, width = part.values.shape
    for top, values in weight_blocks(case, part.table, part.values.device):
        first, last = max(top, part.top), min(top + len(values), part.top + height)
        if first < last:
            values = values[first - top : last - top, part.left : part.left + width]
            yield slice(first - part.top, last - part.top), values


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one sum of squares a row: s += mean(g²); w -= lr·g / (sqrt(s) + eps).

    What FBGEMM and `torchrec.optim.RowWiseAdagrad` compute, for dense and for sparse gradients (torch and
    TorchRec have none for sparse ones). The arithmetic is in fp32.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["sum"] = torch.zeros(len(table), device=table.device)
                if table.grad.is_sparse:
                    gradient = table.grad.coalesce()
                    rows, values = gradient.indices()[0], gradient.values().float()
                    total = state["sum"][rows].add_(values.square().mean(1))
                    state["sum"][rows] = total
                    values.mul_((-group["lr"] / total.sqrt_().add_(group["eps"])).unsqueeze(1))
                    table.index_add_(0, rows, values.to(table.dtype))
                else:
                    values = table.grad.float()
                    total = state["sum"].add_(values.square().mean(1))
                    table.addcdiv_(values, (total.sqrt() + group["eps"]).unsqueeze(1), value=-group["lr"])


def stepper(case: EmbeddingCase, tables: list[Tensor], sparse: bool) -> Callable[[], None]:
    """A function that updates tables by their gradients with the case's optimizer, and clears these."""
    if case.optimizer == "sgd":
        optimizer = torch.optim.SGD(tables, lr=LR)
    elif case.optimizer == "rowwise_adagrad":
        optimizer = RowwiseAdagrad(tables, lr=LR, eps=EPS)
    else:
        optimizer = (torch.optim.SparseAdam if sparse else RowAdam)(tables, lr=LR, eps=EPS)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def bag_offsets(ids: Tensor) -> Tensor:
    """Where each bag of ids [..., L] starts in the flat ids, and the end: i64 [bags + 1]."""
    return torch.arange(0, ids.numel() + 1, ids.shape[-1], device=ids.device)
