"""The weights of a plain model from a checkpoint, in one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed.model_parallel import get_unwrapped_module

from dlrrec_torchrec.models.content import ContentTables
from dlrrec_torchrec.models.managed import loading_managed
from dlrrec_torchrec.store.checkpoint_files import damage, inspect
from dlrrec_torchrec.store.errors import DataError


def load_model(path: str | os.PathLike, model: nn.Module, prefix: str = "") -> None:
    """Load the weights in checkpoint `path` into a plain, unsharded model, in this process alone.

    Args:
        prefix: of the model's names in the checkpoint, such as "model." for the model in a wrapper.

    Raises:
        DataError: no checkpoint, a damaged one, or one of another model.
    """
    path = Path(path)
    _, sums, problem = inspect(path)
    problem = problem or damage(path, sums)
    if not problem:
        plain = kept_state(model)
        weights = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
        with loading_managed(model):
            try:
                dcp.load({"model": weights}, checkpoint_id=str(path), no_dist=True)
                model.load_state_dict(plain, strict=False)
            except (CheckpointException, Exception) as error:  # the former is not an Exception
                problem = f"cannot be loaded ({first_line(error)})"
    if problem:
        raise DataError(f"{path}: {problem}; delete the training's folder and run `dlrrec train` again")


def kept_state(model: nn.Module) -> dict[str, Any]:
    """The model's state without content tables, which are filled from the shards again."""
    modules = get_unwrapped_module(model).named_modules()
    prefixes = tuple(f"{path}." for path, module in modules if isinstance(module, ContentTables))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}


def first_line(error: BaseException) -> str:
    failures = list(getattr(error, "failures", {}).values())
    text = str(failures[0][0]) if failures else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
