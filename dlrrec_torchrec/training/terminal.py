"""What a training says on stderr."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(shown: bool) -> Progress:
    """Steps done, of all, and the time that is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


def warn_of_restarts() -> None:
    """Under torchrun with restarts, every life of the ranks meets in one store unless told otherwise.

    There a new rank may find the address of one that is dead: https://github.com/pytorch/pytorch/issues/135712.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and os.environ["RANK"] == "0":
        print(
            "dlrrec: torchrun restarts ranks reliably only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
            "environment",
            file=sys.stderr,
        )
