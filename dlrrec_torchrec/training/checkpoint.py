"""Checkpoints by torch.distributed.checkpoint: saved on any number of ranks, loaded on any other.

A training's folder of checkpoints holds the newest, `epoch-E-step-S` after E whole epochs and S steps, and
`best`. Each is a folder with the files of torch.distributed.checkpoint (model and optimizers), `rank-R.pt`
(what only rank R knows), `state.json` (the run) and `SHA256SUMS` of all of these, as `sha256sum -c` reads
it. A checkpoint takes its name only when it is complete, and is used only if its sums are right. All ranks
must see the same file system.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensorBase
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.distributed.lockstep import host_group
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.managed import loading_managed
from dlrrec_torchrec.models.weights import first_line, kept_state
from dlrrec_torchrec.store.checkpoint_files import (
    BEST,
    STATE,
    SUMS,
    damage,
    inspect,
    latest_state,
    newest_first,
    sha256,
)
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import MANIFEST, UNFINISHED, atomic_folder, check_output, hold, stage_of
from dlrrec_torchrec.training.optimizers import initialize

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one training; call every method on all ranks.

    As a context it waits, at the end, for the save in the background.

    Args:
        folder: where they are.
        ranks: this process among the others.
        keep: how many of the newest stay, at least 1; `best` stays besides.
        background: copy what is saved to host memory, and write it while the training goes on. A write that
            failed is raised by the next call.

    Raises:
        DataError: `keep` is below 1.
    """

    def __init__(
        self, folder: str | os.PathLike, ranks: Ranks, *, keep: int = 2, background: bool = False
    ) -> None:
        if keep < 1:
            raise DataError(f"train.keep_checkpoints: {keep} must be at least 1")
        self.folder, self._ranks, self._keep = Path(folder), ranks, keep
        self._group = host_group("checkpoints")
        self._writer = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[None] | None = None

    def save(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
        best: bool,
    ) -> None:
        """Save a checkpoint and, where `best`, the same as `best` (by hard links, without a second copy).

        `best` is published first: a run that is killed in between goes on from an older checkpoint, and makes
        the same best again.

        Args:
            state: plain JSON values of the run, the same on all ranks; needs "step" (optimizer steps so far)
                and "epoch" (whole epochs so far).
            rank_state: what only this rank knows: tensors, plain values and dictionaries of them.

        Raises:
            DataError: it cannot be written.
        """
        self.wait()
        tensors = {"model": kept_state(model), "optimizer": optimizer.state_dict()["state"]}
        state = dict(state) | {"ranks": self._ranks.world_size}
        if self._writer is None:
            self._write(tensors, state, rank_state, best)
        else:
            self._pending = self._writer.submit(
                self._write, _on_host(tensors), copy.deepcopy(state), _on_host(rank_state), best
            )

    def wait(self) -> None:
        """Return when nothing is being written in the background any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(
        self, model: DistributedModelParallel, optimizer: CombinedOptimizer
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Load the newest checkpoint that is whole; says on stderr what is wrong with newer ones.

        Returns:
            the run's state, with "ranks" (how many saved it), and what their ranks r, r + R, ... saved as
            `rank_state`, for this rank r of R. None where no checkpoint was ever saved.

        Raises:
            DataError: there are checkpoints, but none that can be loaded.
        """
        problems = []
        for path in self._ranks.share(newest_first(self.folder)):
            state, problem = self._verified(path)
            rank_states: list[dict[str, Any]] = []
            if not problem:
                problem = _load_into(path, model, optimizer)
            if not problem:
                # Fused Adam keeps its count outside of its state, one for each micro-batch.
                optimizer.set_optimizer_step(state.get("table_updates", state["step"]))
                for rank in range(self._ranks.rank, state["ranks"], self._ranks.world_size):
                    rank_states.append(torch.load(path / _rank_file(rank), weights_only=True))
                if problems and self._ranks.first:
                    print(f"{'; '.join(problems)}; going on from {path}", file=sys.stderr)
                return state, rank_states
            problems.append(f"{path}: {problem}")
        if problems:
            raise DataError(f"{'; '.join(problems)}; no checkpoint can be used: --no-resume starts over")
        return None

    def load_best(self, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> None:
        """Load the best checkpoint, at the end of a training. Raises DataError where it is damaged."""
        self.wait()
        path = self.folder / BEST
        _, problem = self._verified(path)
        problem = problem or _load_into(path, model, optimizer)
        if problem:
            raise DataError(f"{path}: {problem}; delete the training's folder and run `dlrrec train` again")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def _write(self, tensors: dict, state: dict[str, Any], rank_state: Mapping[str, Any], best: bool) -> None:
        new = self.folder / ".new"
        rank = self._ranks.rank

        def begin() -> None:
            if self._ranks.first:
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir(parents=True)

        def write() -> dict[str, str]:
            dcp.save(tensors, checkpoint_id=str(new), process_group=self._group)
            torch.save(dict(rank_state), new / _rank_file(rank))
            return {p.name: sha256(p) for p in (*new.glob(f"__{rank}_*"), new / _rank_file(rank))}

        def publish() -> None:
            if not self._ranks.first:
                return
            (new / STATE).write_text(json.dumps(state), encoding="utf-8")
            sums = {name: digest for part in parts for name, digest in part.items()}
            sums |= {p.name: sha256(p) for p in new.iterdir() if p.name not in sums}
            lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
            (new / SUMS).write_text("".join(lines), encoding="utf-8")
            if best:
                link = self.folder / ".best"
                shutil.rmtree(link, ignore_errors=True)
                shutil.copytree(new, link, copy_function=_link)
                _publish(link, self.folder / BEST)
            name = f"epoch-{state['epoch']:05d}-step-{state['step']:09d}"
            _publish(new, self.folder / name)
            kept = 0
            for path in newest_first(self.folder):
                # Newer ones are damaged, or else the training had gone on from them.
                kept += path.name <= name
                if path.name > name or kept > self._keep:
                    _remove(path)

        self._together(begin)
        parts = self._together(write)
        self._together(publish)

    def _verified(self, path: Path) -> tuple[dict[str, Any], str]:
        """(state, what is wrong), the same on all ranks; each reads a share of the files."""
        state, sums, problem = self._ranks.share(inspect(path) if self._ranks.first else None)
        if not problem:
            names = sorted(sums)[self._ranks.rank :: self._ranks.world_size]
            findings = [""] * self._ranks.world_size
            finding = damage(path, {name: sums[name] for name in names})
            dist.all_gather_object(findings, finding, group=self._group)
            problem = next(filter(None, findings), "")
        return state, problem

    def _together(self, work: Callable[[], T]) -> list[T]:
        """What each rank's part of a save returns, on all ranks; if one fails, DataError on all."""
        result, problem = None, ""
        try:
            result = work()
        except (CheckpointException, Exception) as error:  # the former is not an Exception
            problem = first_line(error)
        outcomes: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(outcomes, (result, problem), group=self._group)
        for rank, (_, problem) in enumerate(outcomes):
            if problem:
                raise DataError(
                    f"{self.folder}: rank {rank} cannot write a checkpoint ({problem}); the last one that is "
                    "whole stays, and the same command goes on from it"
                )
        return [result for result, _ in outcomes]


@contextlib.contextmanager
def own_folder(out_dir: Path, run: str, resume: bool, ranks: Ranks) -> Iterator[None]:
    """Empty `out_dir` unless it holds an interrupted training of this same run that may go on, and hold it
    against other processes during the block.

    Call it on all ranks. `run`: what the checkpoints' states have as "run".

    Raises:
        DataError: `out_dir` holds something other than a training, or another process trains there; on all
            ranks.
    """
    with contextlib.ExitStack() as held:
        with ranks.together():
            if ranks.first:
                _cleared(out_dir, run, resume, held)
        yield


def _cleared(out_dir: Path, run: str, resume: bool, held: contextlib.ExitStack) -> None:
    def hold_it() -> None:
        if (descriptor := hold(out_dir, "is being trained")) is not None:
            held.callback(os.close, descriptor)

    check_output(out_dir, "train")
    hold_it()
    state = latest_state(out_dir / "checkpoints")
    finished = (out_dir / MANIFEST).exists()
    if not resume or finished or (state and state["run"] != run) or stage_of(out_dir) is None:
        with atomic_folder(out_dir, "train") as folder:
            (folder / UNFINISHED).write_text(json.dumps({"stage": "train"}) + "\n", encoding="utf-8")
        hold_it()  # it is another folder now


def _load_into(path: Path, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> str:
    """Load a sharded checkpoint in place. Returns what went wrong, empty if nothing did."""
    initialize(optimizer)  # moments do not exist before the first step; fused ones always do
    weights, moments = kept_state(model), optimizer.state_dict()
    with loading_managed(model):
        try:
            dcp.load({"model": weights, "optimizer": moments["state"]}, checkpoint_id=str(path))
        except (CheckpointException, Exception) as error:  # the former is not an Exception
            return f"cannot be loaded ({first_line(error)})"
        # TorchRec looks for content tables too; theirs are as they were filled.
        model.load_state_dict(model.state_dict() | weights, strict=False)
    optimizer.load_state_dict(moments)
    return ""


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def _publish(new: Path, target: Path) -> None:
    """Give `new` the name `target`, in place of what had it."""
    if target.exists():
        _remove(target)
    new.rename(target)


def _remove(path: Path) -> None:
    """Remove a checkpoint; at no time is half of it under its name."""
    old = path.with_name(".old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _on_host(value: Any) -> Any:
    """A copy in host memory, which later steps do not change, of tensors (also sharded) and mappings."""
    if isinstance(value, ShardedTensor):  # torch's own staging leaves these as they are
        parts = [Shard(_on_host(part.tensor), part.metadata) for part in value.local_shards()]
        return ShardedTensorBase._init_from_local_shards_and_global_metadata(parts, value.metadata())
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _on_host(entry) for name, entry in value.items()}
    return copy.deepcopy(value)
