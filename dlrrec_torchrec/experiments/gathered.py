"""The results of an experiment: every cell's values, and the differences that its contrasts ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dlrrec_torchrec.evaluation.intervals import DRAWS, Gap, Interval, auc_gap, pooled_difference, ratio_gap
from dlrrec_torchrec.experiments.cells import Job, jobs
from dlrrec_torchrec.experiments.definitions import ANY, Contrast, Experiment
from dlrrec_torchrec.experiments.measures import measured_values
from dlrrec_torchrec.metrics import row_losses, sigmoid
from dlrrec_torchrec.store.manifest import Manifest

Levels = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        levels: factor -> level.
        published: metric -> the papers' number.
        values: metric of `measures.METRICS` -> value of each seed that is measured; None: undefined.
        folders: seed -> what was measured of it.
        rows, positives: test rows and share of positives, means of the seeds; NaN without any.
    """

    levels: dict[str, str]
    published: Mapping[str, float]
    values: dict[str, list[float | None]]
    folders: dict[int, Path]
    rows: float
    positives: float

    def mean(self, metric: str) -> float:
        """NaN where no seed has a value."""
        return float(np.mean(found)) if len(found := self.finite(metric)) else np.nan

    def deviation(self, metric: str) -> float:
        """Standard deviation of the seeds (n - 1); NaN with less than two."""
        found = self.finite(metric)
        return float(np.std(found, ddof=1)) if len(found) > 1 else np.nan

    def finite(self, metric: str) -> np.ndarray:
        """The seeds' values that are numbers."""
        found = [value for value in self.values.get(metric, []) if value is not None]
        return np.array([value for value in found if np.isfinite(value)])


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of a cell less that of the cell that it is compared with.

    Attributes:
        factor, level, base: what differs, as "BCE + contrastive" less "BCE".
        levels: of the first cell.
        metric: of `measures.METRICS`.
        seeds: the difference of each seed that both have.
        interval: of their mean, over users.
    """

    factor: str
    level: str
    base: str
    levels: dict[str, str]
    metric: str
    seeds: list[float]
    interval: Interval

    @property
    def mean(self) -> float:
        return self.interval.difference

    @property
    def deviation(self) -> float:
        """Of the seeds' differences (n - 1); NaN with less than two."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else np.nan

    @property
    def verdict(self) -> str:
        """ "higher" or "lower" where the interval excludes zero, else "level"."""
        return {"better": "higher", "worse": "lower", "level": "level"}[self.interval.verdict]


@dataclasses.dataclass(frozen=True)
class Results:
    """Outcomes in the order of the table (cells of several protocols side by side), differences, and the
    cells that are not measured: title -> why."""

    experiment: Experiment
    outcomes: list[Outcome]
    differences: list[Difference]
    missing: dict[str, str]


def gather(
    experiment: Experiment, out: Path, failed: Mapping[str, str] | None = None, draws: int = DRAWS
) -> Results:
    """Read what is measured under `out`.

    Args:
        failed: title of a cell -> why it is not there.
        draws: of users, for the intervals.
    """
    by_cell: dict[tuple[str, str], list[Job]] = {}
    for job in jobs(experiment, out):
        by_cell.setdefault((job.group, job.cell), []).append(job)
    missing, outcomes = {}, []
    for group, cell in experiment.cells():
        done = {}
        for number, job in enumerate(by_cell[group.name, cell.name]):
            if job.done():
                done[number] = job.measured
            else:
                missing[job.title] = (failed or {}).get(job.title, "not trained yet")
        outcomes.append(_outcome(group.levels_of(cell), cell.published, done))
    order = {}
    for outcome in outcomes:
        order.setdefault(_beside(outcome), len(order))
    outcomes.sort(key=lambda outcome: order[_beside(outcome)])  # stable: protocols keep their order
    return Results(experiment, outcomes, list(_differences(experiment, outcomes, draws)), missing)


