"""Seconds of single calls on CPU or GPU, their percentiles, and the bandwidth of a plain copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")
# Of 256 MiB each: 1.4 ms on an H100, where the host needs 0.3 ms to queue FBGEMM's forward pass.
_COPIES_AHEAD = 8


class Stopwatch:
    """Times calls on one device, all ranks starting together where there are several."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._ahead = Copy(256, device)

    def __call__(self, function: Callable[[], T]) -> tuple[T, float]:
        """(result of `function`, seconds until the device has finished it).

        On a GPU, by events, without the time that the host takes to queue the call, as long as that is below
        the time of _COPIES_AHEAD copies, which keep the device busy meanwhile. So the shares of the bandwidth
        are those of the kernels; in a training, too, the host should be ahead of the device.
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()
        if self._device.type == "cpu":
            start = time.perf_counter()
            return function(), time.perf_counter() - start
        torch.cuda.synchronize(self._device)
        for _ in range(_COPIES_AHEAD):
            self._ahead()
        self._start.record()
        result = function()
        self._end.record()
        torch.cuda.synchronize(self._device)
        return result, self._start.elapsed_time(self._end) / 1e3


class Copy:
    """A copy of `mib` MiB from one buffer to another; it also evicts what was in the caches."""

    def __init__(self, mib: int, device: torch.device) -> None:
        self._from = torch.ones(mib << 18, device=device)
        self._to = torch.zeros_like(self._from)

    def __call__(self) -> None:
        self._to.copy_(self._from)

    @property
    def bytes(self) -> int:
        """Read and written by one call."""
        return 2 * self._from.nbytes


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, and the 10th and 90th percentile (linear between neighbours)."""
    low, middle, high = np.percentile(np.asarray(values, float), (10, 50, 90))
    return {"median": float(middle), "p10": float(low), "p90": float(high)}
