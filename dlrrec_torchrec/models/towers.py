"""Projection towers: content vectors reduced inside the model, trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch

from dlrrec_torchrec.models.norm import MaskedBatchNorm

NORMS = ("batch", "layer", "none")
for _name in ("take_rows", "use_counts"):  # one node each for the FX tracer
    torch.fx.wrap(_name)


class Tower(nn.Module):
    """Linear layers with ReLU between them and a normalisation at the end (DLRREC sections 3.2 and 4.3).

    A missing vector (all zeros) gives a zero row and changes no other row: the batch statistics leave it out.

    Args:
        in_features: size of the input vectors.
        layer_sizes: outputs of the linear layers, as [256, 32]; the last is the reduced size R.
        norm: "batch" (over all ranks), "layer" or "none".
        dropout: share of input numbers set to zero in training.

    Example::

        >>> tower = Tower(in_features=384, layer_sizes=[256, 32])
        >>> vectors = torch.randn(4, 384)
        >>> vectors[3] = 0  # missing
        >>> reduced = tower(vectors)
        >>> reduced.shape, bool(reduced[3].any())
        (torch.Size([4, 32]), False)
    """

    def __init__(
        self,
        in_features: int,
        layer_sizes: Sequence[int],
        norm: str = "batch",
        dropout: float = 0.0,
        device=None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        for before, after in zip([in_features, *layer_sizes], layer_sizes, strict=False):
            layers += [nn.Linear(before, after, device=device), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        if norm == "batch":
            # It takes the mean away, and with it this bias, whose gradient would be rounding noise: Adam
            # makes full steps of that, which the running mean of evaluation follows late.
            self.layers[-1].bias = None
        self.norm = {
            "batch": lambda: MaskedBatchNorm(layer_sizes[-1], device=device),
            "layer": lambda: nn.LayerNorm(layer_sizes[-1], device=device),
            "none": nn.Identity,
        }[norm]()

    def forward(self, vectors: Tensor) -> Tensor:
        """
        Args:
            vectors: f16 or f32 [B, in_features]; a row of zeros is a missing vector. B may be 0.

        Returns:
            [B, R] in the weights' dtype, also under autocast; zero where the vector is missing.
        """
        return self.normalize(*self.project(vectors))

    def project(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Everything except the normalisation: [B, R], and which vectors are present, bool [B]."""
        vectors = vectors.to(self.layers[-1].weight.dtype)
        present = torch.linalg.vector_norm(vectors, dim=1) > 0  # no square of an f16 underflows in f32
        projected = self.layers(vectors).to(vectors.dtype)  # statistics and losses see no half precision
        return projected, present

    def normalize(
        self, projected: Tensor, present: Tensor, track: bool = True, share: Tensor | None = None
    ) -> Tensor:
        """The rest of `forward`, after `project`; `track`, `share`: as in MaskedBatchNorm."""
        if isinstance(self.norm, MaskedBatchNorm):
            return self.norm(projected, present, track, share)
        return self.norm(projected) * present.unsqueeze(1)


class _Reducing:
    """What modules with `towers`, one for each modality, do with them."""

    towers: nn.ModuleDict

    def reduce(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reduced vectors [B, R] of each modality's [B, V]."""
        return {name: tower(vectors[name]) for name, tower in self.towers.items()}

    def reduce_uses(
        self, vectors: dict[str, Tensor], name: str, uses: Sequence[tuple[Tensor, Tensor | None, bool]]
    ) -> list[Tensor]:
        """Reduced vectors for several uses of the same U distinct vectors, which pass the tower once.

        Each use has batch statistics of its own, as if its vectors had been reduced alone.

        Args:
            vectors: modality -> [U, V]; name: the modality.
            uses: (places i64 [n] among the distinct ones, U for a missing one; share f32 [n] or None; track),
                the last two as in MaskedBatchNorm.

        Returns:
            for each use [n, R].
        """
        tower = self.towers[name]
        projected, present = tower.project(vectors[name])
        reduced = []
        for places, share, track in uses:
            counts = use_counts(places, share, projected)
            reduced.append(take_rows(tower.normalize(projected, present, track, counts), places))
        return reduced


class TowerArch(_Reducing, nn.Module):
    """One tower for each modality, and nothing else.

    Args:
        dims: modality -> numbers V of its vectors.
        towers: modality -> layer sizes of its tower.
        norm, dropout: of the towers.

    Example::

        >>> arch = TowerArch({"user_text": 384}, {"user_text": [256, 32]})
        >>> arch.reduce({"user_text": torch.randn(4, 384)})["user_text"].shape
        torch.Size([4, 32])
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        towers: Mapping[str, Sequence[int]],
        norm: str = "batch",
        dropout: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {name: Tower(dim, towers[name], norm, dropout, device) for name, dim in dims.items()}
        )


class MultiModalDenseArch(_Reducing, DenseArch):
    """TorchRec's dense arch, which also hosts one tower for each modality.

    Args:
        in_features, layer_sizes: of the dense features' MLP.
        dims, towers, norm, dropout: as in TowerArch.

    Example::

        >>> arch = MultiModalDenseArch(
        ...     in_features=7,
        ...     layer_sizes=[64, 32],
        ...     dims={"user_text": 384, "item_image": 2048},
        ...     towers={"user_text": [256, 32], "item_image": [128, 16]},
        ... )
        >>> arch(torch.randn(4, 7)).shape  # the dense features
        torch.Size([4, 32])
        >>> vectors = {"user_text": torch.randn(4, 384), "item_image": torch.randn(4, 2048)}
        >>> {name: tuple(reduced.shape) for name, reduced in arch.reduce(vectors).items()}
        {'user_text': (4, 32), 'item_image': (4, 16)}
    """

    def __init__(
        self,
        in_features: int,
        layer_sizes: list[int],
        dims: Mapping[str, int],
        towers: Mapping[str, Sequence[int]],
        norm: str = "batch",
        dropout: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(in_features, layer_sizes, device=device)
        self.towers = TowerArch(dims, towers, norm, dropout, device).towers


@torch.fx.wrap
def use_counts(places: Tensor, share: Tensor | None, distinct: Tensor) -> Tensor:
    """How often each of the U distinct rows is used, f32 [U]; a use counts `share` [n] (default 1)."""
    share = torch.ones(len(places), device=places.device) if share is None else share
    return share.new_zeros(len(distinct) + 1).index_add_(0, places, share)[:-1]


@torch.fx.wrap
def take_rows(distinct: Tensor, places: Tensor) -> Tensor:
    """The rows [n, R] at `places` of [U, R]; zeros at place U."""
    return torch.cat([distinct, distinct.new_zeros(1, distinct.shape[1])]).index_select(0, places)
