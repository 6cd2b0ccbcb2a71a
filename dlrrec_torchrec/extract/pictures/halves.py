"""Batches of pictures that may be more than a device has memory for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dlrrec_torchrec.store.errors import DataError


def in_halves(make: Callable[[list], list], values: list, setting: str, device: str) -> list[Any]:
    """`make` of all values, or of each half where these are too many for the memory, and so on.

    Args:
        make: values -> a result of each.
        setting: that names the model, and the model.

    Raises DataError where a single value is too much.
    """
    try:
        return make(values)
    except torch.OutOfMemoryError:
        if len(values) == 1:
            raise DataError(
                f"{setting}: no memory on {device} for a single picture; name a smaller model"
            ) from None
    half = len(values) // 2
    return in_halves(make, values[:half], setting, device) + in_halves(make, values[half:], setting, device)
