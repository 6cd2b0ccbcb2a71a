"""Which of the drawn entities may stand against an anchor."""

from __future__ import annotations

import torch
from torch import Tensor


def negative_mask(anchor_codes: Tensor, positives: Tensor, negative_codes: Tensor) -> Tensor:
    """True where a negative may stand against an anchor: it is neither the anchor nor one of its neighbours.

    Looks up the B (P + 1) codes to avoid among the sorted negatives, so nothing of size B N P is made.

    Args:
        anchor_codes: i64 [B].
        positives: i64 [B, P] neighbours, padded with -1.
        negative_codes: i64 [N], repeats allowed.

    Returns:
        bool [B, N].
    """
    batch, number = len(anchor_codes), len(negative_codes)
    if number == 0:
        return torch.ones(batch, 0, dtype=torch.bool, device=anchor_codes.device)
    sorted_codes, order = negative_codes.sort()
    # Equal codes share a column (the place of the first of them); column `number` takes what is not found.
    first = torch.searchsorted(sorted_codes, sorted_codes)
    column = torch.empty_like(order).scatter_(0, order, first)
    avoid = torch.cat([anchor_codes.unsqueeze(1), positives], dim=1).contiguous()
    place = torch.searchsorted(sorted_codes, avoid).clamp(max=number - 1)
    place = torch.where(sorted_codes[place] == avoid, place, number)
    # Negative by negative: columns are picked as whole rows, several times as fast on a CPU.
    allowed = torch.ones(number + 1, batch, dtype=torch.bool, device=avoid.device)
    return allowed.scatter_(0, place.T, False).index_select(0, column).T.contiguous()


def first_occurrences(codes: Tensor) -> Tensor:
    """True for the first row of every distinct code; bool [N]. Negative codes are never first."""
    sorted_codes, order = codes.sort(stable=True)
    fresh = torch.ones_like(codes, dtype=torch.bool)
    fresh[1:] = sorted_codes[1:] != sorted_codes[:-1]
    return torch.empty_like(fresh).scatter_(0, order, fresh) & (codes >= 0)
