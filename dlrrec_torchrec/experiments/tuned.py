"""What `dlrrec tune` found: the trials, the best configuration, and whether its gain may be chance."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.read import with_values
from dlrrec_torchrec.evaluation.intervals import Interval
from dlrrec_torchrec.serving.choose import RULES
from dlrrec_torchrec.store.folders import write_text_atomic
from dlrrec_torchrec.store.manifest import jsonable
from dlrrec_torchrec.store.paths import RunPaths

BEST = "best.yaml"
TABLE = "trials.csv"
_METRICS = ("auc", "loss", "recall@20", "ndcg@20")  # of a trial's best epoch, in the table


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that ended.

    Attributes:
        state: "complete", "pruned" (given up) or "fail".
        value: what it is worth, higher is better; None unless it is complete.
        values: setting -> value; of the first trial, the configuration's own.
        epoch, metrics: of its best epoch.
        error: why it failed.
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    seconds: float
    epoch: int | None
    metrics: dict[str, float]
    error: str


def records(study: Any) -> list[Trial]:
    """The trials of an optuna study that ended."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return [
        Trial(
            number=trial.number,
            state=trial.state.name.lower(),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            values=trial.user_attrs["values"],
            seconds=trial.user_attrs["seconds"],
            epoch=trial.user_attrs.get("epoch"),
            metrics=trial.user_attrs.get("metrics", {}),
            error=trial.user_attrs.get("error", ""),
        )
        for trial in ended
    ]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The result of a tuning.

    Attributes:
        variant, rule: what was tuned, and by what (`metrics.selection_key`).
        trials: those that ended; `first` is the configuration as it was, `best` the best one.
        gain: of the best over the first on the validation rows; None where they are the same.
    """

    variant: str
    rule: str
    trials: list[Trial]
    first: Trial
    best: Trial
    gain: Interval | None
    paths: RunPaths

    def lines(self) -> list[str]:
        """The result in words."""
        pruned, failed = (sum(t.state == state for t in self.trials) for state in ("pruned", "fail"))
        others = "".join(f", {n} {word}" for n, word in ((pruned, "given up"), (failed, "failed")) if n)
        minutes = sum(trial.seconds for trial in self.trials) / 60
        count = f"{len(self.trials)} trial{'s' * (len(self.trials) > 1)}{others}"
        said = [
            f"\n'{self.variant}' by validation {RULES.get(self.rule, self.rule)}: {count}, "
            f"{minutes:.1f} minutes",
            self._line("as configured", self.first),
        ]
        if self.gain is None:
            return [*said, "no trial is better: the configuration stays as it is", self._way()]
        said.append(self._line(f"best, trial {self.best.number}", self.best))
        low, high = self.gain.low, self.gain.high
        said.append(
            f"{'gain':<16} {self.gain.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (validation "
            "users drawn with replacement)"
        )
        tried = f"the best of {len(self.trials)} by the same rows: expect less on others"
        if not low > 0:
            said.append(f"caution: the interval holds zero, so the gain may be chance; and it is {tried}")
        else:
            said.append(f"note: it is {tried}")
        own = self.first.values
        changed = [
            f"{name} {_text(own[name])} -> {_text(value)}" if name in own else f"{name} -> {_text(value)}"
            for name, value in self.best.values.items()
            if name not in own or own[name] != value
        ]
        return [*said, "changed: " + ", ".join(changed), self._way()]

    def _line(self, title: str, trial: Trial) -> str:
        metrics = ", ".join(f"{name} {trial.metrics[name]:.4f}" for name in _METRICS if _has(trial, name))
        return f"{title:<16} {_shown(self.rule, trial.value)}  (epoch {trial.epoch}: {metrics})"

    def _way(self) -> str:
        folder = shlex.quote(str(self.paths.tune / BEST))
        return (
            f"to train with it: dlrrec run --config {folder} --run-dir {shlex.quote(str(self.paths.shared))}"
        )


def describe_trial(trials: Sequence[Trial], rule: str) -> str:
    """A line on the last one of `trials`: what it tried, what it is worth, and the best so far."""
    trial = trials[-1]
    values = ", ".join(f"{name}={_text(value)}" for name, value in trial.values.items())
    what = values if trial.number else "as configured: " + values
    worth = {"pruned": "given up", "fail": "failed"}.get(trial.state) or _shown(rule, trial.value)
    done = [other for other in trials if other.value is not None]
    best = max(done, key=lambda other: (other.value, -other.number))
    after = f"{trial.seconds:.0f} s" + (f", epoch {trial.epoch}" if trial.epoch is not None else "")
    line = f"trial {trial.number:>3}  {worth:<8} ({after})  best {_shown(rule, best.value)}"
    return f"{line} (trial {best.number})  {what}" + (f"\n           {trial.error}" if trial.error else "")


def best_configuration(config: RunConfig, variant: str, best: Trial) -> RunConfig:
    """The configuration with the best trial's values, each where its value came from: in the variant if that
    sets it, else in its section. The first trial changes nothing.
    """
    values = best.values if best.number else {}
    own = config.variants[variant] or {}
    changes = {section: dict(keys or {}) for section, keys in own.items()}
    in_sections = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        if key in changes.get(section, {}):
            changes[section][key] = value
        else:
            in_sections[name] = value
    config = with_values(config, in_sections)
    return dataclasses.replace(config, variants=config.variants | {variant: changes})


def write_best(tuned: Tuned, config: RunConfig) -> None:
    """Write best.yaml, `config` as the best trial changes it, without its defaults; and trials.csv."""
    folder = tuned.paths.tune
    body, default = jsonable(best_configuration(config, tuned.variant, tuned.best)), jsonable(RunConfig())
    changed = {
        section: _changes(values, default[section]) if section != "variants" else values
        for section, values in body.items()
        if values != default[section]
    }
    worth = f"{_shown(tuned.rule, tuned.best.value)} (as configured: {_shown(tuned.rule, tuned.first.value)})"
    head = (
        f"# Found by `dlrrec tune` for the variant '{tuned.variant}': trial {tuned.best.number} of "
        f"{len(tuned.trials)}, validation {RULES.get(tuned.rule, tuned.rule)} {worth}.\n"
    )
    write_text_atomic(folder / BEST, head + yaml.safe_dump(changed, sort_keys=False))
    write_text_atomic(folder / TABLE, _table(tuned.trials))


def _changes(values: Any, default: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {key: value for key, value in values.items() if value != default.get(key)}


def _table(trials: Sequence[Trial]) -> str:
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", "value", "epoch", "seconds", *_METRICS, *names, "error"])
    for trial in trials:
        row = [trial.number, trial.state, trial.value, trial.epoch, round(trial.seconds, 1)]
        row += [trial.metrics.get(name) for name in _METRICS]
        row += [_text(trial.values[name]) if name in trial.values else "" for name in names]
        writer.writerow([*row, trial.error])
    return stream.getvalue()


def _has(trial: Trial, name: str) -> bool:
    return trial.metrics.get(name) is not None


def _shown(rule: str, value: float) -> str:
    return f"{-value if rule == 'loss' else value:.4f}"


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
