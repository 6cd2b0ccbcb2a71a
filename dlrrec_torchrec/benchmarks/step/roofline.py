"""The least time that a step's operations could take on a device, by their arithmetic and their bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dlrrec_torchrec.benchmarks.timing import Copy, Stopwatch

# They read as many rows as they return, not everything they look into.
_GATHERS = {"embedding", "gather", "index", "index_select", "_embedding_bag", "_embedding_bag_forward_only"}


class Counter(TorchDispatchMode):
    """Counts floating-point operations and bytes of every operation that runs inside it.

    An operation moves every tensor that it takes and every tensor that it returns, once; one that returns
    another view of its input moves nothing. A gather, and a lookup of FBGEMM's, moves its result twice (rows
    read, result written). FBGEMM's fused updates have no result and count as nothing, so a step's counts
    are a lower bound.

    Attributes:
        operations: (name, flops, bytes) of each operation that moves or computes anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
        moved = 0 if _is_view(function) else _bytes(function, (args, kwargs), result)
        if flops or moved:
            self.operations.append((str(packet), int(flops), moved))
        return result

    @property
    def flops(self) -> int:
        return sum(flops for _, flops, _ in self.operations)

    @property
    def bytes(self) -> int:
        return sum(moved for _, _, moved in self.operations)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """One operation after the other, each as long as the longer of its arithmetic and its bytes."""
        return sum(max(f / flops_per_second, b / bytes_per_second) for _, f, b in self.operations)


def _is_view(function: Any) -> bool:
    """Whether every result is a view of an input that is not written."""
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bytes(function: Any, inputs: Any, result: Any) -> int:
    written = _size(result)
    name = function._overloadpacket.__name__
    if function.namespace == "fbgemm" or name in _GATHERS:
        return 2 * written
    if function.namespace != "aten" or name.startswith(("empty", "new_empty")):
        return 0  # collectives, marks of the profiler; memory that is taken but not yet written
    return _size(inputs) + written


def _size(values: Any) -> int:
    return sum(v.numel() * v.element_size() for v in tree_leaves(values) if isinstance(v, Tensor))


def peaks(device: torch.device, *, copy_mib: int, matrix: int, rounds: int = 10) -> dict[str, float]:
    """What the device reaches, medians over the rounds.

    Returns:
        bytes_per_second: of a copy of `copy_mib` MiB, read and written.
        flops_per_second: of a product of square fp32 matrices, under torch's current setting of precision.
    """
    watch, copy = Stopwatch(device), Copy(copy_mib, device)
    a, b = (torch.rand(matrix, matrix, device=device) for _ in range(2))

    def median(function: Callable[[], Any]) -> float:
        for _ in range(2):
            function()
        return statistics.median(watch(function)[1] for _ in range(rounds))

    return {
        "bytes_per_second": copy.bytes / median(copy),
        "flops_per_second": 2 * matrix**3 / median(lambda: a @ b),
    }
