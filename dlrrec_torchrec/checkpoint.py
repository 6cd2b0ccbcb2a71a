"""Checkpoints by torch.distributed.checkpoint: saved on any number of ranks, loaded on any other.

A training's folder of checkpoints holds `last` (model, optimizers and the state of the run), `last.previous`
(the one before) and `best`. A checkpoint takes its name only when it is complete, and the one it replaces is
there until then. All ranks must see the same file system.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from dlrrec_torchrec.parallel import Ranks
from dlrrec_torchrec.schema import DataError

LAST, PREVIOUS, BEST = "last", "last.previous", "best"
_STATE = "state.json"


def save(
    folder: str | os.PathLike,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    state: dict[str, Any],
    best: bool,
    ranks: Ranks,
) -> None:
    """Save a checkpoint as `last` and, where `best`, as `best` too (by hard links, without a second copy).

    `best` is published first: a run that is killed in between goes on from the older `last`, and makes the
    same best again. To be called on all ranks.

    Args:
        state: plain JSON values of the run, given back by `load_latest`; needs "step" (optimizer steps so
            far) and "epoch".
    """
    folder = Path(folder)
    new = folder / ".new"
    if ranks.rank == 0:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    dist.barrier()
    dcp.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}, checkpoint_id=str(new)
    )
    if ranks.rank == 0:
        sizes = {path.name: path.stat().st_size for path in new.iterdir()}
        (new / _STATE).write_text(json.dumps(state | {"files": sizes}), encoding="utf-8")
        if best:
            copy = folder / ".best"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(new, copy, copy_function=_link)
            _publish(copy, folder / BEST, folder / ".best.old")
            shutil.rmtree(folder / ".best.old", ignore_errors=True)
        _publish(new, folder / LAST, folder / PREVIOUS)
    dist.barrier()


def latest_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The state in the newest checkpoint that is whole, None where there is none."""
    for name in (LAST, PREVIOUS):
        state, problem = _inspect(Path(folder) / name)
        if not problem:
            return state
    return None


def load_latest(
    folder: str | os.PathLike, model: DistributedModelParallel, optimizer: CombinedOptimizer, ranks: Ranks
) -> dict[str, Any] | None:
    """Load `last` into model and optimizers; if it is damaged, the one before, saying so on stderr.

    To be called on all ranks. Returns the run's state, None where no checkpoint was ever saved. Raises
    DataError if there are checkpoints but none can be loaded.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        path = Path(folder) / name
        state, problem = ranks.share(_inspect(path) if ranks.rank == 0 else None)
        if not problem:
            problem = _load_into(path, model, optimizer)
        if not problem:
            optimizer.set_optimizer_step(
                state["step"]
            )  # fused Adam keeps its step count outside of its state
            if problems and ranks.rank == 0:
                print(f"{problems[0]}; going on from {path} (epoch {state['epoch']})", file=sys.stderr)
            return state
        if path.exists():
            problems.append(f"{path}: {problem}")
    if problems:
        raise DataError(f"{'; '.join(problems)}; no checkpoint can be used: --no-resume starts anew")
    return None


def load_model(path: str | os.PathLike, model: nn.Module, prefix: str = "") -> None:
    """Load the weights in checkpoint `path` into a plain, unsharded model, in this process alone.

    Args:
        prefix: of the model's names in the checkpoint, such as "model." for what a wrapper holds so.

    Raises:
        DataError: no checkpoint, a damaged one, or one of another model.
    """
    path = Path(path)
    _, problem = _inspect(path)
    if problem:
        raise DataError(f"{path}: {problem}; run `dlrrec train` again (it goes on from the last checkpoint)")
    try:
        weights = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
        dcp.load({"model": weights}, checkpoint_id=str(path), no_dist=True)
    except (CheckpointException, Exception) as error:  # CheckpointException is no Exception
        raise DataError(
            f"{path}: cannot be loaded ({_first_line(error)}); delete the training's folder and train again"
        ) from None


def _load_into(path: Path, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> str:
    """Load a sharded checkpoint in place. Returns what went wrong, empty if nothing did."""
    for _, part in optimizer.optimizers:
        if isinstance(part, KeyedOptimizerWrapper):
            part.init_state()  # its moments do not exist before the first step; fused ones always do
            part.zero_grad(set_to_none=True)
    weights, moments = model.state_dict(), optimizer.state_dict()
    try:
        dcp.load({"model": weights, "optimizer": moments["state"]}, checkpoint_id=str(path))
    except (CheckpointException, Exception) as error:  # CheckpointException is no Exception
        return f"cannot be loaded ({_first_line(error)})"
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return ""


def _inspect(path: Path) -> tuple[dict[str, Any], str]:
    """(state, what is wrong with the checkpoint: empty if nothing)."""
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        for name, size in state.pop("files").items():
            found = (path / name).stat().st_size
            if found != size:
                return {}, f"damaged ({name} has {found} bytes, not {size})"
    except FileNotFoundError as error:
        return {}, f"incomplete ({error.filename} is missing)" if path.exists() else "no checkpoint here"
    except (ValueError, KeyError, OSError) as error:
        return {}, f"damaged ({_STATE}: {error})"
    return state, ""


def _publish(new: Path, target: Path, previous: Path) -> None:
    """Give `new` the name `target`; what had it becomes `previous`."""
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    new.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _first_line(error: BaseException) -> str:
    failures = list(getattr(error, "failures", {}).values())
    text = str(failures[0][0]) if failures else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
