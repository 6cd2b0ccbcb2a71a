"""Sums and gathers over the ranks of the default process group; without one they do nothing.

Every rank must call them equally often and in the same order, even without rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Ranks of the default process group, 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(values: Tensor) -> Tensor:
    """Element-wise sum of `values` (any shape) over the ranks; no gradient passes."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_stack(values: Tensor) -> Tensor:
    """The `values` (any shape, equal on all ranks) of every rank, [ranks, ...]; no gradient passes."""
    values = values.detach().contiguous()
    if world_size() == 1:
        return values.unsqueeze(0)
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order: [n_0 + n_1 + ..., ...]. Ranks may have different numbers.

    The gradient of a row is the sum of the gradients that all ranks' losses have with respect to it.
    """
    return _GatherRows.apply(rows) if world_size() > 1 else rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        counts = all_stack(torch.tensor(len(rows), device=rows.device)).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        start = sum(counts[: dist.get_rank()])
        ctx.own_rows = slice(start, start + len(rows))
        return torch.cat([part[:n] for part, n in zip(all_stack(padded), counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_sum(gradient)[ctx.own_rows]
