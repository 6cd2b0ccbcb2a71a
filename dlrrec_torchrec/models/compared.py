"""Rows and what they are compared with, side by side: nodes of their own for the FX tracer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrrec_torchrec.data.draws import Draws
from dlrrec_torchrec.data.lookup import distinct_codes
from dlrrec_torchrec.distributed.collectives import world_size

if TYPE_CHECKING:
    from dlrrec_torchrec.data.lookup import Lookup


@torch.fx.wrap
def stacked(rows: Tensor, corpus: Tensor, codes: Tensor) -> Tensor:
    """The vectors of the rows [B, V], and below them those of the entities `codes` [N]."""
    with torch.autocast(rows.device.type, enabled=False):  # on CPUs it refuses to join 16-bit floats
        return torch.cat([rows, corpus.index_select(0, codes).to(rows.dtype)])


@torch.fx.wrap
def anchors_and_candidates(
    anchors: Tensor, candidates: Tensor, places: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Places and shares of one use (`reduce_uses`) of anchors and the list's candidates: by the statistics of
    the anchors alone.

    So an item is the same whether a row has it or a row is compared with it, and the prediction does not
    see the candidates.

    Args:
        anchors: places i64 [B], or [B + N] with those of the candidates where `places` is None.
        candidates: [N]; places: i64 [N], theirs.
    """
    both = anchors if places is None else torch.cat([anchors, places])
    share = torch.ones(len(both), device=both.device)
    share[len(both) - len(candidates) :] = 0
    return both, share


@torch.fx.wrap
def parted(rows: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """[B + N, R] as [B, R] and, for the N candidates, [N, R]."""
    first = len(rows) - len(candidates)
    return rows[:first], rows[first:]


@torch.fx.wrap
def row_numbers(rows: Tensor) -> Tensor:
    """0 … n - 1, i64 on the device of `rows` [n]."""
    return torch.arange(len(rows), device=rows.device)


@torch.fx.wrap
def compared_parts(others: Tensor, anchors: Tensor, negatives: Tensor, hard: int) -> tuple[Tensor, ...]:
    """[B + B·H + N, D], of `drawn_codes`, as positives [B, D], hard negatives [B, H, D], negatives [N, D]."""
    rows, number = len(anchors), len(negatives)
    own = others[rows : len(others) - number]
    return others[:rows], own.reshape(rows, hard, others.shape[1]), others[len(others) - number :]


@torch.fx.wrap
def drawn_codes(
    draws: Draws,
    neighbours: Tensor,
    codes: Tensor,
    step: Tensor,
    hard: Tensor | None,
    cumulative: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the positives, the hard negatives and then of the negatives [B + B·H + N], of the negatives
    [N], and the shares of all of the first.

    Args:
        hard: i64 [B, H] as `Batch.item_hard`, where `draws` has any.
        cumulative: of `draws`, on the device of `step`.
    """
    positives = draws.positives(neighbours, codes, step)
    negatives = draws.corpus(step, step.device, cumulative) if draws.negatives else positives[:0]
    own = torch.cat([positives, hard.reshape(-1)]) if draws.hard else positives
    return torch.cat([own, negatives]), negatives, shares(own, negatives)


@torch.fx.wrap
def distinct_uses(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [U] whose vectors are reduced, and where each of `codes` [n] is among them; U for -1.

    On a CPU each distinct code comes once, so that an entity passes the towers once. Elsewhere the host would
    have to wait for their number, and all codes stay.
    """
    return distinct_codes(codes) if codes.device.type == "cpu" else every_use(codes)


def every_use(codes: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct_uses`, with each code as often as it is used."""
    places = torch.arange(len(codes), device=codes.device)
    return codes.clamp(min=0), torch.where(codes < 0, len(codes), places)


@torch.fx.wrap
def looked_up(draws: Draws, lookup: Lookup) -> tuple[Tensor, Tensor, Tensor]:
    """As `drawn_codes`, from a lookup, but with places instead of the codes of the first."""
    roles = lookup.places[draws.side]
    own = torch.cat([roles["positive"], roles["hard"].reshape(-1)]) if draws.hard else roles["positive"]
    negatives = roles["negative"] if draws.negatives else own[:0]
    codes = lookup.codes[draws.side][negatives]
    return torch.cat([own, negatives]), codes, shares(own, negatives)


def joined_vectors(reduced: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """An entity's representation: its reduced vectors of all modalities side by side, [B, sum of R]."""
    return torch.cat([reduced[name] for name in names], dim=1)


@torch.fx.wrap
def shares(of_rank: Tensor, common: Tensor) -> Tensor:
    """How much rows count in statistics over the ranks: a rank's own 1, those of all ranks 1 / ranks."""
    counted = torch.ones(len(of_rank) + len(common), device=of_rank.device)
    counted[len(of_rank) :] /= world_size()
    return counted
