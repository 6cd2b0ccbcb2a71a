"""Stage `train`: shards -> a trained model. One path for one process and for N ranks.

`dlrrec train` in one process needs no launcher, and `breakpoint()` works; `torchrun --nproc_per_node N -m
dlrrec_torchrec train` runs the same function on N ranks, on the same global batches. Everything random
follows from the seed, the number of the epoch or step, and the generators' state in the checkpoint, so that a
training that was killed goes on from its last checkpoint as the same run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic, chosen_text
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import ShardLoader
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.distributed.lockstep import any_rank
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import Ranks, process_group
from dlrrec_torchrec.models.calibration import Calibration, fit_calibration
from dlrrec_torchrec.models.spec import batch_spec, data_size, with_permuted, with_rows
from dlrrec_torchrec.models.wide import WidePath
from dlrrec_torchrec.models.wrapper import TERMS
from dlrrec_torchrec.sharding.apply import describe_plan, save_plan
from dlrrec_torchrec.store.folders import check_output, write_text_atomic
from dlrrec_torchrec.store.manifest import Manifest, jsonable, timed
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.alarms import Alarms
from dlrrec_torchrec.training.assemble import Assembly, assemble, rated, rows_per_rank, schedule
from dlrrec_torchrec.training.checkpoint import Checkpoints, clear_unless_resumed
from dlrrec_torchrec.training.history import History
from dlrrec_torchrec.training.list_metrics import ListMetrics
from dlrrec_torchrec.training.observe import Observer
from dlrrec_torchrec.training.optimizers import Schedule, initialize
from dlrrec_torchrec.training.probe import Probe, open_probe
from dlrrec_torchrec.training.rows import open_rows
from dlrrec_torchrec.training.selection import Selection, selection_for
from dlrrec_torchrec.training.signals import Stopped, stop_requests
from dlrrec_torchrec.training.terminal import progress_bar, warn_of_restarts
from dlrrec_torchrec.training.trainer import Trainer
from dlrrec_torchrec.training.warm_start import warm_start

# Settings that do not change the result.
_FREE = ("workers", "resume", "checkpoint_steps", "keep_checkpoints", "background_checkpoints")
_FREE += ("log_steps", "profile")

NOT_LEFT_OUT = (
    "vectors from tables: those of a training row know its own review (not leave-one-out), so metrics of "
    "training rows are too good; validation and test rows are not affected"
)
UNRATED = "all training rows are positive: the rating is not trained, and the list head learns alone"


def train(
    model: ModelConfig,
    contrastive: ContrastiveConfig,
    train: TrainConfig,
    protocol: str,
    shards_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    lists: ListConfig | None = None,
) -> Manifest:
    """Train a model on `shards_dir`/train and keep its best epoch.

    Settings that are open follow from the size of the training rows (`config.automatic`); the manifest has
    all of them, and as `chosen` those.

    `out_dir` gets `unfinished.json` (first: whose folder this is), `plan.json`, `checkpoints/`,
    `metrics.jsonl`, `steps.jsonl`, `tensorboard/`, `best.json` (epoch, metrics, protocol, split, rule) and at
    the end `manifest.json`, with the fact `list`: the share `mix` of the rating logit in its lists. If it
    holds an interrupted training with these settings, that one goes on. Under a launcher, call it on every
    rank.

    Args:
        lists: the list head; None, or weight 0: without.

    Raises:
        DataError: `out_dir` holds something other than a training; shards that cannot be used (file, column,
            row), settings that do not fit (flag), a loss that is not a number, a checkpoint that cannot
            be written; on all ranks.
        Stopped: any rank got SIGTERM or SIGINT; all saved after the same step and leave with exit status 75.
    """
    lists = lists if lists and lists.weight else None
    check_settings(model, contrastive, train, lists or ListConfig(weight=0.0), protocol=protocol)
    shards = Manifest.read(shards_dir)
    facts = ShardFacts.of(shards, shards_dir)
    model, train, chosen = automatic(model, train, data_size(facts))
    check_settings(model, contrastive, train, protocol=protocol)  # the chosen ones beside the given ones
    settings = jsonable({"model": model, "contrastive": contrastive, "list": lists, "train": train})
    for name in _FREE:
        del settings["train"][name]
    inputs = {"shards": shards.fingerprint}
    manifest = Manifest("train", settings | {"protocol": protocol}, inputs)
    if previous := manifest.current(out_dir):
        return previous
    check_output(out_dir, manifest.stage)

    warn_of_restarts()
    out_dir = Path(out_dir)
    spec = batch_spec(model, facts, contrastive, train.seed, lists)
    with quiet(), process_group(train.device) as ranks, timed(manifest):
        selection = selection_for(protocol, train.select, train.patience, lists is not None)
        entities = None
        if lists is not None:
            entities = load_entities(shards_dir, spec.in_rows)
            spec = with_rows(spec, lists, entities.items.category, split_pairs(shards_dir, "train"))
        if contrastive.permuted:
            spec = with_permuted(spec, shards_dir, train.seed)
        share = rows_per_rank(train, ranks)
        rows, held_out, corpus = open_rows(shards_dir, spec, train, share, selection.split, ranks)
        assembly = assemble(
            model,
            contrastive,
            train,
            spec,
            ranks,
            corpus=corpus,
            shards_dir=shards_dir,
            lists=lists,
            item_counts=None if entities is None else torch.tensor(entities.items.count),
        )

        clear_unless_resumed(out_dir, manifest.fingerprint, train.resume, ranks)
        if ranks.first:
            save_plan(assembly.plan, out_dir)
            if chosen:
                print(chosen_text(chosen, data_size(facts)), file=sys.stderr)
            if spec.in_tables:
                print(NOT_LEFT_OUT, file=sys.stderr)
            if not rated(spec):
                print(UNRATED, file=sys.stderr)
        list_metrics = None
        if lists is not None:
            list_metrics = ListMetrics(
                shards_dir, selection.split, spec, entities, ranks, lists.val_users, train.seed
            )
        with stop_requests() as stop_requested:
            run = _Run(
                shards_dir=Path(shards_dir),
                out_dir=out_dir,
                fingerprint=manifest.fingerprint,
                assembly=assembly,
                ranks=ranks,
                rows=rows,
                held_out=held_out,
                selection=selection,
                settings=train,
                schedule=functools.partial(schedule, train, lists=lists),
                list_metrics=list_metrics,
                rated=rated(spec),
                protocol=protocol,
                stop_requested=stop_requested,
                probe=open_probe(shards_dir, assembly.plain) if ranks.first else None,
            )
            run.to_the_end()
            # Too late for this training, but the next stage does not have to begin.
            stopped = any_rank(stop_requested())
        manifest.rows = {"train": rows.rows, selection.split: held_out.rows}
        manifest.facts = jsonable(
            {
                "epochs": selection.epoch,
                "best_epoch": selection.best_epoch,
                "split": selection.split,
                "best": selection.best,
                "start": run.start,
                "calibration": run.calibration,
                "alarms": run.alarms.listed(),
                "ranks": ranks.world_size,
                "device": ranks.device.type,
                "tables": describe_plan(assembly.model),
                "leave_one_out": not spec.in_tables,
                "chosen": chosen,
                "list": run.mix,
            }
        )
    if ranks.first:
        manifest.write(out_dir)
    if stopped:
        raise Stopped
    return manifest


@dataclasses.dataclass
class _Run:
    """A training under way: its epochs, and what is written as it goes.

    Attributes:
        start: the facts of a wide path's start (`warm_start`); None without one.
        calibration: of the best epoch so far.
        alarms: of this training so far.
    """

    shards_dir: Path
    out_dir: Path
    fingerprint: str
    assembly: Assembly
    ranks: Ranks
    rows: ShardLoader
    held_out: ShardLoader
    selection: Selection
    settings: TrainConfig
    schedule: Callable[[int], Schedule]  # of so many steps
    list_metrics: ListMetrics | None
    rated: bool
    protocol: str
    stop_requested: Callable[[], bool]
    probe: Probe | None  # on rank 0
    start: dict[str, Any] | None = None
    calibration: Calibration = Calibration()
    mix: dict[str, float] | None = None  # of lists, at the end

    def to_the_end(self) -> None:
        """From the last checkpoint, or the start, to the last epoch. Raises Stopped on a request to stop."""
        settings, selection, first = self.settings, self.selection, self.ranks.first
        self.total = settings.epochs * len(self.rows)
        self.trainer = Trainer(
            self.assembly.model,
            self.assembly.optimizer,
            self.assembly.pipeline,
            self.ranks,
            schedule=self.schedule(self.total),
            seed=settings.seed,
            stop_requested=self.stop_requested,
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
                while selection.epoch < settings.epochs and not selection.stop:
                    epoch = self.trainer.run_epoch(self.rows, selection.epoch + 1, self._after_step)
                    self._end_epoch(*epoch)
                self.observer.close()
                if first:
                    self._last_words()
            if self.list_metrics is not None:
                self.mix = {"mix": 0.0}
                if self.rated and self.list_metrics.users:
                    self.checkpoints.load_best(self.assembly.model, self.assembly.optimizer)
                    self.mix = self.list_metrics.best_mix(self.assembly.model)

    def _begin(self, wide: WidePath) -> None:
        """Epoch 0: the logistic regression that the wide path starts as is a candidate like every epoch."""
        held_out = self.selection.split if self.protocol == "strict" else None
        weights = self.assembly.wrapper.class_weights.tolist()
        self.start = warm_start(wide, self.shards_dir, weights, held_out, self.settings.seed, self.ranks)
        initialize(self.assembly.optimizer)
        self._end_epoch({"epoch": 0, "step": 0}, {})

    def _end_epoch(self, record: dict[str, Any], steps: dict[str, np.ndarray]) -> None:
        """Evaluate, select, record and save, after the steps of an epoch."""
        selection, first = self.selection, self.ranks.first
        metrics = self.trainer.evaluate(self.held_out)
        if metrics is None:
            self._save_and_stop()
        if self.list_metrics is not None:
            metrics |= self.list_metrics.measure(self.assembly.model)
        best = selection.update(record["epoch"], metrics)
        if best:
            self._calibrate()
        if first:
            terms = [TERMS[side] for side in self.assembly.wrapper.sides]
            self.alarms.after_epoch(
                record, steps, terms, self.trainer.effects, self.trainer.scored, selection.split
            )
        record = record | metrics | self.trainer.effects | self.observer.probed()
        self.history.add(record | {"split": selection.split, "best": best}, steps)
        if best and first:
            _write_best(self.out_dir, self.protocol, selection)
        self._save(best=best, rank_state={}, whole_epoch=True)
        shown = f"epoch {record['epoch']}: {selection.split} AUC {metrics['auc']:.4f}"
        if self.list_metrics is not None:
            shown += f", NDCG@20 {metrics['ndcg@20']:.4f}, Recall@20 {metrics['recall@20']:.4f}"
        self.bar.update(self.task, description=shown)
        if first and self.bar.disable:  # a log of a job
            print(shown, file=sys.stderr)

    def _calibrate(self) -> None:
        """Fit the probabilities of the best epoch to the validation rows."""
        calibration = None
        if self.protocol != "strict":
            calibration = Calibration(note="probabilities are not calibrated: there are no validation rows")
        elif self.ranks.first:
            calibration = fit_calibration(*self.trainer.scored)
        self.calibration = self.ranks.share(calibration)

    def _last_words(self) -> None:
        """What is to be known of the model that is kept."""
        if self.start is not None and self.selection.best_epoch == 0:
            self.say(
                f"no epoch is better by {self.selection.split} {self.selection.rule} than the logistic "
                "regression that training starts as: it is the model that is kept"
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
        self.alarms = Alarms(self.say)
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
        self.selection.restore(state["selection"])
        self.start, self.calibration = state["start"], Calibration(**state["calibration"])
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
        state |= jsonable({"start": self.start, "calibration": self.calibration})
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
