"""SIGTERM and SIGINT as a request: finish the step, save, and leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED = os.EX_TEMPFAIL  # 75: "temporary failure; try again", which is what the caller may do


class Stopped(SystemExit):
    """Ends a process whose work was saved on request, with exit status 75; the same command goes on."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGTERM and the first SIGINT only make a note; yields whether there is one.

    A SIGINT after any request is a KeyboardInterrupt, at once. Outside of the main thread, where Python
    handles no signals, they keep their effect.
    """
    requested = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    handled = (signal.SIGTERM, signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in handled} if main else {}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
