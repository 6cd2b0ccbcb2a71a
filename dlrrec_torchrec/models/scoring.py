"""Logits of whole batches: what every model with towers has, wherever its content vectors come from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

if TYPE_CHECKING:
    from dlrrec_torchrec.data.batch import Batch


class Scoring:
    """Needs `modalities`, `content` (tables of their vectors, or None), `dense_arch` with towers, `predict`
    and `parts`.

    Example::

        >>> from dlrrec_torchrec.models.towers import TowerArch
        >>> model = Scoring()
        >>> model.dense_arch = TowerArch({"item_text": 384}, {"item_text": [32]})
        >>> model.reduce({"item_text": torch.randn(4, 384)})["item_text"].shape
        torch.Size([4, 32])
    """

    def reduce(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Content vectors (modality -> f16 or f32 [B, V]) to reduced ones (modality -> [B, R])."""
        return self.dense_arch.reduce(vectors)

    def score(self, batch: Batch, without: Collection[str] = ()) -> Tensor:
        """Logits f32 [B] of a batch, wherever its vectors come from; those of `without` count as missing."""
        return self.predict(batch.dense, batch.sparse, self._reduced(batch, without), batch.managed)

    def score_parts(
        self, batch: Batch, without: Collection[str] = ()
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """As `parts`, of a batch as in `score`."""
        return self.parts(batch.dense, batch.sparse, self._reduced(batch, without), batch.managed)

    def forward(
        self,
        dense: Tensor,
        sparse: KeyedJaggedTensor,
        vectors: dict[str, Tensor],
        managed: KeyedJaggedTensor | None = None,
    ) -> Tensor:
        """Logits f32 [B]; a sigmoid makes them probabilities."""
        return self.predict(dense, sparse, self.reduce(vectors), managed)

    def _reduced(self, batch: Batch, without: Collection[str] = ()) -> dict[str, Tensor]:
        if self.content is None:
            reduced = self.reduce(batch.vectors)
        else:
            vectors, places = self.content(batch.lookup.ids), batch.lookup.places
            reduced = {}
            for modality in self.modalities:
                anchors = (places[modality.side]["anchor"], None, True)
                (reduced[modality.name],) = self.dense_arch.reduce_uses(vectors, modality.name, [anchors])
        return reduced | {name: torch.zeros_like(reduced[name]) for name in without}
