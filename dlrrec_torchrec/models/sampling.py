"""Which entities stand against an anchor: positives, negatives and the masks between them.

Draws come from a counter-based generator (an integer hash of seed, step and index): they need no state and no
copy from the device, and are the same on every rank, for every number of ranks, and after a restart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlrrec_torchrec.data.hashing import hash63, mix64

POSITIVE = ("best", "sample")
_STREAMS = {"offset": 1, "negative": 2, "positive": 3}


def draw_negatives(num: int, corpus_size: int, seed: int, step: int | Tensor, device=None) -> Tensor:
    """`num` codes out of range(corpus_size), i64 [num]; the same for equal (seed, step).

    Stratified: the corpus, turned by a random offset, is cut into `num` ranges of equal size and one code is
    drawn from each. Every entity has the same probability; none comes twice as long as num <= corpus_size.

    Args:
        step: number of the training step, int or integer tensor (which is not read back to the host).
    """
    place = torch.arange(num, device=device)
    low = place * corpus_size // num
    width = ((place + 1) * corpus_size // num - low).clamp(min=1)
    offset = _random_bits(place[:1] * 0, seed, "offset", step) % corpus_size
    return (offset + low + _random_bits(place, seed, "negative", step) % width) % corpus_size


def choose_positives(positives: Tensor, codes: Tensor, kind: str, seed: int, step: int | Tensor) -> Tensor:
    """One positive for each anchor, i64 [B]; -1 where it has none.

    Args:
        positives: i64 [B, P], best first, padded with -1; P may be 0.
        codes: i64 [B], the anchors; an entity that occurs twice in a step gets the same sample.
        kind: "best" (the first) or "sample" (each of the listed with the same probability).
    """
    if positives.shape[1] == 0:
        return torch.full_like(codes, -1)
    if kind == "best":
        return positives[:, 0]
    count = (positives >= 0).sum(1)
    place = _random_bits(codes, seed, "positive", step) % count.clamp(min=1)
    return positives.gather(1, place.unsqueeze(1)).squeeze(1)


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


def _random_bits(index: Tensor, seed: int, stream: str, step: int | Tensor) -> Tensor:
    """63 random bits for each entry of `index`, i64: SplitMix64 over seed, stream, step and index in turn."""
    key = torch.full((1,), seed, dtype=torch.int64, device=index.device)
    for value in (_STREAMS[stream], step, index):
        key = mix64(key) + value
    return hash63(key)
