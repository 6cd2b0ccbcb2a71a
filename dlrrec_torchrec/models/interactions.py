"""Feature interactions and the top MLP. `dot` is TorchRec's InteractionArch; the other two are here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet


class PairwiseInteraction(nn.Module):
    """Every scalar with every other: x and all x_i x_j, i < j (what V0 and DLRREC's authors do).

    Args:
        in_features: F numbers of the concatenated dense, sparse and reduced vectors.

    Example::

        >>> interaction = PairwiseInteraction(3)
        >>> interaction(torch.tensor([[2.0, 3.0, 5.0]]))
        tensor([[ 2.,  3.,  5.,  6., 10., 15.]])
        >>> interaction.out_features
        6
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features + in_features * (in_features - 1) // 2

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> [B, F + F (F - 1) / 2], the pairs in row order (0,1), (0,2), ..., (F-2,F-1)."""
        return torch.cat([features, pairwise_products(features)], dim=1)


class CrossInteraction(LowRankCrossNet):
    """Deep & Cross network v2 with low-rank weights over the concatenated vectors (Wang et al. 2021).

    Args:
        in_features: F numbers; the output has as many.
        num_layers, low_rank: of TorchRec's LowRankCrossNet.

    Example::

        >>> interaction = CrossInteraction(in_features=48, num_layers=2, low_rank=16)
        >>> interaction(torch.randn(4, 48)).shape
        torch.Size([4, 48])
    """

    def __init__(self, in_features: int, num_layers: int = 3, low_rank: int = 32) -> None:
        super().__init__(in_features, num_layers, min(low_rank, in_features))
        self.out_features = in_features


class OverArch(nn.Module):
    """The top MLP: linear layers with ReLU and dropout between them, a logit at the end, no sigmoid.

    Args:
        in_features: input size.
        layer_sizes: as [256, 16, 1]; the last is 1.
        dropout: share of each hidden layer's outputs set to zero in training.

    Example::

        >>> over_arch = OverArch(in_features=48, layer_sizes=[16, 1], dropout=0.1)
        >>> over_arch(torch.randn(4, 48)).shape
        torch.Size([4, 1])
    """

    def __init__(self, in_features: int, layer_sizes: Sequence[int], dropout: float, device=None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip([in_features, *layer_sizes], layer_sizes, strict=False):
            layers += [nn.Linear(inputs, outputs, device=device), nn.ReLU(), nn.Dropout(dropout)]
        self.model = nn.Sequential(*layers[:-2])

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> logits [B, 1]."""
        return self.model(features)


@torch.fx.wrap
def pairwise_products(features: Tensor) -> Tensor:
    """x_i x_j for i < j, [B, F] -> [B, F (F - 1) / 2]."""
    return _PairwiseProducts.apply(features)


class _PairwiseProducts(torch.autograd.Function):
    """By autograd alone, two more tensors of the output's size would stay in memory."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        batch, width = features.shape
        ctx.save_for_backward(features)
        out = features.new_empty(batch, width * (width - 1) // 2)
        for i, start in _rows_of_triangle(width):
            torch.mul(features[:, i : i + 1], features[:, i + 1 :], out=out[:, start : start + width - 1 - i])
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        width = features.shape[1]
        total = torch.zeros_like(features)
        for i, start in _rows_of_triangle(width):
            part = gradient[:, start : start + width - 1 - i]
            total[:, i] += (part * features[:, i + 1 :]).sum(1)
            total[:, i + 1 :].addcmul_(part, features[:, i : i + 1])
        return total


def _rows_of_triangle(width: int):
    start = 0
    for i in range(width - 1):
        yield i, start
        start += width - 1 - i
