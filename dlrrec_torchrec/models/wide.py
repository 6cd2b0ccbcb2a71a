"""Beside the deep part: a linear model of the dense features (Wide & Deep), and an MLP of what it leaves."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrrec_torchrec.models.interactions import OverArch

LIMIT = 5.0  # standard deviations: a column with a long tail must not decide alone
INPUT_DROPOUT, DROPOUT = 0.1, 0.3  # of the residual path
DECAY = 0.99  # of its mean


class WidePath(nn.Module):
    """w . z + b on standardised features z, added to the deep part's logit.

    z = (x - mean) / scale, kept within +-`limit`. Cheng et al. 2016, "Wide & Deep Learning for Recommender
    Systems", section 3: P(y = 1 | x) = sigmoid(w_wide . [x, phi(x)] + w_deep . a + b). The features are the
    dense ones and, as phi, the products of two groups of them: a factorisation machine between a user's
    profile and an item's. Mean and scale are buffers, saved with the weights; 0 and 1 until they are set
    (`training.warm_start`).

    It has no tables of ids: what an id says by itself is the joint, shrunken bias of its user or item, which
    is computed without the row itself and comes as a dense feature. A free weight for each id would learn
    the same again from rows that contain their own label.

    Args:
        in_features: width D of the dense features.
        products: two ranges of dense features, of sizes P and Q, of which every product is a feature too.
        limit: of |z|.

    Example::

        >>> wide = WidePath(3)
        >>> wide.set_scaling(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 1.0]))
        >>> wide.standardize(torch.tensor([[5.0, 0.5, -99.0]]))
        tensor([[ 2.0000,  0.5000, -5.0000]])
        >>> WidePath(4, products=(range(0, 2), range(2, 4))).expand(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[1., 2., 3., 4., 3., 4., 6., 8.]])
    """

    def __init__(
        self,
        in_features: int,
        products: tuple[range, range] | None = None,
        limit: float = LIMIT,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.limit, self.in_features, self.products = limit, in_features, products
        self.features = in_features + (len(products[0]) * len(products[1]) if products else 0)
        self.register_buffer("mean", torch.zeros(self.features, device=device))
        self.register_buffer("scale", torch.ones(self.features, device=device))
        # A vector, not a matrix: weight decay, which is for matrices, would pull it away from its start.
        self.weight = nn.Parameter(torch.zeros(self.features, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))
        self.register_buffer("kept_weight", torch.zeros(self.features, device=device))
        self.register_buffer("kept_bias", torch.zeros(1, device=device))

    @torch.no_grad()
    def set_scaling(self, mean: Tensor, scale: Tensor) -> None:
        """Set mean and scale, f32 [F] each, of all features F = D + P Q; of an infinite scale: z is 0."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: float) -> None:
        """Set the weights, f32 [F] for standardised features, and the bias, and keep them."""
        self.weight.copy_(weight)
        self.bias.fill_(bias)
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Predict by the weights as they are now."""
        self.kept_weight.copy_(self.weight)
        self.kept_bias.copy_(self.bias)

    def expand(self, dense: Tensor) -> Tensor:
        """Dense features f32 [B, D] and their products, f32 [B, F]."""
        if self.products is None:
            return dense
        left, right = (dense[:, group.start : group.stop] for group in self.products)
        return torch.cat([dense, (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)], dim=1)

    def standardize(self, dense: Tensor) -> Tensor:
        """Dense features f32 [B, D] to z, f32 [B, F], of which the first D are the dense features'."""
        return ((self.expand(dense) - self.mean) / self.scale).clamp(-self.limit, self.limit)

    def forward(self, standardized: Tensor) -> Tensor:
        """Logits f32 [B] of z, f32 [B, F]. Not a matrix product: autocast would make it half precision."""
        return (standardized * self.weight).sum(1) + self.bias

    def predict(self, standardized: Tensor) -> Tensor:
        """As `forward`, by the weights that were kept."""
        return (standardized * self.kept_weight).sum(1) + self.kept_bias


class ResidualPath(nn.Module):
    """An MLP of the standardised dense features: what they say together that a linear model cannot.

    Added to the wide path's logit, and trained on it alone (`TrainWrapper`): a second stage of boosting
    (Friedman 2001, "Greedy Function Approximation", section 4), whose first is the regression. The last layer
    starts at zero. The features say of a user and an item what holds for the rows that they are not made of
    either (docs/features.md), so that it can be larger than the deep part, which sees who they are.

    What is evaluated is the running mean of the weights over the training steps (Polyak and Juditsky 1992):
    its large, decaying steps are noisy, and what noise they leave goes with the mean. Predictions are by the
    mean that was kept last (`keep`).

    Args:
        in_features: width D of the dense features.
        layer_sizes: of the hidden layers.
        decay: share of the mean that a step keeps; less in the first steps, (1 + n) / (10 + n).

    Example::

        >>> path = ResidualPath(in_features=7, layer_sizes=[32, 8])
        >>> path(torch.randn(4, 7))
        tensor([0., 0., 0., 0.], grad_fn=<SqueezeBackward1>)
    """

    def __init__(
        self,
        in_features: int,
        layer_sizes: Sequence[int],
        device: torch.device | None = None,
        decay: float = DECAY,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.dropout = nn.Dropout(INPUT_DROPOUT)
        self.layers = OverArch(in_features, [*layer_sizes, 1], DROPOUT, device)
        for parameter in self.layers.model[-1].parameters():
            nn.init.zeros_(parameter)
        plain = OverArch(in_features, [*layer_sizes, 1], 0.0, device).requires_grad_(False)
        plain.load_state_dict(self.layers.state_dict())
        self.mean, self.kept = plain, copy.deepcopy(plain)
        self.register_buffer("steps", torch.zeros((), device=device))

    def forward(self, standardized: Tensor) -> Tensor:
        """Standardised dense features f32 [B, D] to logits f32 [B]."""
        if self.training:
            logits = self.layers(self.dropout(standardized))
            follow(self.mean, self.layers, self.steps, self.decay)
        else:
            logits = self.mean(standardized)
        return logits.squeeze(1).float()

    def keep(self) -> None:
        """Predict by the mean as it is now."""
        self.kept.load_state_dict(self.mean.state_dict())

    def predict(self, standardized: Tensor) -> Tensor:
        """As `forward`, by the mean that was kept."""
        return self.kept(standardized).squeeze(1).float()


@torch.fx.wrap
@torch.no_grad()
def follow(mean: nn.Module, layers: nn.Module, steps: Tensor, decay: float) -> None:
    """Move the running mean towards the weights of this step."""
    steps += 1
    share = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)
    for kept, now in zip(mean.parameters(), layers.parameters(), strict=True):
        kept.lerp_(now, share)
