"""One epoch of training, and the metrics of held-out rows, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel, get_unwrapped_module
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.data.loader import ShardLoader
from dlrrec_torchrec.metrics import binary_metrics, sigmoid
from dlrrec_torchrec.models.collectives import gather_rows
from dlrrec_torchrec.optimizers import lr_factor, set_lr
from dlrrec_torchrec.parallel import Ranks
from dlrrec_torchrec.schema import DataError
from dlrrec_torchrec.steps import make_pipeline

LOSSES = ("loss_rec", "loss_ii", "loss_uu")
REPORTED = ("auc", "accuracy", "fpr")  # of the training rows


class Trainer:
    """Takes a sharded model through its epochs.

    Args:
        model: around a TrainWrapper.
        optimizer: of tables and dense part.
        ranks: this process among the others.
        lr, table_lr: learning rates of the dense part and of the tables, before the schedule.
        schedule, warmup_steps: of the learning rates (`optimizers.lr_factor`).
        total_steps: steps of the whole training.
        seed: of dropout, together with epoch and rank.
        advance: called after each step.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        ranks: Ranks,
        *,
        lr: float,
        table_lr: float,
        schedule: str,
        warmup_steps: int,
        total_steps: int,
        seed: int,
        advance: Callable[[], Any] = lambda: None,
    ) -> None:
        self._model, self._optimizer, self._ranks = model, optimizer, ranks
        self._lr, self._table_lr, self._seed, self._advance = lr, table_lr, seed, advance
        self._schedule, self._warmup, self._total = schedule, warmup_steps, total_steps
        self._pipeline = make_pipeline(model, optimizer, ranks.device)

    def run_epoch(self, rows: ShardLoader, epoch: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Train on every row once.

        Random numbers start anew from (seed, epoch, rank): a resumed run needs no generator state.

        Returns:
            the epoch's record: `epoch`, `step` (the last), `lr`, `train_loss` (unweighted BCE in nats),
            `train_loss_rec`, `train_loss_ii`, `train_loss_uu` (means over the steps), `train_auc`,
            `train_accuracy`, `train_fpr` (of the predictions made while training), `seconds`,
            `rows_per_second`; and the losses of each step, name -> f32 [steps].

        Raises:
            DataError: a loss that is not a number, on all ranks.
        """
        key = np.random.SeedSequence([self._seed, epoch, self._ranks.rank])
        torch.manual_seed(int(key.generate_state(1)[0]))
        self._model.train()
        rows.set_epoch(epoch)
        start, batches, outputs = time.monotonic(), iter(rows), []
        first = (epoch - 1) * len(rows)
        for step in range(first, first + len(rows)):
            factor = lr_factor(step, self._total, self._schedule, self._warmup)
            set_lr(self._optimizer, self._lr * factor, self._table_lr * factor)
            outputs.append(self._pipeline.progress(batches))
            self._advance()
        self._pipeline.detach()  # evaluation and checkpoints see the plain model

        steps = {name: torch.stack([o[name] for o in outputs]).float().cpu().numpy() for name in LOSSES}
        for name, values in steps.items():
            if not np.isfinite(values).all():
                step = first + int(np.flatnonzero(~np.isfinite(values))[0]) + 1
                raise DataError(f"{name} is not a number in step {step} (epoch {epoch}); lower train.lr")
        seconds = time.monotonic() - start
        joined = [torch.cat([o[name] for o in outputs]) for name in ("label", "logits")]
        metrics = self._metrics(*joined)
        record = {"epoch": epoch, "step": first + len(rows), "lr": self._lr * factor}
        record |= {"train_loss": metrics["loss"]}
        record |= {f"train_{name}": float(values.mean()) for name, values in steps.items()}
        record |= {f"train_{name}": metrics[name] for name in REPORTED}
        return record | {"seconds": seconds, "rows_per_second": rows.rows / seconds}, steps

    @torch.no_grad()
    def evaluate(self, rows: ShardLoader) -> dict[str, float]:
        """The metrics (`metrics.binary_metrics`) of the model's predictions for all rows of all ranks."""
        self._model.eval()
        model = get_unwrapped_module(self._model).model
        logits, labels, users = [], [], []
        for batch in rows:
            batch = batch.to(self._ranks.device)
            logits.append(model(batch.dense, batch.sparse, batch.vectors))
            labels.append(batch.label)
            users.append(batch.user)
        return self._metrics(torch.cat(labels), torch.cat(logits), torch.cat(users))

    def _metrics(self, label: Tensor, logits: Tensor, user: Tensor | None = None) -> dict[str, float]:
        """Metrics over all ranks' rows, computed on rank 0, so that all ranks decide alike."""
        both = gather_rows(torch.stack([label, logits.float()], dim=1))
        user = None if user is None else gather_rows(user).cpu().numpy()
        metrics = None
        if self._ranks.rank == 0:
            label, logits = both.double().cpu().numpy().T
            real = label >= 0  # not padding
            user = None if user is None else user[real]
            metrics = binary_metrics(label[real], sigmoid(logits[real]), user)
        return self._ranks.share(metrics)