def pairs(contrast: Contrast, outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """(cell, the one that it is compared with) of a contrast."""
    factor = contrast.factor
    for outcome in outcomes:
        if outcome.levels.get(factor) in (None, contrast.base):
            continue
        others = outcome.levels.keys() - {factor}
        for base in outcomes:
            if base.levels.get(factor) == contrast.base and all(
                base.levels.get(name) in (ANY, outcome.levels[name]) for name in others
            ):
                yield outcome, base


def _beside(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    return tuple((name, level) for name, level in sorted(outcome.levels.items()) if name != "protocol")


def _outcome(levels: dict[str, str], published: Mapping[str, float], done: dict[int, Path]) -> Outcome:
    manifests = [Manifest.read(folder) for folder in done.values()]
    values: dict[str, list[float | None]] = {}
    for manifest in manifests:
        for name, value in measured_values(manifest.facts).items():
            values.setdefault(name, []).append(value)
    rows = float(np.mean([m.rows["test"] for m in manifests])) if manifests else np.nan
    positives = float(np.mean([m.facts["positives"] for m in manifests])) if manifests else np.nan
    return Outcome(levels, published, values, done, rows, positives)


def _differences(experiment: Experiment, outcomes: Sequence[Outcome], draws: int) -> Iterator[Difference]:
    read: dict[Path, dict[str, Any]] = {}
    told: set[frozenset[int]] = set()  # a pair of cells is compared once, by the first contrast that has it
    for contrast in experiment.contrasts:
        for outcome, base in pairs(contrast, outcomes):
            if (pair := frozenset((id(outcome), id(base)))) in told:
                continue
            told.add(pair)
            common = [seed for seed in outcome.folders if seed in base.folders]
            for metric in experiment.compared:
                repeats = [
                    (_values(outcome.folders[seed], metric, read), _values(base.folders[seed], metric, read))
                    for seed in common
                ]
                repeats = [(one, other) for one, other in repeats if one and other]
                if not repeats:
                    continue
                if not (contrast.other_rows or all(_same_rows(one, other) for one, other in repeats)):
                    continue
                seeds, interval = pooled(metric, repeats, draws)
                level = outcome.levels[contrast.factor]
                yield Difference(
                    contrast.factor, level, contrast.base, outcome.levels, metric, seeds, interval
                )


def pooled(
    metric: str, repeats: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]], draws: int
) -> tuple[list[float], Interval]:
    """The difference of each repeat, and the interval of their mean.

    A user is drawn for both cells at once. Where they were measured on the same rows, these are compared row
    by row; else the cells' metrics are, each of its own rows.

    Args:
        metric: "auc", "accuracy", "fpr", "loss", or one of lists, as "content_recall@20".
        repeats: two cells: user, and item, label [N] (0 or 1) and logit [N], or of lists value [N].
    """
    names = np.unique(np.concatenate([cell["user"] for pair in repeats for cell in pair]))
    gaps = [_gap(metric, one, other, names) for one, other in repeats]
    everyone = np.ones(len(names), np.int64)
    return [gap(everyone) for gap in gaps], pooled_difference(gaps, len(names), draws)


def _gap(
    metric: str, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], names: np.ndarray
) -> Gap:
    """`names`: of all users, in order."""
    if not _same_rows(first, second):
        own = [_less(metric, cell, None, names) for cell in (first, second)]
        return lambda times: own[0](times) - own[1](times)
    return _less(metric, first, second, names)


def _less(
    metric: str,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray] | None,
    names: np.ndarray,
) -> Gap:
    """The metric of a cell less that of another one on the same rows, or (None) less a constant."""
    user, users = np.searchsorted(names, first["user"]), len(names)
    if "value" in first:
        other = np.zeros(len(user)) if second is None else second["value"]
        return ratio_gap(first["value"], other, np.ones(len(user), bool), user, users)
    label = first["label"] > 0.5
    if metric == "auc":  # that of scores that are all equal is a half
        other = np.zeros(len(user)) if second is None else second["logit"]
        return auc_gap(label, first["logit"], other, user)
    counted = ~label if metric == "fpr" else np.ones(len(label), bool)
    values = _of_row(metric, label, first["logit"])
    other = np.zeros(len(user)) if second is None else _of_row(metric, label, second["logit"])
    return ratio_gap(values, other, counted, user, users)


def _of_row(metric: str, label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """What a row adds to a metric that is a mean over rows (of negatives, for the false-positive rate)."""
    if metric == "accuracy":
        return (logit >= 0) == label
    if metric == "fpr":
        return logit >= 0
    if metric == "loss":
        return row_losses(label, sigmoid(logit))
    raise ValueError(f"'{metric}' has no value of a row")


def _same_rows(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether two cells were measured on the same test rows, which cells on other splits are not."""
    return all(np.array_equal(one[name], other[name]) for name in ("user", "item", "label") if name in one)


def _values(folder: Path, metric: str, read: dict[Path, dict[str, Any]]) -> dict[str, np.ndarray] | None:
    """The rows (or users) of a cell; None where its lists were not measured."""
    lists = metric.startswith("content_")
    path = folder / ("lists.parquet" if lists else "predictions.parquet")
    if path not in read:
        read[path] = pq.read_table(path).to_pydict() if path.exists() else {}
        read[path] = {name: np.array(column) for name, column in read[path].items()}
    if not read[path]:
        return None
    if lists:
        return {"user": read[path]["user"], "value": read[path][metric.removeprefix("content_")]}
    return read[path]
