"""Rows and what they are compared with, side by side: nodes of their own for the FX tracer."""

from __future__ import annotations

import torch
from torch import Tensor


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
