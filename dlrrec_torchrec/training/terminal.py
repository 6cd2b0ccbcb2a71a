"""What a training prints on stderr."""

from __future__ import annotations

import os
import sys

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dlrrec_torchrec.distributed.launcher import is_first_rank
from dlrrec_torchrec.store.progress import Bar


def progress_bar(shown: bool) -> Bar:
    """Steps done, of all, and the time that is left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Bar(*columns, shown=shown)


def warn_of_restarts() -> None:
    """Under torchrun, restarted ranks by default meet in the same store as those before them.

    There a new rank may find the address of one that is dead: https://github.com/pytorch/pytorch/issues/135712.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and is_first_rank():
        print(
            "dlrrec: torchrun restarts ranks reliably only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its "
            "environment",
            file=sys.stderr,
        )
