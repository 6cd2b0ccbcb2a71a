"""The one exception for input that cannot be used, and words for a process that has ended."""

from __future__ import annotations

import signal


class DataError(Exception):
    """Input that cannot be used. The message names the file, column, row or flag, and the way out."""


class Unfinished(DataError):
    """Work that was stopped before its end and is kept. The message says why, and how to go on."""


def how_it_ended(status: int) -> str:
    """How a child process ended, by its `returncode`: "by SIGKILL (as ...)" or "with status 1"."""
    if status >= 0:
        return f"with status {status}"
    why = " (as the kernel does where memory runs short)" if status == -signal.SIGKILL else ""
    return f"by {signal.Signals(-status).name}{why}"
