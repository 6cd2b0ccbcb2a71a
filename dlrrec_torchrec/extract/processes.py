"""Batches embedded by several at once, each with one thread, which beats one that shares its products among
several threads.

Threads are enough for compiled code; a model in Python needs processes.

A process is started anew (no fork of a program that has threads, no second run of its main module) in a
session of its own, so that Ctrl-C reaches the parent alone. It ends when its connection does: however the
parent ends, by SIGKILL too, none stays behind.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_one
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.extract.backends import Backend, choose_backend
from dlrrec_torchrec.store.errors import DataError, how_it_ended

_MAIN = "import sys; from dlrrec_torchrec.extract.processes import serve; serve(*sys.argv[1:])"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class EncoderThreads:
    """`count` threads that share the encoder `backend`; a context, in which one thread computes a product."""

    def __init__(self, backend: Backend, count: int) -> None:
        self._backend, self._count = backend, count

    def __enter__(self) -> EncoderThreads:
        self._backend.load()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._backend.one_thread())
            self._pool = undo.enter_context(ThreadPoolExecutor(self._count))
            undo.callback(self._pool.shutdown, cancel_futures=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def map(self, batches: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of a batch, its vectors f32 [n, V]) in the order in which they are done.

        Args:
            batches: what `Backend.forward` takes, each.
        """
        work = enumerate(batches)
        under_way: dict[Future, int] = {}
        while True:
            while len(under_way) < 2 * self._count and (following := next(work, None)):
                under_way[self._pool.submit(self._backend.forward, following[1])] = following[0]
            if not under_way:
                return
            done, _ = wait_for_one(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield under_way.pop(future), future.result()


class EncoderProcesses:
    """`count` processes that hold the encoder of `folder`; a context, at whose end they are gone."""

    def __init__(self, folder: Path, count: int) -> None:
        self._running: dict[Connection, subprocess.Popen] = {}
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(count):
                here, there = Pipe()
                with there:
                    command = [sys.executable, "-P", "-c", _MAIN, str(there.fileno()), str(folder)]
                    self._running[here] = subprocess.Popen(
                        command,
                        env=environment,
                        pass_fds=[there.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        start_new_session=True,
                    )
            undo.pop_all()

    def __enter__(self) -> EncoderProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        for connection, process in self._running.items():
            connection.close()
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def map(self, batches: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of a batch, its vectors f32 [n, V]) in the order in which they are done.

        Args:
            batches: what `Backend.forward` takes, each.

        Raises DataError where a process ends before its work does.
        """
        work, at_work = enumerate(batches), {}
        for connection in self._running:
            self._give(connection, work, at_work)
        while at_work:
            for connection in wait(list(at_work)):
                with self._watched(connection):
                    vectors = pickle.loads(connection.recv_bytes())
                number = at_work.pop(connection)
                self._give(connection, work, at_work)
                yield number, vectors

    def _give(self, connection: Connection, work: Iterator[tuple[int, Any]], at_work: dict) -> None:
        """The next batch, if there is one. One at a time: with two under way, each side could wait for the
        other to empty its buffer."""
        if following := next(work, None):
            at_work[connection], batch = following
            with self._watched(connection):
                connection.send_bytes(pickle.dumps(batch))

    @contextlib.contextmanager
    def _watched(self, connection: Connection) -> Iterator[None]:
        """A connection that breaks says how its process ended."""
        try:
            yield
            return
        except (EOFError, OSError):
            status = self._running[connection].wait()
        raise DataError(
            f"extract.encoder: a process that embeds texts ended {how_it_ended(status)}; what is embedded is "
            "kept: run the command again"
        ) from None


def serve(descriptor: str, folder: str) -> None:
    """What such a process does: embed batch after batch, until the other end of the connection is closed."""
    backend = choose_backend(Path(folder), "cpu")
    with Connection(int(descriptor)) as connection, backend.one_thread():
        backend.load()
        while True:
            try:
                batch = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            vectors = pickle.dumps(backend.forward(batch))
            try:
                connection.send_bytes(vectors)
            except OSError:
                return
