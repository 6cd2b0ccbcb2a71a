"""Which of the drawn entities may be a negative of an anchor."""

from __future__ import annotations

import torch
from torch import Tensor


def negative_mask(anchor_codes: Tensor, positives: Tensor, negative_codes: Tensor) -> Tensor:
    """True where an anchor may have a negative: it is neither the anchor nor one of its neighbours.

    Looks up the B (P + 1) codes to avoid among the sorted negatives, so no tensor has the size B N P.

    Args:
        anchor_codes: i64 [B].
        positives: i64 [B, P] neighbours, padded with -1.
        negative_codes: i64 [N], repeats allowed.

    Returns:
        bool [B, N].

    Example::

        >>> negative_mask(
        ...     anchor_codes=torch.tensor([0, 5]),
        ...     positives=torch.tensor([[1, 2], [3, -1]]),
        ...     negative_codes=torch.tensor([0, 3, 7]),
        ... )
        tensor([[False,  True,  True],
                [ True, False,  True]])
    """
    batch, number = len(anchor_codes), len(negative_codes)
    if number == 0:
        return torch.ones(batch, 0, dtype=torch.bool, device=anchor_codes.device)
    sorted_codes, order = negative_codes.sort()
    # Equal codes share a column (the position of the first of them); missing codes get column `number`.
    first = torch.searchsorted(sorted_codes, sorted_codes)
    column = torch.empty_like(order).scatter_(0, order, first)
    avoid = torch.cat([anchor_codes.unsqueeze(1), positives], dim=1).contiguous()
    place = torch.searchsorted(sorted_codes, avoid).clamp(max=number - 1)
    place = torch.where(sorted_codes[place] == avoid, place, number)
    # Transposed: columns are selected as whole rows, which is several times as fast on a CPU.
    allowed = torch.ones(number + 1, batch, dtype=torch.bool, device=avoid.device)
    return allowed.scatter_(0, place.T, False).index_select(0, column).T.contiguous()


def first_occurrences(codes: Tensor) -> Tensor:
    """True for the first row of every distinct code; bool [N]. Negative codes are never first.

    Example::

        >>> first_occurrences(torch.tensor([4, -1, 4, 2]))
        tensor([ True, False, False,  True])
    """
    sorted_codes, order = codes.sort(stable=True)
    fresh = torch.ones_like(codes, dtype=torch.bool)
    fresh[1:] = sorted_codes[1:] != sorted_codes[:-1]
    return torch.empty_like(fresh).scatter_(0, order, fresh) & (codes >= 0)
