"""Batch normalisation over the present rows of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrrec_torchrec.distributed.collectives import all_stack, all_sum


class MaskedBatchNorm(nn.Module):
    """BatchNorm1d with statistics of the present rows only, over all ranks.

    With every row present and one process it equals `torch.nn.BatchNorm1d`; N ranks equal one rank on the
    joined batch, also where they have different numbers of rows. (torch's SyncBatchNorm supports neither
    masks nor CPUs.)

    Args:
        features: columns C.
        eps, momentum: as `torch.nn.BatchNorm1d`.

    Example::

        >>> norm = MaskedBatchNorm(1, eps=0.0)
        >>> rows = torch.tensor([[1.0], [3.0], [100.0]])
        >>> norm(rows, present=torch.tensor([True, True, False])).tolist()  # the mean is 2, not 34.7
        [[-1.0], [1.0], [0.0]]
        >>> norm.running_mean  # momentum 0.1
        tensor([0.2000])
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1, device=None) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(features, device=device))
        self.bias = nn.Parameter(torch.zeros(features, device=device))
        self.register_buffer("running_mean", torch.zeros(features, device=device))
        self.register_buffer("running_var", torch.ones(features, device=device))

    def reset_parameters(self) -> None:
        """Reset to the identity, with statistics of no rows."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(
        self, rows: Tensor, present: Tensor, track: bool = True, share: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            rows: f32 [B, C]; B may be 0.
            present: bool [B]; the other rows do not count in the statistics and are zero in the result.
            track: update the running statistics (in training).
            share: f32 [B], how much each present row counts in the statistics, as 1 / ranks for a row that
                every rank has; default 1.

        Returns:
            f32 [B, C], zero where not present.
        """
        if not self.training:
            return eval_batch_norm(
                rows, present, self.weight, self.bias, self.running_mean, self.running_var, self.eps
            )
        return train_batch_norm(
            rows,
            present,
            present if share is None else present * share,
            self.weight,
            self.bias,
            self.running_mean if track else None,
            self.running_var if track else None,
            self.momentum,
            self.eps,
        )


@torch.fx.wrap
def eval_batch_norm(
    rows: Tensor, present: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Normalise by given statistics, as two operations over [B, C]."""
    scale = weight * torch.rsqrt(var + eps)
    return (rows * scale + (bias - mean * scale)) * present.unsqueeze(1)


@torch.fx.wrap
def train_batch_norm(
    rows: Tensor,
    present: Tensor,
    share: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise by the statistics of the present rows of all ranks; update the running ones in place."""
    out, mean, squares, count = _TrainBatchNorm.apply(rows, present, share, weight, bias, eps)
    if running_mean is not None:
        with torch.no_grad():
            share = momentum * (count > 0)
            running_mean.lerp_(mean, share)
            running_var.lerp_(squares / (count - 1).clamp(min=1), share)
    return out


class _TrainBatchNorm(torch.autograd.Function):
    """One message forward (count, mean and squares about the mean: no cancellation), one backward."""

    @staticmethod
    def forward(ctx, rows: Tensor, present: Tensor, share: Tensor, weight: Tensor, bias: Tensor, eps: float):
        columns = rows.shape[1]
        mask = present.unsqueeze(1).to(rows.dtype)
        share = share.unsqueeze(1).to(rows.dtype)
        count = share.sum()
        mean = (rows * share).sum(0) / _divisor(count)
        squares = ((rows - mean).square() * share).sum(0)

        parts = all_stack(torch.cat([count.reshape(1), mean, squares]))  # [ranks, 1 + 2 C]
        counts, means = parts[:, :1], parts[:, 1 : columns + 1]
        count = counts.sum()
        mean = (counts * means).sum(0) / _divisor(count)
        squares = (parts[:, columns + 1 :] + counts * (means - mean).square()).sum(0)  # Chan et al. 1979

        scale = torch.rsqrt(squares / _divisor(count) + eps)
        normal = (rows - mean) * scale * mask
        ctx.save_for_backward(normal, mask, share, weight * scale, count)
        ctx.mark_non_differentiable(mean, squares, count)
        return normal * weight + bias * mask, mean, squares, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_unused):
        normal, mask, share, scale, count = ctx.saved_tensors
        gradient = gradient * mask
        local_sums = torch.stack([gradient.sum(0), (gradient * normal).sum(0)])
        over_bias, over_weight = all_sum(local_sums) / _divisor(count)
        into_rows = (gradient - share * (over_bias + normal * over_weight)) * scale
        return into_rows, None, None, local_sums[1], local_sums[0], None


def _divisor(count: Tensor) -> Tensor:
    """The count, or 1 where it is 0, and the numerator too."""
    return torch.where(count > 0, count, 1)
