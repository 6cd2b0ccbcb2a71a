"""The wide path: a linear model of the dense features beside the deep part (Wide & Deep)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIMIT = 5.0  # standard deviations: a column with a long tail must not decide alone


class WidePath(nn.Module):
    """w . z + b on standardised dense features z, added to the deep part's logit.

    z = (x - mean) / scale, kept within +-`limit`. Cheng et al. 2016, "Wide & Deep Learning for Recommender
    Systems", section 3: P(y = 1 | x) = sigmoid(w_wide . x + w_deep . a + b). The feature's mean and scale are
    buffers, saved with the weights; 0 and 1 until they are set (`training.warm_start`).

    It has no tables of ids: what an id says by itself is the joint, shrunken bias of its user or item, which
    is computed without the row itself and comes as a dense feature. A free weight for each id would learn
    the same again from rows that contain their own label.

    Args:
        in_features: width D of the dense features.
        limit: of |z|.

    Example::

        >>> wide = WidePath(3)
        >>> wide.set_scaling(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 1.0]))
        >>> wide.standardize(torch.tensor([[5.0, 0.5, -99.0]]))
        tensor([[ 2.0000,  0.5000, -5.0000]])
    """

    def __init__(self, in_features: int, limit: float = LIMIT, device: torch.device | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(in_features, device=device))
        self.register_buffer("scale", torch.ones(in_features, device=device))
        # A vector, not a matrix: weight decay, which is for matrices, would pull it away from its start.
        self.weight = nn.Parameter(torch.zeros(in_features, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    @torch.no_grad()
    def set_scaling(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean and scale, f32 [D] each."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: float) -> None:
        """Set the weights, f32 [D] for standardised features, and the bias."""
        self.weight.copy_(weight)
        self.bias.fill_(bias)

    def standardize(self, dense: Tensor) -> Tensor:
        """Features f32 [B, D] to z, f32 [B, D]."""
        return ((dense - self.mean) / self.scale).clamp(-self.limit, self.limit)

    def forward(self, standardized: Tensor) -> Tensor:
        """Logits f32 [B] of z, f32 [B, D]. Not a matrix product: autocast would make it half precision."""
        return (standardized * self.weight).sum(1) + self.bias
