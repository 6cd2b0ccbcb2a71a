"""Arrays in files that are mapped into memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from dlrrec_torchrec.store.errors import DataError


def mapped_zeros(path: str | os.PathLike, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array of zeros in a new file at `path`.

    The file gets its whole space at once: a full disk would otherwise end the process, without a word, when a
    number is written. Raises DataError where there is not so much space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise DataError(
            f"{Path(path).parent}: {size / (1 << 20):,.1f} MiB more cannot be kept there ({error.strerror}); "
            "free some space, or give another --run-dir; what is done is kept"
        ) from None
    return np.memmap(path, dtype, "r+", shape=shape)
