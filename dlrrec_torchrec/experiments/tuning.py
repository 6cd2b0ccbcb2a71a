"""Settings that validation prefers: trainings on existing shards, with values that optuna draws (TPE).

The first trial is the configuration as it is. Every trial is a training as `dlrrec train` does it, on the
same seed, and is worth what selected its best epoch: test rows are never read. Trials that lag behind the
median of the others after as many epochs are given up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.config import RunConfig, for_seed, variant
from dlrrec_torchrec.config.automatic import DataSize, automatic
from dlrrec_torchrec.config.read import with_values
from dlrrec_torchrec.distributed.launcher import is_launched
from dlrrec_torchrec.experiments.search_space import search_space
from dlrrec_torchrec.experiments.studies import claimed, import_optuna, next_trial, open_study
from dlrrec_torchrec.experiments.tuned import Tuned, describe_trial, records, write_best
from dlrrec_torchrec.experiments.validation_gain import validation_gain, validation_scores
from dlrrec_torchrec.metrics import selection_key
from dlrrec_torchrec.models.spec import data_size
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import (
    MANIFEST,
    UNFINISHED,
    check_output,
    remove_own,
    stage_of,
    write_text_atomic,
)
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.selection import Selection, selection_for
from dlrrec_torchrec.training.signals import Stopped
from dlrrec_torchrec.training.stage import FREE, train

TUNE = "tune"  # what the folder's manifest says
MORE_EPOCHS = 2  # times those chosen by the size of the data: `train.patience` ends a trial before
_FAILURES = 5  # in a row, after which more trials would fail too
_LOG = "trainings.log"


@dataclasses.dataclass(frozen=True)
class Budget:
    """When to stop: after the trial in which one of them is used up. Both count what earlier calls did."""

    minutes: float | None = None  # of training
    trials: int | None = None  # that ended, the first one included

    def left(self, study: Any) -> bool:
        """Whether there is some for another trial."""
        ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in ended)
        enough_time = self.minutes is None or spent < 60 * self.minutes
        return enough_time and (self.trials is None or len(ended) < self.trials)


def tune(
    config: RunConfig,
    name: str,
    paths: RunPaths,
    budget: Budget,
    *,
    number: int = 0,
    asked: Iterable[str] = (),
    say: Callable[[str], Any] = print,
) -> Tuned:
    """Search settings for a variant until the budget is used up; `paths.tune` gets what is found.

    That is `best.yaml` (a configuration), `trials.csv`, `trials.journal` (optuna's), `trainings.log` (what
    the trainings said) and a manifest. The same call goes on from the trials that are there, also from within
    one that was killed; other shards, settings or spaces begin a study of their own.

    Args:
        config: of the run.
        name: of the variant.
        paths: of the seed `number`.
        asked: of `search_space`.
        say: prints a line.

    Raises:
        DataError: no budget, no shards, optuna is missing, another process works in the folder, a space that
            cannot be, a first trial that fails, or validation rows by which nothing can be told.
        Stopped: SIGTERM or Ctrl-C within a trial; what was found until then is written.
    """
    if budget.minutes is None and budget.trials is None:
        raise DataError("tune: give a budget: --minutes, --trials, or both")
    if is_launched():
        raise DataError("tune: works in one process; call `dlrrec tune` without a launcher")
    if config.protocol != "strict":
        raise DataError(
            f"tune: protocol (--protocol): '{config.protocol}' selects by test rows, which nothing must be "
            "tuned by; tune under --protocol strict"
        )
    if not (paths.shards / MANIFEST).exists():
        raise DataError(
            f"{paths.shards}: no shards to train on; `dlrrec run --until prepare --run-dir {paths.shared}` "
            "makes them"
        )
    import_optuna()
    tuning = Tuning(config, variant(for_seed(config, number), name), name, paths, asked, say)
    check_output(paths.tune, TUNE)
    if stage_of(paths.tune) is None:
        write_text_atomic(paths.tune / UNFINISHED, json.dumps({"stage": TUNE}) + "\n")
    with claimed(paths.tune):
        return tuning.within(budget)


class Tuning:
    """A tuning under way; see `tune`.

    Args:
        config: of the run, which the best configuration is made of.
        tuned: the same as the seed and the variant change it, which is trained.
    """

    def __init__(
        self,
        config: RunConfig,
        tuned: RunConfig,
        name: str,
        paths: RunPaths,
        asked: Iterable[str],
        say: Callable[[str], Any],
    ) -> None:
        self.config, self.tuned, self.name, self.paths, self.say = config, tuned, name, paths, say
        shards = Manifest.read(paths.shards)
        size = data_size(ShardFacts.of(shards, paths.shards))
        self.space = search_space(tuned, size, asked)
        self.more_epochs = self._more_epochs(size)
        settings = jsonable({key: getattr(tuned, key) for key in ("model", "contrastive", "list", "train")})
        for key in FREE:
            del settings["train"][key]
        settings |= {"variant": name, "space": self.space.described()}
        self.manifest = Manifest(TUNE, settings, {"shards": shards.fingerprint})
        lists = tuned.list.weight > 0
        self.rule = selection_for(tuned.protocol, tuned.train.select, tuned.train.patience, lists).rule

    def within(self, budget: Budget) -> Tuned:
        """Trials until the budget is used up."""
        folder = self.paths.tune
        self.study, others = open_study(folder, self.manifest.fingerprint)
        self._announce(others)
        if not self.study.get_trials(deepcopy=False):
            own = {name: self.space.searched[name].encode(value) for name, value in self.space.own.items()}
            self.study.enqueue_trial(own)
        failures = 0
        try:
            while budget.left(self.study):
                error = self._one()
                write_best(self._found(), self.config)
                failures = 0 if error is None else failures + 1
                if failures == _FAILURES:
                    raise DataError(f"tune: {_FAILURES} trials in a row failed, the last one: {error}")
        except (Stopped, KeyboardInterrupt) as stop:
            if records(self.study):
                self.say("\n".join(self._result().lines()))
            if isinstance(stop, Stopped):
                self.say("stopped; the same command goes on from here")
            raise
        return self._result()

    def _announce(self, others: int) -> None:
        named = ", ".join(f"{name} {values}" for name, values in self.space.searched.items())
        self.say(f"searched: {named}")
        if self.space.fixed:
            fixed = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.space.fixed.items())
            self.say(f"fixed by the configuration, so not searched (--search would): {fixed}")
        self.say(f"what the trainings say: {self.paths.tune / _LOG}")
        if ended := len(records(self.study)):
            self.say(f"goes on from {ended} trial{'s' * (ended > 1)} of earlier calls")
        elif others:
            self.say(
                f"a new study: the {others} trial{'s' * (others > 1)} in {self.paths.tune} are of other "
                "shards, settings or search spaces (they are kept, and go on when these are asked for again)"
            )

    def _one(self) -> str | None:
        """One trial, a new one or the one that was interrupted; why it failed."""
        optuna = import_optuna()
        trial = next_trial(self.study, self.tuned.train.seed)
        drawn = {name: values.suggest(trial, name) for name, values in self.space.searched.items()}
        values = drawn | self.more_epochs if trial.number else self.space.own
        trial.set_user_attr("values", values)
        out = self.paths.tune / f"trial-{trial.number}"
        error, start, before = None, time.monotonic(), trial.user_attrs.get("seconds", 0.0)
        try:
            outcome = {"values": self._trained(trial, values, out)}
        except optuna.TrialPruned:
            outcome = {"state": optuna.trial.TrialState.PRUNED}
        except DataError as problem:
            if not trial.number:
                raise
            error, outcome = str(problem), {"state": optuna.trial.TrialState.FAIL}
            trial.set_user_attr("error", error)
        finally:  # interrupted, it goes on in the next call
            trial.set_user_attr("seconds", before + time.monotonic() - start)
        self.study.tell(trial, **outcome)
        remove_own(out, "train")
        self.say(describe_trial(records(self.study), self.rule))
        return error

    def _trained(self, trial: Any, values: dict[str, Any], out: Path) -> float:
        """What a training with these values is worth. The first trial's are the configuration's own."""
        optuna = import_optuna()
        config = with_values(self.tuned, values) if trial.number else self.tuned
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def after_epoch(selection: Selection) -> None:
            if selection.epoch not in reported:
                trial.report(selection_key(self.rule, selection.best)[0], selection.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        with open(self.paths.tune / _LOG, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            print(f"trial {trial.number}: {json.dumps(values)}", file=log, flush=True)
            trained = train(
                config.model,
                config.contrastive,
                config.train,
                config.protocol,
                self.paths.shards,
                out,
                config.list,
                after_epoch=after_epoch,
            )
            value = selection_key(self.rule, trained.facts["best"])[0]
            if not math.isfinite(value):
                raise DataError(
                    f"tune: the {self.rule} of the validation rows is undefined, so nothing can be told by "
                    f"it; `dlrrec split --val-share 0.2 --run-dir {self.paths.shared}` and the stages after "
                    "it make more of them"
                )
            self._keep_scores(trial.number, value, out)
        trial.set_user_attr("epoch", trained.facts["best_epoch"])
        trial.set_user_attr("metrics", trained.facts["best"])
        return value

    def _keep_scores(self, number: int, value: float, out: Path) -> None:
        """Of the first and the best trial, what each row and user got: the gain's interval needs it."""
        done = [t for t in self.study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
        if number and done and value <= max(trial.value for trial in done):
            return
        tuned = self.tuned
        scores = validation_scores(
            out, self.paths.shards, self.rule, tuned.list.val_users, tuned.train.seed, tuned.train.device
        )
        path = self._scores_file(number)
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **scores)

    def _scores_file(self, number: int) -> Path:
        return self.paths.tune / "scores" / f"{self.manifest.fingerprint}-{number}.npz"

    def _more_epochs(self, size: DataSize) -> dict[str, int]:
        """Other settings may need more epochs than those that were chosen by the size of the data."""
        open_ = self.tuned.train.epochs is None and "train.epochs" not in self.space.searched
        if not (open_ and self.tuned.train.patience and self.tuned.train.schedule == "constant"):
            return {}  # a schedule goes by the number of epochs, so they are not merely an end
        _, train, _ = automatic(self.tuned.model, self.tuned.train, size)
        return {"train.epochs": MORE_EPOCHS * train.epochs}

    def _found(self) -> Tuned:
        """What was found so far."""
        trials = records(self.study)
        done = [trial for trial in trials if trial.value is not None]
        best = max(done, key=lambda trial: (trial.value, -trial.number))
        return Tuned(self.name, self.rule, trials, done[0], best, None, self.paths)

    def _result(self) -> Tuned:
        """What was found, with the gain; all of it is written."""
        found = self._found()
        files = self._scores_file(found.best.number), self._scores_file(0)
        if found.best.number:
            best, first = (dict(np.load(file)) for file in files)
            gain = validation_gain(self.rule, self.paths.shards, best, first)
            found = dataclasses.replace(found, gain=gain)
        for stale in files[0].parent.glob(f"{self.manifest.fingerprint}-*.npz"):
            if stale not in files:
                stale.unlink()
        write_best(found, self.config)
        self.manifest.rows = {"trials": len(found.trials)}
        self.manifest.seconds = round(sum(trial.seconds for trial in found.trials), 3)
        facts = {"variant": self.name, "rule": self.rule, "first": found.first, "best": found.best}
        self.manifest.facts = jsonable(facts | {"gain": found.gain})
        self.manifest.write(self.paths.tune)
        (self.paths.tune / UNFINISHED).unlink(missing_ok=True)
        return found
