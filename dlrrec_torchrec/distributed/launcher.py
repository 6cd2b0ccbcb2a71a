"""What a launcher (torchrun) tells this process through its environment; needs no torch."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether this process is one of a launcher's ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first_rank() -> bool:
    """Whether this process is rank 0, or has no launcher. Where there is a `Ranks`, use its `first`."""
    return not is_launched() or int(os.environ["RANK"]) == 0


def rank_on_node() -> int:
    """This process's number among those of its node, 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_launched() else 0
