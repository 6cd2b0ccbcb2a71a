"""Compiled loops: numba without the GIL, so that Python's threads run them side by side.

Numba's own parallel loops take several times as long to compile, which a first run would wait for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba

_PARTS = 8  # for each thread: parts of uneven work even out


def machine_code(function: Callable) -> Callable:
    """`numba.njit`, with the disk cache unless no folder for it can be written (a read-only install)."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder it may write to
        return numba.njit(function, nogil=True)


def threads() -> int:
    """How many run side by side: the cores of this process, or NUMBA_NUM_THREADS."""
    return numba.get_num_threads()


def in_parallel(loop: Callable, size: int, *arguments: object) -> None:
    """Call loop(start, stop, *arguments) for ranges that cover 0 to `size`, on all threads.

    The loop writes into one of its arguments, each row from its own range alone, so the result is the same
    for any number of threads.
    """
    number = threads()
    if number == 1 or size < 2 * number:
        loop(0, size, *arguments)
        return
    loop(0, 0, *arguments)  # compiles, once
    cuts = [size * k // (number * _PARTS) for k in range(number * _PARTS + 1)]
    with ThreadPoolExecutor(number) as pool:
        parts = [pool.submit(loop, a, b, *arguments) for a, b in itertools.pairwise(cuts) if b > a]
        for part in parts:
            part.result()
