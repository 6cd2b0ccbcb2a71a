"""A training under way: its epochs, from the start or a checkpoint to the last, and what it writes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dlrrec_torchrec.config import TrainConfig
from dlrrec_torchrec.data.loader import ShardLoader
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.calibration import Calibration, fit_calibration
from dlrrec_torchrec.models.wide import WidePath
from dlrrec_torchrec.models.wrapper import TERMS
from dlrrec_torchrec.store.folders import write_text_atomic
from dlrrec_torchrec.store.manifest import jsonable
from dlrrec_torchrec.training.alarms import Alarms
from dlrrec_torchrec.training.assemble import Assembly
from dlrrec_torchrec.training.checkpoint import Checkpoints
from dlrrec_torchrec.training.history import History
from dlrrec_torchrec.training.list_metrics import ListMetrics
from dlrrec_torchrec.training.observe import Observer
from dlrrec_torchrec.training.optimizers import Schedule, initialize
from dlrrec_torchrec.training.probe import Probe
from dlrrec_torchrec.training.refresh import Refresh
from dlrrec_torchrec.training.selection import Evaluated, Selection
from dlrrec_torchrec.training.signals import Stopped
from dlrrec_torchrec.training.terminal import progress_bar
from dlrrec_torchrec.training.trainer import Trainer
from dlrrec_torchrec.training.warm_start import warm_start

ALL_LIKED = "all training rows are positive, so every probability is the share of likes"


@dataclasses.dataclass
class Run:
    """A training under way: its epochs, and what is written as it goes.

    Attributes:
        held_out: rows to select and calibrate by; None where `evaluated` says what they would.
        start: the facts of a wide path's start (`warm_start`); None without one.
        calibration, share: of the best epoch so far.
        base_epoch: after which wide and residual path were kept, as of the best epoch so far.
        alarms: of this training so far.
    """

    shards_dir: Path
    out_dir: Path
    fingerprint: str
    assembly: Assembly
    ranks: Ranks
    rows: ShardLoader
    held_out: ShardLoader | None
    selection: Selection
    settings: TrainConfig
    evaluated: Evaluated | None
    schedule: Callable[[int], Schedule]  # of so many steps
    list_metrics: ListMetrics | None
    rated: bool
    protocol: str
    stop_requested: Callable[[], bool]
    probe: Probe | None  # on rank 0
    refresh: Refresh
    after_epoch: Callable[[Selection], None] | None = None  # may end the training by an exception
    start: dict[str, Any] | None = None
    calibration: Calibration = Calibration()
    share: float = 1.0
    base_epoch: int = 0
    _kept_after: int = dataclasses.field(default=0, init=False)  # the same of the last epoch
    mix: dict[str, float] | None = None  # of lists, at the end

    def to_the_end(self) -> None:
        """From the last checkpoint, or the start, to the last epoch. Raises Stopped on a request to stop."""
        settings, selection, first = self.settings, self.selection, self.ranks.first
        epochs = settings.epochs if self.evaluated is None else self.evaluated.epochs
        self.total = epochs * len(self.rows)
        self.trainer = Trainer(
            self.assembly.model,
            self.assembly.optimizer,
            self.assembly.pipeline,
            self.ranks,
            schedule=self.schedule(settings.epochs * len(self.rows)),
            seed=settings.seed,
            stop_requested=self.stop_requested,
            chooses=self.protocol == "strict" and self.rated and self.evaluated is None,
        )
        with Checkpoints(
            self.out_dir / "checkpoints",
            self.ranks,
            keep=settings.keep_checkpoints,
            background=settings.background_checkpoints,
        ) as self.checkpoints:
            saved = self._resume()
            reached = selection.epoch if saved else -1  # epoch 0 is what a wide path starts as
            with (
                progress_bar(first) as self.bar,
                History(self.out_dir, reached, selection.epoch * len(self.rows), first) as self.history,
            ):
                self.task = self.bar.add_task("training", total=self.total, completed=self.trainer.step)
                self._observe(saved)
                if not saved and self.assembly.plain.wide is not None:
                    self._begin(self.assembly.plain.wide)
                while selection.epoch < epochs and not selection.stop:
                    epoch = self.trainer.run_epoch(self.rows, selection.epoch + 1, self._after_step)
                    self._end_epoch(*epoch)
                self.observer.close()
                if first:
                    self._last_words()
            if self.evaluated is not None:
                self.mix = self.evaluated.mix
            elif self.list_metrics is not None:
                self.mix = {"mix": 0.0, "ease": 0.0}
                if self.list_metrics.users:
                    self.checkpoints.load_best(self.assembly.model, self.assembly.optimizer)
                    self.mix = self.list_metrics.best_mix(self.assembly.model, self.rated)

    def _begin(self, wide: WidePath) -> None:
        """Epoch 0: the logistic regression that the wide path starts as is a candidate like every epoch."""
        held_out = self.selection.split if self.protocol == "strict" else None
        given = self.evaluated.start if self.evaluated else None
        weights = self.assembly.wrapper.class_weights.tolist()
        seed = self.settings.seed
        self.start = warm_start(wide, self.shards_dir, weights, held_out, seed, self.ranks, given)
        if self.evaluated:
            self.share = self.evaluated.share
            self.assembly.plain.share.fill_(self.share)
        initialize(self.assembly.optimizer)
        self._end_epoch({"epoch": 0, "step": 0}, {})

    def _end_epoch(self, record: dict[str, Any], steps: dict[str, np.ndarray]) -> None:
        """Evaluate, select, record and save, after the steps of an epoch."""
        selection, first, model = self.selection, self.ranks.first, self.assembly.plain
        last = record["epoch"] if self.evaluated is None else self.evaluated.base_epoch
        keeps = model.wide is not None and not self.trainer.chooses and record["epoch"] <= last
        if keeps:
            model.keep_base()
        metrics = {} if self.held_out is None else self.trainer.evaluate(self.held_out)
        if metrics is None:
            self._save_and_stop()
        if self.list_metrics is not None:
            metrics |= self.list_metrics.measure(self.assembly.model)
        best = selection.update(record["epoch"], metrics)
        if keeps or self.trainer.base_kept:
            self._kept_after = record["epoch"]
        share = 1.0 if model.wide is None else float(model.share)
        if best:
            self._calibrate()
            self.share, self.base_epoch = share, self._kept_after
        if first:
            terms = [TERMS[side] for side in self.assembly.wrapper.sides]
            scored = self.trainer.scored if self.rated else None
            effects = self.trainer.effects if self.rated else {}
            self.alarms.after_epoch(record, steps, terms, effects, scored, selection.split)
        record = record | metrics | {"share": share} | self.trainer.effects | self.observer.probed()
        record |= self.refresh.after_epoch(record["epoch"])
        self.history.add(record | {"split": selection.split, "best": best}, steps)
        if best and first:
            _write_best(self.out_dir, self.protocol, selection)
        self._save(best=best, rank_state={}, whole_epoch=True)
        shown = f"epoch {record['epoch']}"
        if self.held_out is not None:
            shown += f": {selection.split} AUC {metrics['auc']:.4f}"
        if self.list_metrics is not None:
            shown += f", NDCG@20 {metrics['ndcg@20']:.4f}, Recall@20 {metrics['recall@20']:.4f}"
        self.bar.update(self.task, description=shown)
        if first and self.bar.disable:  # a log of a job
            print(shown, file=sys.stderr)
        if self.after_epoch is not None:
            self.after_epoch(selection)

    def _calibrate(self) -> None:
        """Fit the probabilities of the best epoch to the validation rows."""
        calibration = None
        if self.evaluated is not None:
            calibration = self.evaluated.calibration
        elif not self.rated:
            calibration = Calibration(bias=math.log(self.rows.rows + 1), note=ALL_LIKED)
        elif self.protocol != "strict":
            calibration = Calibration(note="probabilities are not calibrated: there are no validation rows")
        elif self.ranks.first:
            calibration = fit_calibration(*self.trainer.scored)
        self.calibration = self.ranks.share(calibration)

    def _last_words(self) -> None:
        """What is to be known of the model that is kept, unless that was said of the evaluated one."""
        if self.evaluated is not None:
            return
        if not self.rated:
            self.say(self.calibration.note)
            return
        if self.start is not None and self.selection.best_epoch == 0:
            self.say(
                f"no epoch is better by {self.selection.split} {self.selection.rule} than the logistic "
                "regression that training starts as: it is the model that is kept"
            )
        if self.start is not None and self.selection.best_epoch:
            whose = f"chosen on {self.selection.split} rows" if self.trainer.chooses else "not chosen"
            self.say(
                f"wide and residual path as of epoch {self.base_epoch}, the deep part (towers, tables) with "
                f"the share {self.share:g}: {whose}"
            )
        fitted = self.calibration
        if fitted.note:
            self.say(fitted.note)
        else:
            self.say(
                f"probabilities: temperature {fitted.temperature:.2f}, intercept {fitted.bias:.2f}; "
                f"{self.selection.split} loss {fitted.loss_before:.4f} -> {fitted.loss_after:.4f}"
            )

    def _observe(self, saved: dict[str, Any] | None) -> None:
        self.say = functools.partial(self.bar.console.print, soft_wrap=True, markup=False, highlight=False)
        self.alarms = Alarms(self.say, falls=not self.assembly.wrapper.hardest)
        if saved:
            self.alarms.restore(saved["alarms"])
        self.observer = Observer(
            self.trainer,
            self.assembly.optimizer,
            self.history,
            self.probe,
            log_steps=self.settings.log_steps,
            traced=self.settings.profile,
            folder=self.out_dir,
            total=self.total,
            active=self.ranks.first,
            alarms=self.alarms,
            say=self.say,
        )
        self.assembly.pipeline.before_update = self.observer.before_update

    def _resume(self) -> dict[str, Any] | None:
        """Load the newest checkpoint; returns its state, None without one."""
        loaded = self.checkpoints.load(self.assembly.model, self.assembly.optimizer)
        if loaded is None:
            return None
        state, rank_states = loaded
        self.refresh.restored()
        self.selection.restore(state["selection"])
        self.start, self.calibration = state["start"], Calibration(**state["calibration"])
        self.share, self.base_epoch, self._kept_after = state["share"], *state["base"]
        self.trainer.restore(
            state["step"],
            state["epoch"],
            None if state["whole_epoch"] else rank_states,
            same_ranks=state["ranks"] == self.ranks.world_size,
        )
        return state

    def _after_step(self) -> None:
        step, interval = self.trainer.step, self.settings.checkpoint_steps
        self.bar.update(self.task, completed=step)
        self.observer.after_step(self.selection.epoch + 1)
        if self.trainer.stopping:
            self._save_and_stop()
        # After an epoch, evaluation comes first.
        if interval and step % interval == 0 and step % len(self.rows):
            self._save(best=False, rank_state=self.trainer.state(), whole_epoch=False)

    def _save(self, best: bool, rank_state: dict[str, Any], whole_epoch: bool) -> None:
        state = {"run": self.fingerprint, "step": self.trainer.step, "epoch": self.selection.epoch}
        state |= {"whole_epoch": whole_epoch, "selection": jsonable(self.selection.state())}
        state |= {"table_updates": self.trainer.step * self.settings.accumulate}
        state |= jsonable({"start": self.start, "calibration": self.calibration, "share": self.share})
        state |= {"base": [self.base_epoch, self._kept_after]}
        state |= {"alarms": jsonable(self.alarms.state())}
        self.checkpoints.save(self.assembly.model, self.assembly.optimizer, state, rank_state, best)

    def _save_and_stop(self) -> NoReturn:
        said = "before the first step; the same command starts over"
        if self.trainer.step:
            self._save(best=False, rank_state=self.trainer.state(), whole_epoch=False)
            self.checkpoints.wait()
            said = f"saved step {self.trainer.step} of {self.total}; the same command goes on from here"
        if self.ranks.first:
            print(f"{self.out_dir}: stopped; {said}", file=sys.stderr)
        raise Stopped


def _write_best(out_dir: Path, protocol: str, selection: Selection) -> None:
    best: dict[str, Any] = {"epoch": selection.best_epoch, "metrics": selection.best}
    best |= {"protocol": protocol, "split": selection.split, "rule": selection.rule}
    write_text_atomic(out_dir / "best.json", json.dumps(jsonable(best), indent=2) + "\n")
