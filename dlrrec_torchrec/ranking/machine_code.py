"""How ranking compiles: numba without the GIL, cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable

import numba


def machine_code(function: Callable) -> Callable:
    """`numba.njit`, with the disk cache unless no folder for it can be written (a read-only install)."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder it may write to
        return numba.njit(function, nogil=True)
