"""`dlrrec bench train`: the whole training step, beside the same model in plain torch.

Every round takes each side in turn, with and without the contrastive terms: this project's own Trainer,
pipeline, optimizers and sharded tables, and the plain reference (`plain`), on the same batches. Before
anything is timed, both must have computed the same losses from equal weights, before and after an update.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel, get_unwrapped_module
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.benchmarks.cases import TrainCase
from dlrrec_torchrec.benchmarks.embeddings.compare import free_memory
from dlrrec_torchrec.benchmarks.format import spread
from dlrrec_torchrec.benchmarks.random_shards import write_random_shards
from dlrrec_torchrec.benchmarks.step.on_gpu import Data, random_data, shards_data
from dlrrec_torchrec.benchmarks.step.parts import PARTS, profiled
from dlrrec_torchrec.benchmarks.step.plain import PlainModel, PlainTraining, copy_weights
from dlrrec_torchrec.benchmarks.timing import summary
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import Ranks, process_group
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.compiled import compile_dense
from dlrrec_torchrec.models.spec import sparse_keys
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.training.optimizers import make_optimizer
from dlrrec_torchrec.training.steps import make_pipeline
from dlrrec_torchrec.training.trainer import Trainer

LR = 0.001
LOSSES = {"dlrrec": 0.1, "bce": 0.0}  # weights of both contrastive terms
CHECKED_ROWS = 256
TOLERANCE = {"fp32": (1e-5, 1e-3), "bf16": (2e-2, 5e-2)}  # relative, before and after the first update


def run(case: TrainCase, say: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure. To be called on every rank where there is a launcher; every rank returns the same form.

    Args:
        say: called with a line before each part.

    Returns:
        case: its settings. ranks: `processes`, `threads` of each, `device`. steps: of a round.
        sides: "dlrrec", "bce" (with and without the contrastive terms), "plain dlrrec", "plain bce" ->
            `seconds` of a step, `samples_per_second` (over all ranks), `data_wait` as a share of the step
            (each median, p10, p90 of the rounds).
        ratio: `dlrrec`, `bce`: plain torch's seconds over this project's of the same round; `contrastive`,
            `plain contrastive`: seconds with the contrastive terms over those without.
        parts: of a profiled round of "dlrrec", name (PARTS) -> `seconds` of a step and `share` of it.
        check: the largest relative differences of the sides' losses, `before` and `after` an update.

    Raises:
        DataError: shards that cannot be read, or sides whose losses differ.
    """
    before = torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(case.threads or max(len(os.sched_getaffinity(0)) // local, 1))
    try:
        with quiet(), process_group(case.device) as ranks, _rows(case, ranks, say) as (rows, data):
            if case.batch % ranks.world_size:
                raise DataError(f"--batch {case.batch}: must be a multiple of the {ranks.world_size} ranks")
            reference = case.reference == "plain" and ranks.world_size == 1
            checked = check(case, ranks) if reference else None
            found = _measure(case, ranks, rows, data, reference, say)
            free_memory(ranks.device)
        return found | {"check": checked}
    finally:
        torch.set_num_threads(before)


def _measure(
    case: TrainCase, ranks: Ranks, rows: Rows, data: Data, reference: bool, say: Callable[[str], Any]
) -> dict[str, Any]:
    sides: dict[str, Side] = {name: Project(case, data, weight, ranks) for name, weight in LOSSES.items()}
    if reference:
        sides |= {f"plain {name}": Plain(case, data, weight, ranks) for name, weight in LOSSES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    waits: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(case.warmup + case.rounds):
        say(f"round {number + 1} of {case.warmup + case.rounds}")
        for name, side in sides.items():
            rows.waited = 0.0
            _wait(ranks)
            start = time.perf_counter()
            side.epoch(rows, number + 1)
            _wait(ranks)
            took = time.perf_counter() - start
            if number >= case.warmup:
                seconds[name].append(took / len(rows))
                waits[name].append(rows.waited / took)
    say("profile")
    parts = profiled(
        sides["dlrrec"].wrapper, ranks.device, len(rows), lambda: sides["dlrrec"].once_more(rows)
    )

    def ratio(above: str, below: str) -> dict[str, float]:
        return summary([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])

    ratios = {"contrastive": ratio("dlrrec", "bce")}
    if reference:
        ratios |= {name: ratio(f"plain {name}", name) for name in LOSSES}
        ratios["plain contrastive"] = ratio("plain dlrrec", "plain bce")
    return {
        "case": dataclasses.asdict(case),
        "ranks": {
            "processes": ranks.world_size,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        },
        "steps": len(rows),
        "sides": {
            name: {
                "seconds": summary(seconds[name]),
                "samples_per_second": summary([case.batch / s for s in seconds[name]]),
                "data_wait": summary(waits[name]),
            }
            for name in sides
        },
        "ratio": ratios,
        "parts": parts,
    }


class Rows:
    """What a Trainer iterates over in an epoch: batches in memory, or a loader's. It times the wait."""

    def __init__(self, batches: Sequence[Batch] | ShardLoader, steps: int, ranks: int) -> None:
        self._batches, self._steps = batches, steps
        self.waited = 0.0
        self.rows = steps * ranks * len(batches[0]) if isinstance(batches, list) else batches.rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, where there is one."""
        if not isinstance(self._batches, list):
            self._batches.set_epoch(epoch)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        batches = itertools.cycle(self._batches) if isinstance(self._batches, list) else iter(self._batches)
        for _ in range(self._steps):
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch


class Project:
    """This project's way: what `dlrrec train` builds."""

    def __init__(
        self, case: TrainCase, data: Data, weight: float, ranks: Ranks, dropout: float | None = None
    ) -> None:
        model = model_config(case, dropout)
        contrastive = ContrastiveConfig(weight, weight, num_negatives=case.negatives)
        torch.manual_seed(case.seed)
        counts = {"dense_width": data.dense_width, "num_users": data.users, "num_items": data.items}
        plain = build_model(model, device="meta", **counts)
        self.wrapper = build_wrapper(plain, contrastive, corpus=data.corpus, seed=case.seed)
        self.sharded: DistributedModelParallel = shard_tables(
            self.wrapper, ranks, batch_size=case.batch // ranks.world_size
        )
        if case.compile:
            compile_dense(plain, ranks.device)
        self.optimizer: CombinedOptimizer = make_optimizer(self.sharded, lr=LR)
        pipeline = make_pipeline(self.sharded, self.optimizer, ranks.device, precision=case.precision)
        self._trainer = Trainer(
            self.sharded,
            self.optimizer,
            pipeline,
            ranks,
            lr=LR,
            table_lr=LR,
            schedule="constant",
            warmup_steps=0,
            total_steps=1,
            seed=case.seed,
        )
        self._epochs = 0

    def epoch(self, rows: Rows, number: int) -> dict[str, Any]:
        """Train on the rows once; the losses of each step."""
        self._epochs = number
        return self._trainer.run_epoch(rows, number)[1]

    def once_more(self, rows: Rows) -> None:
        """Another epoch."""
        self.epoch(rows, self._epochs + 1)

    def category(self) -> torch.Tensor:
        """The category table, where it is whole on this rank."""
        name = next(n for n in self.sharded.state_dict() if n.endswith("t_category.weight"))
        table = self.sharded.state_dict()[name]
        return table.local_shards()[0].tensor if hasattr(table, "local_shards") else table


class Plain:
    """Plain torch: a loop over batches."""

    def __init__(
        self, case: TrainCase, data: Data, weight: float, ranks: Ranks, dropout: float | None = None
    ) -> None:
        config, self._device = model_config(case, dropout), ranks.device
        torch.manual_seed(case.seed)
        self.model = PlainModel(
            data.dense_width,
            config.modalities,
            config.text_tower,
            config.image_tower,
            config.dense_arch,
            config.over_arch,
            config.dropout,
        )
        weights, temperature = {"user": weight, "item": weight}, ContrastiveConfig().temperature
        corpus = {name: data.corpus[name] for name in config.modalities}
        self.training = PlainTraining(self.model, corpus, weights, case.negatives, temperature, case.seed)
        self.training.to(ranks.device)
        self._optimizer = torch.optim.Adam(self.training.parameters(), lr=LR)
        self._half = case.precision == "bf16"

    def epoch(self, rows: Rows, number: int) -> dict[str, Any]:
        """Train on the rows once; the losses of each step."""
        self.training.train()
        rows.set_epoch(number)
        losses = []
        for batch in rows:
            batch = batch.to(self._device)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
                loss, parts = self.training(batch)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            losses.append(parts)
        return {name: torch.stack([parts[name] for parts in losses]).cpu().numpy() for name in losses[0]}


Side = Project | Plain


def check(case: TrainCase, ranks: Ranks) -> dict[str, float]:
    """Two steps of both sides on the same random rows, from equal weights, without dropout.

    Raises DataError where a loss of the second differs from the first's beyond TOLERANCE.
    """
    size = min(case.batch, CHECKED_ROWS)
    sizes = {"users": case.users, "items": case.items, "seed": case.seed + 1}
    data = random_data(model_config(case), size, 2, **sizes)
    for batch in data.batches:  # some have no neighbours
        batch.user_positives[::3], batch.item_positives[::4] = -1, -1
    rows, weight = Rows(data.batches, 2, 1), LOSSES["dlrrec"]
    plain = Plain(case, data, weight, ranks, dropout=0.0)
    project = Project(case, data, weight, ranks, dropout=0.0)
    source = get_unwrapped_module(project.sharded).model
    copy_weights(source, project.category(), plain.model)
    ours, theirs = project.epoch(rows, 1), plain.epoch(rows, 1)
    found = {}
    for step, when in enumerate(("before", "after")):
        found[when] = max(abs(float(theirs[n][step] / ours[n][step]) - 1) for n in theirs)
        if not found[when] <= TOLERANCE[case.precision][step]:
            different = {n: (float(ours[n][step]), float(theirs[n][step])) for n in theirs}
            raise DataError(f"the losses of the sides differ {when} the first update: {different}")
    return found


def model_config(case: TrainCase, dropout: float | None = None) -> ModelConfig:
    """The default model with the case's modalities."""
    config = ModelConfig(modalities=list(case.modalities))
    return config if dropout is None else dataclasses.replace(config, dropout=dropout)


@contextlib.contextmanager
def _rows(case: TrainCase, ranks: Ranks, say: Callable[[str], Any]) -> Iterator[tuple[Rows, Data]]:
    """The rows of a round, and what the model is built from."""
    model, share = model_config(case), case.batch // ranks.world_size
    sizes = {"users": case.users, "items": case.items}
    if not case.loader:
        data = random_data(model, share, min(case.steps, 8), seed=case.seed, **sizes)
        if ranks.device.type == "cuda":
            data = dataclasses.replace(data, batches=[batch.pin_memory() for batch in data.batches])
        yield Rows(data.batches, case.steps, ranks.world_size), data
        return
    with contextlib.ExitStack() as stack:
        folder = Path(case.shards or case.keep)
        if not case.shards:
            if ranks.world_size > 1 and not case.keep:
                raise DataError(
                    "--loader on several ranks: name a folder that all of them see, --keep or --shards"
                )
            folder = Path(
                case.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrrec-train-"))
            )
            options = sizes | {"modalities": case.modalities, "positives": case.positives, "seed": case.seed}
            say(f"{case.rows:,} random rows in {folder}")
            if ranks.rank == 0:
                write_random_shards(folder, case.rows, **options)
            torch.distributed.barrier()
        loader = make_loader(
            folder,
            "train",
            share,
            modalities=model.modalities,
            positives=Manifest.read(folder).facts["positives"],
            sparse_keys=sparse_keys(model),
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=case.seed,
            shuffle=True,
            workers=case.workers,
            drop_last=True,
            pin_memory=ranks.device.type == "cuda",
        )
        if not len(loader):
            raise DataError(f"{folder}: has fewer than {case.batch} training rows; take a smaller --batch")
        yield Rows(loader, len(loader), ranks.world_size), shards_data(folder, model, share, 1)


def _wait(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        torch.distributed.barrier()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def format_training(report: dict[str, Any]) -> list[list[list[str]]]:
    """Rows of three tables: sides, ratios, parts; medians, with p10 to p90 in brackets."""

    sides = [["", "samples/s", "step, ms", "waiting for data"]]
    for name, side in report["sides"].items():
        wait = f"{side['data_wait']['median']:.1%}"
        speed, seconds = side["samples_per_second"], side["seconds"]
        sides.append([name, spread(speed, "{:,.0f}"), spread(seconds, "{:.1f}", 1e3), wait])
    names = {
        "dlrrec": "plain torch's time / this project's, dlrrec",
        "bce": "the same, bce",
        "contrastive": "with / without the contrastive terms",
        "plain contrastive": "the same, plain torch",
    }
    ratios = [["", "ratio"]]
    ratios += [
        [text, spread(report["ratio"][n], "{:.2f}")] for n, text in names.items() if n in report["ratio"]
    ]
    parts = [["of a step of dlrrec, profiled", "ms", "share"]]
    for name in PARTS:
        part = report["parts"][name]
        parts.append([name, f"{1e3 * part['seconds']:.2f}", f"{part['share']:.1%}"])
    return [sides, ratios, parts]
