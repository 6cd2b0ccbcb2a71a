"""Histories that are longer than one call may be: which reviews are read, in which parts.

Reviews are read oldest first. From the newest backwards they fill parts of at most `budget` tokens; what does
not fit into `most` parts, the oldest reviews, is left out. A review that is longer than a part is cut at its
end. What was left out and cut is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Reading:
    """parts: positions of the reviews of each part, oldest part first, each in the given order."""

    parts: tuple[tuple[int, ...], ...]
    left_out: int  # reviews that are in no part
    cut_tokens: int  # tokens that are not read, of reviews left out and of reviews cut


def reading(tokens: Sequence[int], budget: int, most: int) -> Reading:
    """What is read of reviews with so many tokens each, in order of time.

    Args:
        budget: tokens of a part, at most.
        most: parts, at most.
    """
    if tokens and sum(tokens) <= budget:
        return Reading((tuple(range(len(tokens))),), 0, 0)
    parts: list[list[int]] = []
    room = first = 0
    for position in range(len(tokens) - 1, -1, -1):
        size = min(tokens[position], budget)
        if not parts or size > room:
            if len(parts) == most:
                first = position + 1
                break
            parts.append([])
            room = budget
        parts[-1].append(position)
        room -= size
    kept = tuple(tuple(reversed(part)) for part in reversed(parts))
    cut = sum(tokens[:first]) + sum(max(0, size - budget) for size in tokens[first:])
    return Reading(kept, first, cut)
