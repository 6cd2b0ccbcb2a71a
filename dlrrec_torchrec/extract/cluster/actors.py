"""Work for the actors of a Ray cluster: one to a GPU, or one to a core, each of which loads its model once.

Plain actors, not Ray Data: that regroups rows into blocks of its own, but what is done is kept batch by
batch, and some models' bits need batches of one length; it also takes pandas, which nothing else here does.

An actor gets work only when it has loaded, two batches at a time. When it is lost with its process or its
machine, its batches go to others, and another is started where there is room; a cluster that grows gets more.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any, Protocol

import ray
from ray import exceptions

from dlrrec_torchrec import __version__
from dlrrec_torchrec.store.errors import DataError

ATTEMPTS = 6  # at a batch, after which the batch itself is taken to be the cause
QUEUED = 2  # batches given to an actor at a time: one is there when another is done
PLACES_SECONDS = 5  # between two counts of the places
PATIENCE = 30  # seconds without any actor after which that is said
_MEMORY = 1.25  # of an actor on CPUs, for each byte of the weights; with _BASE for Python and torch
_BASE = 700 << 20


class Job(Protocol):
    """What an actor is to do; pickled. `name`: in messages. `weights`: bytes of the files that it loads."""

    name: str
    weights: int

    def load(self) -> Callable[[Any], Any]:
        """Called once by each actor, on its node: what makes a batch's result.

        Raises DataError where the node is not fit for it.
        """
        ...


class Actors:
    """A context with actors that do `job`, at whose end they are gone.

    Args:
        device: "cuda": an actor takes a GPU; "cpu": a core, and memory for the weights.
        most: actors, at most.

    Raises DataError where no node of the cluster has room for one.
    """

    def __init__(self, job: Job, device: str, most: int) -> None:
        self.job, self.most = job, max(1, most)
        memory = int(_MEMORY * job.weights) + _BASE
        self._needs = {"GPU": 1} if device == "cuda" else {"CPU": 1, "memory": memory}
        options = {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1, "memory": memory}
        self._class = ray.remote(max_restarts=0, max_task_retries=0, **options)(_Worker)
        self._free: dict[Any, int] = {}  # actor that has loaded -> batches that it may be given, if any
        self._running: dict[ray.ObjectRef, tuple[Any, tuple[int, Any] | None]] = {}  # -> actor, its batch
        self._actors: set[Any] = set()
        self._counted_at, self.redone = -math.inf, 0

    def __enter__(self) -> Actors:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, whatever they do."""
        self._running.clear()
        self._free.clear()
        while self._actors:
            ray.kill(self._actors.pop())

    def map(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (number of a batch, its result) in the order in which they are done.

        A batch is taken when there is an actor for it. Raises DataError for a batch that is lost again and
        again, where actors end before they have loaded, and what the job raises.
        """
        work, again = enumerate(batches), deque()
        attempts: Counter[int | None] = Counter()  # that failed, at a batch or (None) at loading
        since, more = time.monotonic(), True
        while True:
            while self._free and (again or more):
                if (item := again.popleft() if again else next(work, None)) is None:
                    more = False
                else:
                    self._give(item)
            if not (again or more or any(item for _, item in self._running.values())):
                return
            self._start()
            done, _ = ray.wait(list(self._running), timeout=PLACES_SECONDS)
            if not done:
                since = self._patient(since)
                continue
            actor, item = self._running.pop(done[0])
            number = item and item[0]
            try:
                result = ray.get(done[0])
            except exceptions.RayTaskError as error:
                raise _cause(error, self.job.name) from None
            except exceptions.RayError as error:  # the process or its machine is gone
                self._lose(actor)
                attempts[number] += 1
                if attempts[number] == ATTEMPTS:
                    raise DataError(
                        f"{self.job.name}: {ATTEMPTS} processes of the Ray cluster ended "
                        f"{'at the same work' if item else 'before they had loaded the model'}, the last one "
                        f"so: {' '.join(str(error).split())[:400]}; what is done is kept"
                    ) from None
                if item:
                    self.redone += 1
                    again.append(item)
                continue
            if actor in self._actors:
                self._free[actor] = QUEUED if item is None else self._free.get(actor, 0) + 1
            if item is None:
                attempts[None], since = 0, math.inf
            else:
                yield number, result

    def _give(self, item: tuple[int, Any]) -> None:
        """A batch for the actor that has least to do."""
        actor = max(self._free, key=self._free.__getitem__)
        self._free[actor] -= 1
        if not self._free[actor]:
            del self._free[actor]
        self._running[actor.work.remote(item[1])] = actor, item

    def _lose(self, actor: Any) -> None:
        """It may be out of reach only: it is ended for good. Its other batches come back by themselves."""
        self._free.pop(actor, None)
        if actor in self._actors:
            self._actors.remove(actor)
            self._counted_at = -math.inf
            ray.kill(actor)

    def _start(self) -> None:
        """Actors for the places that there are now."""
        now = time.monotonic()
        if now - self._counted_at < PLACES_SECONDS:
            return
        self._counted_at = now
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        places = sum(
            int(min(node.get(name, 0) // need for name, need in self._needs.items())) for node in nodes
        )
        if not places:
            need = "a GPU" if "GPU" in self._needs else f"a core and {self._needs['memory'] >> 20:,} MiB"
            raise DataError(
                f"{self.job.name}: none of the {len(nodes)} nodes of the Ray cluster has room for it: it "
                f"takes {need}; what is done is kept; add such nodes, or take --engine local"
            )
        while len(self._actors) < min(places, self.most):
            actor = self._class.remote(self.job, _versions())
            self._actors.add(actor)
            self._running[actor.ready.remote()] = actor, None

    def _patient(self, since: float) -> float:
        """Say once that there has been no actor for a while."""
        if time.monotonic() - since < PATIENCE:
            return since
        print(
            f"{self.job.name}: waits for a place on the Ray cluster, which other work holds", file=sys.stderr
        )
        return math.inf


class _Worker:
    """What an actor is, in a process of the cluster."""

    def __init__(self, job: Job, expected: dict[str, str]) -> None:
        self._job, self._expected = job, expected

    def ready(self) -> None:
        """Load. Raises DataError naming this node where it is not fit."""
        node = f"node {ray.util.get_node_ip_address()} ({os.uname().nodename})"
        if (installed := _versions()) != self._expected:
            raise DataError(
                f"{self._job.name}: {node} of the Ray cluster has {installed}, the machine that started the "
                f"command {self._expected}: install the same on all"
            )
        try:
            self._work = self._job.load()
        except DataError as error:
            raise DataError(f"{node} of the Ray cluster: {error}") from None

    def work(self, batch: Any) -> Any:
        return self._work(batch)


def _versions() -> dict[str, str]:
    """What must be the same on all machines, for the same bits."""
    return {"dlrrec-torchrec": __version__} | {name: version(name) for name in ("torch", "transformers")}


def _cause(error: exceptions.RayTaskError, name: str) -> Exception:
    """What a failed call raised."""
    if isinstance(error.cause, DataError):
        return error.cause
    if isinstance(error.cause, (ImportError, exceptions.RaySystemError)):
        reason = str(error.cause).splitlines()[0]
        return DataError(
            f"{name}: an actor cannot load its work ({reason}): install the same dlrrec-torchrec on all "
            "machines of the Ray cluster"
        )
    return error
