"""What the tests of faults and numbers of ranks run on each rank."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import get_unwrapped_module

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, TrainConfig
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training import stage as training
from dlrrec_torchrec.training.checkpoint import Checkpoints
from dlrrec_torchrec.training.signals import Stopped, stop_requests
from dlrrec_torchrec.training.steps import PlainPipeline
from dlrrec_torchrec.training.trainer import Trainer
from tests.helpers.shards import papers_model, plain_spec
from tests.programs.ranks import MODEL, sharded

# Nothing here depends on the number of ranks except rounding (see tests/programs/ranks.py).
TRAIN = TrainConfig(epochs=2, batch_size=60, lr=0.003, device="cpu", select="loss", schedule="cosine")
KINDS = {
    "adam": dataclasses.replace(TRAIN, background_checkpoints=True),
    "row_wise": dataclasses.replace(TRAIN, table_optimizer="rowwise_adagrad"),
}
STOP_IN = 4  # the step in which a signal comes; an epoch has 7
# Here the same number of ranks must bring the same bits, so that everything may be random.
RANDOM = papers_model(dropout=0.2, tower_dropout=0.1, user_id=True)
OFTEN = dataclasses.replace(TRAIN, checkpoint_steps=3, background_checkpoints=True)
# What of the shards is broken, and how many processes read them.
BROKEN = [("train", 0), ("train", 1), ("val", 0), ("val", 1), ("entities", 0)]
KILL_IN = 12  # checkpoints: 3, 6, 7 (epoch), 9


def fit(kind: str, shards: Path, out: Path) -> None:
    model = sharded(MODEL, kind)
    training.train(model, ContrastiveConfig(num_negatives=16), KINDS[kind], "strict", shards, out / kind)


def fit_often(shards: Path, out: Path, lists: ListConfig | None = None, **changes) -> None:
    settings = dataclasses.replace(OFTEN, **changes)
    training.train(RANDOM, ContrastiveConfig(positive="sample"), settings, "strict", shards, out, lists)


@contextlib.contextmanager
def in_step(number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Within the block, `action` is called before the `number`-th step; yields all steps taken."""
    plain, steps = PlainPipeline.progress, []

    def progress(self, batches):
        steps.append(len(steps) + 1)
        if len(steps) == number:
            action()
        return plain(self, batches)

    with mock.patch.object(PlainPipeline, "progress", progress):
        yield steps


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.01)


@contextlib.contextmanager
def logits_kept(path: Path, shards: Path) -> Iterator[None]:
    """Within the block, `path`.saved and .loaded get the logits of validation rows when those happen."""
    save, restore = Checkpoints.save, Trainer.restore

    @torch.no_grad()
    def write(model, name: str) -> None:
        rows = make_loader(shards, "val", 256, plain_spec(shards, positives=0, sparse=("category", "user")))
        model.eval()
        (batch,) = rows
        logits = get_unwrapped_module(model).model(batch.dense, batch.sparse, batch.vectors)
        model.train()
        if dist.get_rank() == 0:
            torch.save(logits, path.with_suffix(name))

    def saved(self, model, optimizer, state, *rest):
        if not state["whole_epoch"]:
            write(model, ".saved")
        return save(self, model, optimizer, state, *rest)

    def loaded(self, *arguments, **options):
        write(self.model, ".loaded")
        return restore(self, *arguments, **options)

    path.parent.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(Checkpoints, "save", saved), mock.patch.object(Trainer, "restore", loaded):
        yield


def stop(shards: Path, out: Path) -> None:
    """First one rank alone gets a SIGTERM, and all stop; then the launcher gets one, and passes it on."""

    def one_rank() -> None:
        if dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with in_step(STOP_IN, one_rank), logits_kept(out / "adam", shards):
        try:
            fit("adam", shards, out)
        except Stopped as stopped:
            (out / f"adam.{dist.get_rank()}").write_text(str(stopped.code))

    requests = []

    @contextlib.contextmanager
    def noted() -> Iterator[Callable[[], bool]]:
        with stop_requests() as stop_requested:
            requests.append(stop_requested)
            yield stop_requested

    def launcher() -> None:
        if dist.get_rank() == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        wait_for(requests[0])

    with (
        in_step(STOP_IN, launcher),
        logits_kept(out / "row_wise", shards),
        mock.patch.object(training, "stop_requests", noted),
    ):
        try:
            fit("row_wise", shards, out)
        except Stopped as stopped:
            (out / f"row_wise.{dist.get_rank()}").write_text(str(stopped.code))
            raise


def go_on(shards: Path, out: Path) -> None:
    """Take every interrupted training to its end."""
    for kind in KINDS:
        with logits_kept(out / kind, shards), in_step(0, print) as steps:
            fit(kind, shards, out)
        if dist.get_rank() == 0:
            (out / f"{kind}.steps").write_text(str(len(steps)))


def killed(shards: Path, out: Path) -> None:
    """In the first of two lives, rank 1 is killed in the middle of the second epoch."""
    life = os.environ["TORCHELASTIC_RESTART_COUNT"]

    def kill() -> None:
        if life == "0" and dist.get_rank() == 1:
            wait_for(
                (out / "killed" / "checkpoints" / "epoch-00001-step-000000009").exists
            )  # in the background
            os.kill(os.getpid(), signal.SIGKILL)

    with in_step(KILL_IN, kill) as steps:
        fit_often(shards, out / "killed")
    if dist.get_rank() == 0:
        (out / "steps").write_text(f"{life} {len(steps)}")


def undisturbed(shards: Path, out: Path) -> None:
    """A training without faults; then rank 1 gets broken shards: training rows, validation rows, entities."""
    fit_often(shards, out / "undisturbed")
    rank = dist.get_rank()
    for part, workers in BROKEN:
        rank_shards = shards.with_name(f"broken-{part}") if rank == 1 else shards
        lists = ListConfig(dim=8) if part == "entities" else None
        try:
            fit_often(rank_shards, out / f"{part}-{workers}", lists, workers=workers)
        except DataError as error:
            (out / f"{part}-{workers}.{rank}").write_text(str(error))


def work(what: str, shards: Path, out: Path) -> None:
    """One of the above by its name, as a rank."""
    torch.set_num_threads(1)
    with process_group("cpu"):
        {f.__name__: f for f in (stop, go_on, killed, undisturbed)}[what](shards, out)
