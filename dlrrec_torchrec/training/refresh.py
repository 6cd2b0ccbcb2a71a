"""Positives made anew while a training goes on (`contrastive.refresh`), of SWING and the reduced vectors."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import read_vectors
from dlrrec_torchrec.data.hard_negatives import second_neighbours
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.list_sides import reduced_vectors
from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.store.errors import DataError

MOST = 100_000  # entities of a side that are compared all with all
FUSION = 60  # Cormack, Clarke and Buettcher 2009, section 2
_BLOCK = 1024  # entities at once


class Refresh:
    """Gives each entity new positives every N epochs, on all ranks.

    Positives are as many as SWING's, of the same anchors: an entity without SWING neighbours gets none. They
    are the best by reciprocal rank fusion of two lists, the SWING neighbours (always those of the shards, so
    that nothing drifts away from them) and as many nearest entities by the cosine of the reduced vectors,
    as the towers in eval mode make them. Nearest neighbours of the space as positives are those of NNCLR
    (Dwibedi et al. 2021), as far as they are; SWING beside them keeps the space from confirming itself.

    Rank 0 computes them, and all ranks take them over into what their batches are made of. They are in the
    wrapper's state, from which a resumed training has them (`restored`).

    Args:
        every: N.
        spec: of the batches, with `replaced` of the sides that count, which is changed in place.
        wrapper: around the model.
        shards_dir: where the content vectors are.

    Raises:
        DataError: more than MOST entities.
    """

    def __init__(
        self, every: int, spec: BatchSpec, wrapper: TrainWrapper, shards_dir: str | os.PathLike, ranks: Ranks
    ) -> None:
        self._every, self._spec, self._wrapper = every, spec, wrapper
        self._shards_dir, self._ranks = shards_dir, ranks
        self._swing = {side: table.clone() for side, table in spec.replaced.items()} if every else {}
        for side, table in self._swing.items():
            if len(table) > MOST:
                raise DataError(
                    f"contrastive.refresh: {len(table):,} {side}s are too many to compare each with all "
                    f"others (at most {MOST:,}); --refresh 0 keeps SWING's positives"
                )

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """New positives, where this epoch (from 1) ends with some; call it on all ranks.

        Returns `new_positives_SIDE`, the share of the positives that SWING's lists do not have.
        """
        if not self._swing or not epoch or epoch % self._every:
            return {}
        made = None
        if self._ranks.first:
            made = {side: self._made(side, swing) for side, swing in self._swing.items()}
        made = self._ranks.share(made)
        self._take(made)
        return {f"new_positives_{side}": new_share(self._swing[side], made[side]) for side in made}

    def restored(self) -> None:
        """Take over the positives of the wrapper's state, once a checkpoint is loaded."""
        self._take({side: self._buffer(side).cpu() for side in self._swing})

    def _take(self, positives: dict[str, Tensor]) -> None:
        for side, table in positives.items():
            self._buffer(side).copy_(table)
            self._spec.replaced[side].copy_(table)
            for draws in self._spec.draws:
                if draws.side == side and draws.near is not None:
                    draws.near.copy_(torch.from_numpy(second_neighbours(table.numpy())))

    def _buffer(self, side: str) -> Tensor:
        return getattr(self._wrapper, f"refreshed_{side}")

    @torch.no_grad()
    def _made(self, side: str, swing: Tensor) -> Tensor:
        model, device = self._wrapper.model, self._ranks.device
        arch, reduced = model.dense_arch, []
        training = arch.training
        arch.eval()
        for modality in self._spec.modalities:
            if modality.side == side:
                blocks = [block for _, block in read_vectors(self._shards_dir, modality, 0, len(swing))]
                reduced.append(reduced_vectors(model, modality.name, np.concatenate(blocks), device))
        arch.train(training)
        return fused(swing, nearest(torch.cat(reduced, dim=1), swing.shape[1]).cpu())


def nearest(vectors: Tensor, number: int) -> Tensor:
    """The `number` nearest others of each entity by cosine, i64 [N, number], best first.

    Padded with -1 where there are no more; entities without a vector (all zero) have none and are none.

    Args:
        vectors: f32 [N, D].
    """
    unit, present = F.normalize(vectors, dim=1), vectors.ne(0).any(1)
    found = torch.full((len(unit), number), -1, device=unit.device)
    kept = min(number, len(unit))
    for start in range(0, len(unit) if kept else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = (unit[block] @ unit.T).masked_fill_(~present, -torch.inf)
        rows = torch.arange(len(scores), device=unit.device)
        scores[rows, rows + start] = -torch.inf
        best = scores.topk(kept, dim=1)
        usable = (best.values > -torch.inf) & present[block].unsqueeze(1)
        found[block, :kept] = torch.where(usable, best.indices, -1)
    return found


def fused(swing: Tensor, near: Tensor) -> Tensor:
    """The best of two lists by reciprocal rank fusion, as many as the first has: i64 [N, P], -1 at the end.

    An entity at rank r (from 1) of a list gets 1 / (FUSION + r), and the sum where it is in both. Of equal
    ones those of `swing` come first. With FUSION as large as this every entity of both lists comes before
    those of one, in lists of up to 61.

    Args:
        swing: i64 [N, P] and near: i64 [N, K], no code twice in a row, padded with -1 at the end.

    Example::

        >>> fused(torch.tensor([[1, 2, 3], [4, -1, -1]]), torch.tensor([[3, 7, 8], [4, 5, 6]])).tolist()
        [[3, 1, 2], [4, -1, -1]]
    """
    of_first, of_second = _of_ranks(swing.shape[1]), _of_ranks(near.shape[1])
    parts = []
    for start in range(0, len(swing), _BLOCK):
        first, second = swing[start : start + _BLOCK], near[start : start + _BLOCK]
        both = (first.unsqueeze(2) == second.unsqueeze(1)) & (first >= 0).unsqueeze(2)
        scores = of_first + (both * of_second).sum(2)
        others = torch.where(both.any(1), -1.0, of_second.expand(len(second), -1))
        codes = torch.cat([first, second], dim=1)
        scores = torch.cat([scores, others], dim=1).masked_fill(codes < 0, -1.0)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : first.shape[1]]
        best = codes.gather(1, order)
        kept = torch.arange(first.shape[1]) < (first >= 0).sum(1, keepdim=True)
        parts.append(torch.where(kept, best, -1))
    return torch.cat(parts) if parts else swing.clone()


def _of_ranks(number: int) -> Tensor:
    """What the ranks 1 … `number` of a list count, f64."""
    return 1.0 / (FUSION + 1 + torch.arange(number).double())


def new_share(before: Tensor, after: Tensor) -> float:
    """The share of the entries of `after` that the same row of `before` does not have; 0 without any."""
    real, known = after >= 0, (after.unsqueeze(2) == before.unsqueeze(1)).any(2)
    return float((real & ~known).sum() / real.sum().clamp(min=1))
