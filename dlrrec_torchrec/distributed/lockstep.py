"""All ranks take a batch, or none does: what keeps one rank's failure from hanging the others.

Agreements go over gloo groups of their own, in host memory: no GPU waits for them, and they do not queue
behind the training's collectives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

from dlrrec_torchrec.store.errors import DataError

T = TypeVar("T")
_END: Any = object()


def host_group(purpose: str) -> dist.ProcessGroup:
    """A gloo group of all ranks, made once for each purpose. Call it on all ranks in the same order."""
    groups = _groups_of(dist.group.WORLD)
    if purpose not in groups:
        groups[purpose] = dist.new_group(backend="gloo")
    return groups[purpose]


@functools.lru_cache(maxsize=1)
def _groups_of(world: dist.ProcessGroup) -> dict[str, dist.ProcessGroup]:
    """The groups made so far, by purpose; kept until there is another default group."""
    return {}


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Call it on all ranks."""
    value = torch.tensor(int(flag))
    if dist.get_world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX, group=host_group("batches"))
    return bool(value)


class Lockstep(Generic[T]):
    """Iterates over batches of which every rank has equally many, together with the other ranks.

    Each batch is fetched one ahead. While the one before it is being trained on, the ranks exchange whether
    all of them have it, and whether any of them wants to stop, so that in the end nobody waits for this.

    Args:
        batches: of this rank.
        stop_requested: whether this rank wants to stop.

    Attributes:
        stop: whether any rank wanted to stop, the same on all ranks; up to two batches late. Batches keep
            coming: the caller leaves when its step is complete.
    """

    def __init__(self, batches: Iterable[T], stop_requested: Callable[[], bool] = lambda: False) -> None:
        self._batches, self._stop_requested = iter(batches), stop_requested
        self._alone = dist.get_world_size() == 1
        self._stop_seen = False
        self._fetch()

    @property
    def stop(self) -> bool:
        return self._stop_seen or (self._alone and self._stop_requested())

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next batch.

        Raises:
            DataError: another rank could not get its batch: its number and its message. That rank itself
                raises its own error.
        """
        if self._batch is _END:
            raise StopIteration
        if self._exchange is not None:
            self._exchange.wait()
        failed, stop = self._flags.tolist()
        if failed:
            self._fail()
        self._stop_seen |= bool(stop)
        batch = self._batch
        self._fetch()
        return batch

    def _fetch(self) -> None:
        self._error, self._exchange = None, None
        try:
            self._batch = next(self._batches, _END)
        except Exception as error:
            self._batch, self._error = None, error
        if self._batch is _END:
            return
        self._flags = torch.tensor([self._error is not None, self._stop_requested()], dtype=torch.int32)
        if not self._alone:
            group = host_group("batches")
            self._exchange = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=group, async_op=True)

    def _fail(self) -> None:
        if not self._alone:
            texts: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(texts, self._error and _text(self._error), group=host_group("batches"))
        if isinstance(self._error, DataError):
            raise DataError(_text(self._error)) from self._error
        if self._error is not None:
            raise self._error
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
        raise DataError(f"rank {rank}: {text}")


def _text(error: Exception) -> str:
    """What went wrong, without the traceback that a loader's worker puts before it."""
    kind = type(error).__name__
    text = str(error).strip().rsplit(f"{kind}: ", 1)[-1]
    return text if isinstance(error, DataError) else f"{kind}: {text}"
