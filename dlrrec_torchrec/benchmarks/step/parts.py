"""Where the time of a training step goes, by torch's profiler."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.training.steps import REGIONS

# In the forward pass: towers of the rows, of positives and negatives; what is left of the contrastive terms.
FORWARD = ("towers", "towers of positives, negatives", "sparse lookups", "MLPs, interaction", "contrastive")
PARTS = ("copy", *FORWARD, "rest of forward", "backward", "optimizer", "rest")
_KNOWN = {*REGIONS, *FORWARD}


def profiled(
    wrapper: TrainWrapper, device: torch.device, steps: int, run: Callable[[], Any]
) -> dict[str, dict[str, float]]:
    """Profile `run`, which takes `steps` steps of the wrapper.

    Returns:
        part (PARTS) -> `seconds` of a step, and `share` of all of it. A part's time is that of its region
        without the regions within it: on a CPU by the clock, on a GPU that of its kernels.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with marked(wrapper), profile(activities=activities) as profiler, record_function("all"):
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return sums(profiler.events(), device.type == "cuda", steps)


def sums(events: Iterator[FunctionEvent], on_gpu: bool, steps: int) -> dict[str, dict[str, float]]:
    """What `profiled` returns, of a profile's events."""
    totals = dict.fromkeys(PARTS, 0.0)
    regions = [
        e for e in events if e.name in _KNOWN | {"all"} and e.device_type == torch.autograd.DeviceType.CPU
    ]
    for event in regions:
        self_time = _time(event, on_gpu) - sum(_time(inner, on_gpu) for inner in _within(event))
        name = {"forward": "rest of forward", "data wait": "rest", "all": "rest"}.get(event.name, event.name)
        totals[name] += self_time / 1e6 / steps
    total = sum(totals.values())
    return {name: {"seconds": seconds, "share": seconds / total} for name, seconds in totals.items()}


def _time(event: FunctionEvent, on_gpu: bool) -> float:
    """Microseconds."""
    return event.device_time_total if on_gpu else event.cpu_time_total


def _within(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The outermost regions inside of a region."""
    for child in event.cpu_children:
        if child.name in _KNOWN:
            yield child
        else:
            yield from _within(child)


@contextlib.contextmanager
def marked(wrapper: TrainWrapper) -> Iterator[None]:
    """While inside, the model's parts are regions of profiles."""
    model = wrapper.model
    with contextlib.ExitStack() as stack:
        for module, name in (
            *((tower, "towers") for tower in model.dense_arch.towers.values()),
            (model.sparse_arch, "sparse lookups"),
            (model.dense_arch, "MLPs, interaction"),
            (model.inter_arch, "MLPs, interaction"),
            (model.over_arch, "MLPs, interaction"),
        ):
            stack.enter_context(_region(module, "forward", name))
        stack.enter_context(_region(model.dense_arch, "reduce_uses", "towers of positives, negatives"))
        stack.enter_context(_region(wrapper, "_contrast", "contrastive"))
        yield


@contextlib.contextmanager
def _region(module: nn.Module, method: str, name: str) -> Iterator[None]:
    """While inside, calls of the module's method are a region of profiles."""
    inner = getattr(module, method)

    @functools.wraps(inner)
    def within(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return inner(*args, **kwargs)

    vars(module)[method] = within  # in front of the class's own
    try:
        yield
    finally:
        del vars(module)[method]
