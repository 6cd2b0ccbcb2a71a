"""Near misses of the SWING graph: who is close to an entity by its neighbours, but is none of them."""

from __future__ import annotations

import numpy as np
import torch

from dlrrec_torchrec.data.hashing import hash63

MOST = 32  # kept for each entity
_BLOCK = 4096  # entities at once


def second_neighbours(positives: np.ndarray, most: int = MOST) -> np.ndarray:
    """For each entity its neighbours' neighbours that are not near enough to be its own, i64 [N, M].

    Two steps from an entity in the lists of positives; without the entity itself, its positives, and those
    that have it among their positives: SWING is symmetric, so they are as near and were only cut off. Those
    that most of the neighbours list come first, ties are broken by a hash of the pair.

    Hard negatives by the graph follow PinSage (Ying et al. 2018, section 3.3), which takes items of middling
    personalised PageRank.

    Args:
        positives: integers [N, P], row i of entity i, padded with -1 anywhere.
        most: M; rows are padded with -1 at the end.

    Example::

        >>> second_neighbours(np.array([[1], [2], [3], [-1]]), most=1).tolist()  # 0 -> 1 -> 2 -> 3
        [[2], [3], [-1], [-1]]
    """
    number = len(positives)
    near = np.full((number, most), -1, np.int64)
    for start in range(0, number, _BLOCK):
        anchor, place, other = _of_block(positives, np.arange(start, min(start + _BLOCK, number)))
        kept = place < most
        near[anchor[kept], place[kept]] = other[kept]
    return near


def shares(near: dict[str, np.ndarray]) -> str:
    """Who has any, in words: side -> as `second_neighbours` returns."""
    told = []
    for side, table in near.items():
        share = float((table >= 0).any(1).mean()) if len(table) else 0.0
        told.append(f"{share:.0%} of the {side}s")
    return (
        f"hard negatives by the SWING graph: {' and '.join(told)} have any; the others are compared with "
        "random ones alone"
    )


def _of_block(positives: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All that `anchors` (i64 [b], ascending) may have: anchor, place in its row, other, i64 [n] each."""
    number = len(positives)
    first = positives[anchors]
    second = np.where(first[:, :, None] >= 0, positives[first], -1).reshape(len(anchors), -1)
    rows, columns = np.nonzero(second >= 0)
    pairs, times = np.unique(
        anchors[rows].astype(np.int64) * number + second[rows, columns], return_counts=True
    )
    anchor, other = np.divmod(pairs, number)
    kept = other != anchor
    kept &= (positives[anchor] != other[:, None]).all(1)
    kept &= (positives[other] != anchor[:, None]).all(1)
    anchor, other, pairs, times = anchor[kept], other[kept], pairs[kept], times[kept]
    order = np.lexsort((hash63(torch.from_numpy(pairs)).numpy(), -times, anchor))
    anchor, other = anchor[order], other[order]
    return anchor, np.arange(len(anchor)) - np.searchsorted(anchor, anchor), other
