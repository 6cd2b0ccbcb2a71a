"""This process among the others: its rank, its device, and the process group."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dlrrec_torchrec.distributed.launcher import is_launched, rank_on_node
from dlrrec_torchrec.store.errors import DataError


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Rank 0's `value` (any object that pickles), on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A DataError within the block, of any rank, is raised on all ranks at its end, the first rank's if
        there are several: so none waits for one that has stopped. No collectives within the block."""
        error = None
        try:
            yield
        except DataError as problem:
            error = problem
        errors: list[str | None] = [None] * self.world_size
        dist.all_gather_object(errors, str(error) if error else None)
        for message in filter(None, errors):
            raise DataError(message)


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """The default process group: the launcher's to the end of the process, or one of a single process.

    Args:
        device: "cpu", "cuda", or "auto" for cuda where there is one. Under a launcher each rank takes the GPU
            of its LOCAL_RANK.

    A group that is there already is used and left alone. Raises DataError for cuda where there is none.
    """
    launched = is_launched()
    resolved = resolve_device(device, rank_on_node())
    owner = not dist.is_initialized()
    if owner:
        backend, bound = ("gloo", None) if resolved.type == "cpu" else ("nccl", resolved)
        if launched:
            # For the rest of the process: a second group would meet the first one's keys in the launcher's
            # store, and its ranks would wait for each other forever.
            dist.init_process_group(backend, device_id=bound)
            atexit.register(_leave_group)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=bound)
    try:
        world = dist.get_world_size()
        yield Ranks(dist.get_rank(), world, int(os.environ.get("LOCAL_WORLD_SIZE", world)), resolved)
    finally:
        if owner and not launched:
            dist.destroy_process_group()


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Raises DataError for cuda where there is none."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; use --device cpu (see `dlrrec doctor`)")
    if local_rank >= torch.cuda.device_count():
        raise DataError(
            f"local rank {local_rank} has no GPU ({torch.cuda.device_count()} here); lower torchrun's "
            "--nproc_per_node"
        )
    resolved = torch.device("cuda", local_rank)
    torch.cuda.set_device(resolved)
    return resolved
