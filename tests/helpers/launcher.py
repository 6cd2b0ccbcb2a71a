"""Ranks under torch's elastic launcher, as `torchrun` starts them, without the seconds of importing torch.

A server imports torch, TorchRec and the package once for the whole suite; the launcher is forked off it, and
the ranks off the launcher.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed.launcher.api", "tests.programs.faults"])
SECONDS = 240  # a hang is a failure


class Launch:
    """`function(*arguments)` on so many ranks, in the background; `function` is one that can be imported."""

    def __init__(self, ranks: int, function: Callable, *arguments: object, restarts: int = 0) -> None:
        handle, log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self._process = SERVER.Process(target=_launcher, args=(log, ranks, restarts, function, arguments))
        self._process.start()

    def end(self) -> tuple[int, str]:
        """(exit status, all that launcher and ranks printed), when it has ended."""
        self._process.join(SECONDS)
        if hanging := self._process.is_alive():
            self._process.terminate()  # which it passes on
            self._process.join()
        printed = self._log.read_text(errors="replace")
        self._log.unlink()
        assert not hanging, f"no end after {SECONDS} s: {printed[-5000:]}"
        return self._process.exitcode, printed


def _launcher(log: str, ranks: int, restarts: int, function: Callable, arguments: tuple) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with open(log, "wb", buffering=0) as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    # One thread for each process: threads that wait for each other on a busy machine take seconds a step.
    # The second is what terminal.warn_of_restarts asks for.
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    config = LaunchConfig(  # as `torchrun --standalone`
        1,
        1,
        ranks,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",
    )
    try:
        elastic_launch(config, function)(*arguments)
    except Exception:
        traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        sys.exit(1)
