"""Cells trained by several processes at once, each with one thread; cells are dealt as processes become free.

A process is started anew, in a session of its own, so that Ctrl-C reaches the parent alone, which asks the
others to save and leave. It holds the other end of a pipe as its standard input: however the parent ends, by
SIGKILL too, that pipe ends, and the process with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from dlrrec_torchrec.experiments.cells import LOG, Job, train_and_measure
from dlrrec_torchrec.store.errors import DataError, Unfinished, how_it_ended
from dlrrec_torchrec.store.progress import Bar

_MAIN = "import sys; from dlrrec_torchrec.experiments.workers import serve; serve(sys.argv[1])"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_LEAVE = 60.0  # seconds in which a process may finish its step and save


class Workers:
    """`count` processes that train cells; a context, at whose end they are gone.

    Args:
        out: what they say goes to its log.txt.
    """

    def __init__(self, count: int, out: Path) -> None:
        self._running: dict[Connection, subprocess.Popen] = {}
        self._log = out / LOG
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
        with contextlib.ExitStack() as undo, open(out / LOG, "a", encoding="utf-8") as log:
            undo.callback(self.close)
            for _ in range(count):
                here, there = Pipe()
                with there:
                    self._running[here] = subprocess.Popen(
                        [sys.executable, "-P", "-c", _MAIN, str(there.fileno())],
                        env=environment,
                        pass_fds=[there.fileno()],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            undo.pop_all()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask the processes to save and leave, and end those that do not."""
        for connection, process in self._running.items():
            connection.close()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdin.close()
        self._running.clear()

    def run(self, work: Sequence[Job], say: Callable[[str], None]) -> dict[str, str]:
        """Train and measure the cells; title -> why a cell failed.

        Raises Unfinished where a process ends before its cell does; what is measured is kept.
        """
        failed, waiting = {}, list(work)
        at_work: dict[Connection, Job] = {}
        for connection in list(self._running)[: len(waiting)]:
            at_work[connection] = waiting.pop(0)
            self._send(connection, at_work[connection])
        with Bar(transient=True) as bar:
            task = bar.add_task("cells", total=len(work))
            while at_work:
                for connection in wait(list(at_work)):
                    job = at_work.pop(connection)
                    line, error = self._receive(connection, job)
                    if error is not None:
                        failed[job.title] = error
                    bar.advance(task)
                    say(f"[{len(work) - len(waiting) - len(at_work)}/{len(work)}] {line}")
                    if waiting:
                        at_work[connection] = waiting.pop(0)
                        self._send(connection, at_work[connection])
        return failed

    def _send(self, connection: Connection, job: Job) -> None:
        try:
            connection.send_bytes(pickle.dumps(job))
        except OSError:
            self._ended(connection, job)

    def _receive(self, connection: Connection, job: Job) -> tuple[str, str | None]:
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return self._ended(connection, job)

    def _ended(self, connection: Connection, job: Job) -> tuple[str, str | None]:
        status = self._running[connection].wait()
        raise Unfinished(
            f"experiment: the process that trained '{job.title}' ended {how_it_ended(status)}; the cells "
            f"that are done are kept, and what it said is in {self._log}: the same command goes on (with a "
            "lower --parallel it needs less memory)"
        ) from None


def serve(descriptor: str) -> None:
    """What such a process does: train cell after cell, until the other end of the connection is closed."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # between cells; within one, training saves first
    with Connection(int(descriptor)) as connection:
        while True:
            try:
                job = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                answer = train_and_measure(job), None
            except DataError as error:
                answer = f"{job.title}: failed: {error}", str(error)
            try:
                connection.send_bytes(pickle.dumps(answer))
            except OSError:
                return


def _leave_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent has gone: it writes nothing
    os._exit(1)
