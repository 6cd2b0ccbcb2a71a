"""The two trainings that are compared: this project's and plain torch's, on the same batches."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dlrrec_torchrec.benchmarks.cases import TrainCase
from dlrrec_torchrec.benchmarks.random_shards import random_facts
from dlrrec_torchrec.benchmarks.step.batches import Data, random_data
from dlrrec_torchrec.benchmarks.step.plain import PlainModel, PlainTraining, copy_weights
from dlrrec_torchrec.benchmarks.step.roofline import Counter
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.loader import ShardLoader
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.build import tower_sizes
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.assemble import assemble, schedule
from dlrrec_torchrec.training.trainer import Trainer

LR = 0.001
LOSSES = {"dlrrec": 0.1, "bce": 0.0}  # weights of both contrastive terms
CHECKED_ROWS = 256
TOLERANCE = {"fp32": (1e-5, 1e-3), "bf16": (2e-2, 5e-2)}  # relative, before and after the first update


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
    """This project's way: what `dlrrec train` builds (`training.assemble`).

    Attributes:
        counter: the operations of one step.
        peak_memory: bytes that building it and two steps took at most; None on a CPU.
    """

    def __init__(
        self, case: TrainCase, data: Data, weight: float, ranks: Ranks, dropout: float | None = None
    ) -> None:
        self._settings = TrainConfig(
            batch_size=case.batch, lr=LR, seed=case.seed, precision=case.precision, compile=case.compile
        )
        self.assembly = assemble(
            model_config(case, dropout),
            contrastive_config(case, weight),
            self._settings,
            data.spec,
            ranks,
            corpus=data.corpus,
        )
        self._trainer = Trainer(
            self.assembly.model,
            self.assembly.optimizer,
            self.assembly.pipeline,
            ranks,
            schedule=schedule(self._settings),
            seed=case.seed,
        )
        self._epochs = 0

    def floor(self, batch: Batch) -> int:
        """Bytes that a step moves at least: the batch once, weights and Adam's moments read and written."""
        weights = sum(p.numel() * p.element_size() for p in self.assembly.model.parameters())
        return 6 * weights + batch.nbytes

    def counted_step(self, batch: Batch) -> Counter:
        """Take two steps on `batch`, of which the first makes the optimizers' state; count the second."""
        model, optimizer, counter = self.assembly.model.train(), self.assembly.optimizer, Counter()
        for context in (contextlib.nullcontext(), counter):
            with context:
                optimizer.zero_grad()
                loss, _ = model(batch)
                loss.backward()
                optimizer.step()
        return counter

    def epoch(self, rows: Rows, number: int) -> dict[str, Any]:
        """Train on the rows once; the losses of each step."""
        self._epochs = number
        return self._trainer.run_epoch(rows, number)[1]

    def once_more(self, rows: Rows) -> None:
        """Another epoch."""
        self.epoch(rows, self._epochs + 1)

    def category(self) -> torch.Tensor:
        """The category table, where it is whole on this rank."""
        state = self.assembly.model.state_dict()
        table = next(tensor for name, tensor in state.items() if name.endswith("t_category.weight"))
        return table.local_shards()[0].tensor if hasattr(table, "local_shards") else table


class Plain:
    """Plain torch: a loop over batches."""

    def __init__(
        self, case: TrainCase, data: Data, weight: float, ranks: Ranks, dropout: float | None = None
    ) -> None:
        config, self._device = model_config(case, dropout), ranks.device
        torch.manual_seed(case.seed)
        self.model = PlainModel(
            data.spec,
            tower_sizes(config, data.spec.modalities),
            config.dense_arch,
            config.over_arch,
            config.dropout,
        )
        weights, temperature = {"user": weight, "item": weight}, ContrastiveConfig().temperature
        self.training = PlainTraining(
            self.model, data.corpus, weights, case.negatives, temperature, case.seed
        )
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
    data = random_data(random_spec(case), size, 2, case.seed + 1)
    for batch in data.batches:  # some have no neighbours
        batch.user_positives[::3], batch.item_positives[::4] = -1, -1
    rows, weight = Rows(data.batches, 2, 1), LOSSES["dlrrec"]
    plain = Plain(case, data, weight, ranks, dropout=0.0)
    project = Project(case, data, weight, ranks, dropout=0.0)
    source = project.assembly.plain
    copy_weights(source, project.category(), plain.model)
    ours, theirs = project.epoch(rows, 1), plain.epoch(rows, 1)
    differences = {}
    for step, when in enumerate(("before", "after")):
        differences[when] = max(abs(float(theirs[n][step] / ours[n][step]) - 1) for n in theirs)
        if not differences[when] <= TOLERANCE[case.precision][step]:
            different = {n: (float(ours[n][step]), float(theirs[n][step])) for n in theirs}
            raise DataError(f"the losses of the sides differ {when} the first update: {different}")
    return differences


def model_config(case: TrainCase, dropout: float | None = None) -> ModelConfig:
    """The papers' model, without a wide path, with the case's modalities."""
    config, *_ = automatic(ModelConfig(modalities=list(case.modalities), wide=False), TrainConfig())
    return config if dropout is None else dataclasses.replace(config, dropout=dropout)


def contrastive_config(case: TrainCase, weight: float) -> ContrastiveConfig:
    """Both terms of one weight."""
    return ContrastiveConfig(weight, weight, num_negatives=case.negatives)


def random_spec(case: TrainCase) -> BatchSpec:
    """What the batches of the case's random rows hold."""
    facts = random_facts(
        users=case.users,
        items=case.items,
        modalities=case.modalities,
        vector_dim=case.vector_dim,
        positives=case.positives,
    )
    return case_spec(case, facts)


def case_spec(case: TrainCase, facts: ShardFacts) -> BatchSpec:
    """What the batches of these shards hold for the model with its contrastive terms."""
    return batch_spec(model_config(case), facts, contrastive_config(case, LOSSES["dlrrec"]), case.seed)
