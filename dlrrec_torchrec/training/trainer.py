"""The steps of training, and the metrics of held-out rows, over all ranks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function
from torchrec.distributed.model_parallel import DistributedModelParallel, get_unwrapped_module
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.loader import ShardLoader
from dlrrec_torchrec.distributed.collectives import gather_rows
from dlrrec_torchrec.distributed.lockstep import Lockstep
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.metrics import binary_metrics, sigmoid
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.sharding.table_optimizers import uncounted
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.optimizers import Schedule, set_rates
from dlrrec_torchrec.training.steps import Pipeline
from dlrrec_torchrec.training.warm_start import may_choose, row_losses

LOSSES = ("loss_rec", "loss_ii", "loss_uu", "loss_list")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
REPORTED = ("auc", "accuracy", "fpr")  # of the training rows


@dataclasses.dataclass(frozen=True)
class Clock:
    """What a process has spent on a training so far.

    Attributes:
        rows: trained on, over all ranks.
        seconds: in steps; waited: of these, seconds in which it waited for the loader.
    """

    rows: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: Clock) -> Clock:
        return Clock(self.rows + other.rows, self.seconds + other.seconds, self.waited + other.waited)

    def __sub__(self, other: Clock) -> Clock:
        return Clock(self.rows - other.rows, self.seconds - other.seconds, self.waited - other.waited)


class Trainer:
    """Takes a sharded model through its epochs, and can go on from the middle of one.

    Args:
        model: around a TrainWrapper.
        optimizer: of tables and dense part.
        pipeline: of steps with them (`steps.make_pipeline`).
        ranks: this process among the others.
        schedule: of the learning rates.
        seed: of dropout, together with epoch and rank.
        stop_requested: whether this process should stop.
        chooses: whether `evaluate` decides what is kept of a wide path and the deep part's share.

    Attributes:
        step: steps so far.
        clock: of this process, so far.
        rates: `lr` and `table_lr` of the last step.
        effects: of the last evaluation (`evaluate`).
        scored: label and logit f64 [N] of the last evaluation's rows, on rank 0.
        chooses: as given.
        base_kept: whether the last evaluation kept wide and residual path as they were then.
        stopping: whether any rank should stop; all ranks see it after the same step or, when
            `evaluate` returns None, after the same batch.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        pipeline: Pipeline,
        ranks: Ranks,
        *,
        schedule: Schedule,
        seed: int,
        stop_requested: Callable[[], bool] = lambda: False,
        chooses: bool = False,
    ) -> None:
        self.chooses = chooses
        self.model, self._optimizer, self._pipeline, self._ranks = model, optimizer, pipeline, ranks
        self._schedule, self._seed, self._stop_requested = schedule, seed, stop_requested
        self.step = 0
        self.clock = Clock()
        self.rates = {"lr": schedule.lr, "table_lr": schedule.table_lr}
        self.effects: dict[str, float] = {}
        self.scored: tuple[np.ndarray, np.ndarray] | None = None
        self.stopping = self.base_kept = False
        self._resumed: Callable[[], Any] | None = None  # puts the random numbers where they were
        # Of the epoch under way: label and logit of each row so far, LOSSES of each step, seconds.
        self._rows: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._seconds = 0.0

    def run_epoch(
        self, rows: ShardLoader, epoch: int, after_step: Callable[[], Any] = lambda: None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Train on every row once, or on those that a restored epoch has left.

        Random numbers restart from (seed, epoch, rank). `after_step` is called after each step, where the
        model may be saved; what it raises ends the training.

        Returns:
            the epoch's record: `epoch`, `step` (the last), `lr`, `train_loss` (unweighted BCE in nats),
            `train_loss_rec`, `train_loss_ii`, `train_loss_uu`, `train_loss_list` (means over the steps),
            `train_auc`, `train_accuracy`, `train_fpr` (of the predictions made while training), `seconds`,
            `rows_per_second`; and the losses of each step, name -> f32 [steps].

        Raises:
            DataError: a loss that is not a number, rows that cannot be read, on all ranks.
        """
        first, last = (epoch - 1) * len(rows), epoch * len(rows)
        draw, self._resumed = self._resumed, None
        if draw is None:
            draw = functools.partial(self._draw_from, epoch)
            self._rows, self._losses, self._seconds = [], [], 0.0
        self.model.train()
        rows.set_epoch(epoch)
        start = time.monotonic() - self._seconds
        if self.step < last:
            lockstep = Lockstep(itertools.islice(rows, self.step - first, None), self._stop_requested)
            batches = _Timed(lockstep)
        draw()  # after the loader has: the first time, or each time, as it has workers or not
        while self.step < last:
            self.rates = self._schedule.rates(self.step)
            set_rates(self._optimizer, **self.rates)
            began, waited = time.perf_counter(), batches.seconds
            output = self._pipeline.progress(batches)
            self.clock += Clock(
                rows=len(output["label"]) * self._ranks.world_size,
                seconds=time.perf_counter() - began,
                waited=batches.seconds - waited,
            )
            self._rows.append(torch.stack([output["label"], output["logits"].float()], dim=1))
            self._losses.append(torch.stack([output[name].float() for name in LOSSES]).unsqueeze(0))
            self.step += 1
            self._seconds = time.monotonic() - start
            self.stopping = lockstep.stop
            after_step()
        self._pipeline.detach()  # evaluation and checkpoints see the plain model

        losses = self._checked_losses().cpu().numpy()
        metrics = self._metrics(torch.cat(self._rows))
        self._seconds = time.monotonic() - start
        steps = dict(zip(LOSSES, losses.T, strict=True))
        record = {"epoch": epoch, "step": last, "lr": self._schedule.rates(last - 1)["lr"]}
        record |= {"train_loss": metrics["loss"]}
        record |= {f"train_{name}": float(values.mean()) for name, values in steps.items()}
        record |= {f"train_{name}": metrics[name] for name in REPORTED}
        return record | {"seconds": self._seconds, "rows_per_second": rows.rows / self._seconds}, steps

    @torch.no_grad()
    def evaluate(self, rows: ShardLoader) -> dict[str, float] | None:
        """The metrics (`metrics.binary_metrics`) of the model's predictions for all rows of all ranks.

        Before, where that is to be chosen, wide and residual path are kept as they are now if their loss is
        below that of those that were kept, and `share` becomes the best one.

        `effects` gets the spread of the change in the logits of the first batch (of all ranks) without the
        vectors of a modality, over the logits' own spread, whatever the deep part's share:
        `effect_MODALITY`, NaN where there is none.

        None where a rank should stop meanwhile. Raises DataError for rows that cannot be read, on
        all ranks.
        """
        self.model.eval()
        model = get_unwrapped_module(self.model).model
        first, parts, users = None, [], []
        batches = Lockstep(rows, self._stop_requested)
        with uncounted(self.model):
            for batch in batches:
                batch = batch.to(self._ranks.device)
                now, kept, deep = model.score_parts(batch)
                first = batch if first is None else first
                if model.wide is None:
                    now = kept = torch.zeros_like(deep)
                parts.append(torch.stack([batch.label, now, kept, deep], dim=1))
                users.append(batch.user)
                if batches.stop:
                    self.stopping = True
                    return None
            label, now, kept, deep = torch.cat(parts).T
            if model.wide is not None and self.chooses:
                self.base_kept, share = self._chosen(label, now, kept, deep)
                model.share.fill_(share)
                if self.base_kept:
                    model.keep_base()
                    kept = now
            logits = deep if model.wide is None else kept + model.share * deep
            rows = len(first.label)
            self.effects = effects(model, first, kept[:rows], deep[:rows])
        return self._metrics(torch.stack([label, logits], dim=1), torch.cat(users), keep=True)

    def _chosen(self, *parts: Tensor) -> tuple[bool, float]:
        rows, found = gather_rows(torch.stack(parts, dim=1)), None
        if self._ranks.first:
            label, now, kept, deep = rows[rows[:, 0] >= 0].double().cpu().numpy().T  # no padding
            found = True, 1.0  # too few rows to choose by
            if may_choose(label):
                better = cross_entropy(label, now) < cross_entropy(label, kept)
                found = better, best_share(label, now if better else kept, deep)
        return self._ranks.share(found)

    def recent_losses(self, steps: int) -> dict[str, float]:
        """Means of LOSSES over the last `steps` steps, as far as they are of the epoch under way."""
        means = torch.cat(self._losses[-steps:])[-steps:].mean(0).tolist()
        return dict(zip(LOSSES, means, strict=True))

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on in the middle of this epoch: this rank's tensors, in host memory.

        Raises DataError where a loss is not a number, on all ranks: such a model is not worth keeping.
        """
        device = self._ranks.device
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        losses, rows = self._checked_losses().cpu(), torch.cat(self._rows).cpu()
        return {"random": random, "losses": losses, "rows": rows, "seconds": self._seconds}

    def restore(
        self, step: int, epoch: int, states: Sequence[dict[str, Any]] | None, same_ranks: bool
    ) -> None:
        """Go on after `step` steps.

        Args:
            epoch: whole epochs so far.
            states: the `state` of all saved ranks, dealt out to the current ones: rank 0's first on rank 0.
                None: `step` ended an epoch.
            same_ranks: whether as many ranks were saved, so that each finds its own random numbers. If not,
                they restart from (seed, epoch, rank, step).
        """
        self.step = step
        if states is None:
            return
        shared = (states[0]["losses"], states[0]["seconds"]) if self._ranks.first else None
        losses, self._seconds = self._ranks.share(shared)
        device = self._ranks.device
        self._losses = [losses.to(device)]
        self._rows = [torch.zeros(0, 2, device=device), *(state["rows"].to(device) for state in states)]

        def draw() -> None:
            if not same_ranks:
                self._draw_from(epoch + 1, step)
                return
            torch.set_rng_state(states[0]["random"]["cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(states[0]["random"]["cuda"], device)

        self._resumed = draw

    def _draw_from(self, *key: int) -> None:
        sequence = np.random.SeedSequence([self._seed, key[0], self._ranks.rank, *key[1:]])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _checked_losses(self) -> Tensor:
        """LOSSES of the epoch's steps so far, f32 [steps, 4]."""
        losses = torch.cat(self._losses)
        if not bool(losses.isfinite().all()):
            step, which = (int(i) for i in (~losses.isfinite()).nonzero()[0])
            step += self.step - len(losses) + 1
            raise DataError(f"{LOSSES[which]} is not a number in step {step}; lower train.lr")
        return losses

    def _metrics(self, rows: Tensor, user: Tensor | None = None, keep: bool = False) -> dict[str, float]:
        """Metrics of all ranks' rows (label, logit), computed on rank 0 so that all decide the same."""
        rows = gather_rows(rows)
        user = None if user is None else gather_rows(user).cpu().numpy()
        metrics = None
        if self._ranks.first:
            label, logits = rows.double().cpu().numpy().T
            real = label >= 0  # not padding
            user = None if user is None else user[real]
            label, logits = label[real], logits[real]
            # Ranked by logits: probabilities close to 1 are rounded to one value.
            metrics = binary_metrics(label, sigmoid(logits), user, score=logits)
            if keep:
                self.scored = label, logits
        return self._ranks.share(metrics)


def best_share(label: np.ndarray, base: np.ndarray, deep: np.ndarray) -> float:
    """The share of the deep part, out of SHARES, with the lowest cross-entropy of base + share * deep.

    The deep part sees who a row's user and item are, and is the first to over-fit; of equal shares the
    smallest. Label f64 [N] of 0 and 1, logits f64 [N] of held-out rows.
    """
    return min(SHARES, key=lambda share: cross_entropy(label, base + share * deep))


def cross_entropy(label: np.ndarray, logit: np.ndarray) -> float:
    """Sum in nats, of labels f64 [N] of 0 and 1 and logits f64 [N]."""
    return float(row_losses(label, logit).sum())


def effects(model: DLRREC, batch: Batch, base: Tensor, deep: Tensor) -> dict[str, float]:
    """As `Trainer.effects`: the batch's logits f32 [B]. Call it on all ranks, in eval mode."""
    names = [modality.name for modality in model.modalities]
    changes = [model.score_parts(batch, without=[name])[2] - deep for name in names]
    rows = gather_rows(torch.stack([batch.label, base + deep, *changes], dim=1).double())
    spread, *of_changes = rows[rows[:, 0] >= 0, 1:].std(0, correction=0).tolist()
    return {
        f"effect_{name}": value / spread if spread else math.nan
        for name, value in zip(names, of_changes, strict=True)
    }


class _Timed:
    """Iterates over batches, and knows how many seconds it waited for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        try:
            with record_function("data wait"):
                return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - began
