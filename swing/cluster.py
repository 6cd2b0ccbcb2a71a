"""Scoring on a Ray cluster: the graph once on each machine, a part for each task, files written by the tasks.

The graph is in Ray's object store, which a machine's processes share without copies. A part that is lost
with its process or its machine is scored again: every process writes the same bytes. Ray reports the loss
when the connection breaks; for a machine that stops answering, when its keepalive ends, after minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from ray import exceptions

from swing.config import SwingConfig, SwingError
from swing.interactions import Graph
from swing.local import Scorer
from swing.machine import available_cores
from swing.output import PLAN
from swing.parts import Done, Part, arrow_ids, score_part, versions

ATTEMPTS = 6  # at one part, after which the part itself is taken to be the cause
QUEUED = 2  # tasks for each place where one can run
PLACES_SECONDS = 5  # between two counts of the places
CONNECT_SECONDS, CANCEL_SECONDS = 20, 5
STORE_LEAST, STORE_SPARE = 80 << 20, 1.1  # of a store started here: Ray's minimum, and room for its headers

_ready: dict[str, Scorer] = {}  # in a worker process: the scorer of its job, until another job's comes


def score_parts(
    scorer: Scorer,
    parts: Sequence[Part],
    folder: Path,
    job: str,
    report: Callable[[int, int], None],
    address: str | None = None,
) -> Iterator[Done]:
    """Score `parts` on the cluster; its processes write them to `folder`. Yields each when it is done.

    A task takes `scorer.threads` cores. `address`: of the cluster; None: RAY_ADDRESS, else one is started on
    this machine for this call. A process that is connected already stays connected.
    Raises SwingError if the cluster cannot be reached or cannot hold the graph, if its machines do not share
    `folder` or have other versions, and for a part that is lost again and again; OSError as `score_part`.
    """
    if not parts:
        return
    # As an Arrow array the workers share the ids; of a Polars series each would have a copy.
    graph = dataclasses.replace(scorer.graph, anchor_ids=arrow_ids(scorer.graph.anchor_ids))
    size = _bytes(graph)
    with _connected(address, size):
        _check_machines(size, scorer.threads)
        score = ray.remote(num_cpus=scorer.threads, max_retries=0)(_score)
        fixed = (ray.put(graph), scorer.config, scorer.threads, str(folder), job, versions())
        # The largest first, so that all workers finish at about the same time.
        waiting = deque(sorted(parts, key=lambda part: -part.steps))
        running: dict[ray.ObjectRef, Part] = {}
        attempts: Counter[Part] = Counter()
        places, counted_at = 0, -math.inf
        try:
            while waiting or running:
                if time.monotonic() - counted_at >= PLACES_SECONDS:
                    places, counted_at = _places(scorer.threads), time.monotonic()
                while waiting and len(running) < QUEUED * places:
                    part = waiting.popleft()
                    attempts[part] += 1
                    running[score.remote(part, *fixed)] = part
                (task, *_), _ = ray.wait(list(running))
                part = running.pop(task)
                try:
                    result = ray.get(task)
                except exceptions.RayTaskError as error:
                    raise _cause(error) from None
                except exceptions.RayError as error:  # the process or its machine is gone
                    if attempts[part] == ATTEMPTS:
                        raise SwingError(
                            f"{part.name} was lost {ATTEMPTS} times, each time with the process that scored "
                            f"it; the last time: {str(error).strip()}"
                        ) from None
                    waiting.appendleft(part)
                else:
                    report(part.edges, part.steps)
                    yield result._replace(attempts=attempts[part])
        finally:
            _cancel(list(running))


def check_address(address: str | None) -> None:
    """Raise SwingError, at once, for the address of a cluster that does not answer.

    Ray itself would try for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in address:
        raise SwingError(
            f"{address}: Ray Client cannot share a graph; start the job on a machine of the cluster, with "
            "its address as HOST:PORT, or auto"
        )
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise SwingError(f"the Ray cluster at {address} cannot be reached: {error}") from None


def _score(
    part: Part,
    graph: Graph,
    config: SwingConfig,
    threads: int,
    folder: str,
    job: str,
    expected: dict[str, str],
) -> Done:
    """Score and write one part, in a worker process."""
    machine, key = socket.gethostname(), f"{job} {threads}"
    if (installed := versions()) != expected:
        raise SwingError(
            f"{machine} has {installed}, the machine that started the job {expected}: install the same on all"
        )
    if not (Path(folder) / PLAN).exists():
        raise SwingError(
            f"{folder} does not exist on {machine}: the output must be on storage that all machines of the "
            "cluster share"
        )
    if key not in _ready:
        _ready.clear()
        _ready[key] = Scorer(graph, config, threads)
    scorer = _ready[key]
    return score_part(scorer, scorer.graph.anchor_ids, part, Path(folder), job)


def _cause(error: exceptions.RayTaskError) -> Exception:
    """What a failed task raised."""
    if isinstance(error.cause, (SwingError, OSError)):
        return error.cause
    if isinstance(error.cause, (ImportError, exceptions.RaySystemError)):
        reason = str(error.cause).splitlines()[0]
        return SwingError(f"a worker cannot load the task ({reason}): install the same swing on all machines")
    return error


def _cancel(tasks: list[ray.ObjectRef]) -> None:
    """End tasks and wait for them briefly: Ray prints the errors of tasks whose results nobody fetches."""
    for task in tasks:
        ray.cancel(task)
    if tasks:
        for task in ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)[0]:
            with contextlib.suppress(exceptions.RayError):
                ray.get(task)


@contextlib.contextmanager
def _connected(address: str | None, size: int) -> Iterator[None]:
    """A connection to the cluster, ended afterwards if it was made here."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            store = max(int(STORE_SPARE * size), STORE_LEAST)
            cores = available_cores()
            ray.init("local", num_cpus=cores, object_store_memory=store, include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started"
        raise SwingError(f"{where}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_machines(size: int, threads: int) -> None:
    """Raise SwingError where a machine's object store is too small for the graph, or all for a task."""
    machines = [node for node in ray.nodes() if node["Alive"]]
    for node in machines:
        store = int(node["Resources"].get("object_store_memory", 0))
        if size > store:
            raise SwingError(
                f"the graph takes {size >> 20} MiB of each machine's object store, {node['NodeName']} has "
                f"{store >> 20} MiB: start Ray with --object-store-memory {int(STORE_SPARE * size)}"
            )
    cores = max(node["Resources"].get("CPU", 0) for node in machines)
    if cores < threads:
        raise SwingError(f"a task of {threads} threads fits on no machine: the largest has {cores:g} cores")


def _places(threads: int) -> int:
    """Tasks that the cluster can run at once; it may grow and shrink."""
    cores = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return max(1, sum(int(count // threads) for count in cores))


def _bytes(graph: Graph) -> int:
    values = (getattr(graph, field.name) for field in dataclasses.fields(graph))
    return sum(value.nbytes for value in values if isinstance(value, (np.ndarray, pa.Array)))
