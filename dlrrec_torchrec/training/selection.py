"""Which epoch is the best, and when to stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dlrrec_torchrec.metrics import selection_key
from dlrrec_torchrec.models.calibration import Calibration
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.training.warm_start import Given

# DLRREC section 4.2: the best model is that of the lowest false-positive rate on the test set; early stopping
# starts after 300 epochs and waits for 50.
PAPER_STOP_AFTER = 300
PAPER_PATIENCE = 50
# By the mixture an epoch may be the best only while the rating's loss is at most this share above the lowest
# so far: else lists that go on improving would be bought with a rating that over-fits.
MOST_LOSS = 0.01


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a training on all rows takes over from the one that was evaluated, as no row is held out.

    Attributes:
        fingerprint: of the evaluated training.
        epochs: its best epoch; 0: the wide path's start.
        start: what the wide path's start was fitted with (`warm_start`); None where there is none.
        calibration: of its probabilities.
        share: of the deep part beside a wide path.
        base_epoch: after which wide and residual path were kept; 0: the start.
        mix: its fact `list`, the shares of rating logit and EASE in lists; None without a list head.
        step_one_epochs: the best epoch of V0's first step; 0 where there is none.
    """

    fingerprint: str
    epochs: int
    start: Given | None
    calibration: Calibration
    share: float
    base_epoch: int
    mix: dict[str, float] | None
    step_one_epochs: int = 0

    @staticmethod
    def of(trained: Manifest) -> Evaluated:
        """From the manifest of a finished training. Raises DataError for one of an earlier version."""
        facts = trained.facts
        if "base_epoch" not in facts:
            raise DataError(
                "train: the evaluated training is of an earlier version; run `dlrrec train` and `dlrrec "
                "evaluate` again"
            )
        start = facts["start"] or {}
        given = Given(start["C"], start["profiles"]) if "C" in start else None
        calibration = Calibration.of(facts)
        fitted = facts["best_epoch"], given, calibration, facts["share"], facts["base_epoch"], facts["list"]
        of_step_one = (facts.get("step_one") or {}).get("best_epoch", 0)
        return Evaluated(trained.fingerprint, *fitted, of_step_one)


@dataclasses.dataclass
class Selection:
    """The best epoch so far by one rule. Epochs count from 1.

    Attributes:
        rule: of `metrics.selection_key`.
        patience: epochs without a better one after which to stop; 0: never.
        stop_after: epochs that do not count towards the patience.
        split: the rows that the metrics are of; None: there are none, and every epoch counts as better.
        epoch: the last epoch seen.
        best_epoch, best: the best epoch and its metrics; 0 and empty at the start.
        lowest: the lowest loss so far, of epochs whose AUC is defined.
    """

    rule: str
    patience: int
    stop_after: int = 0
    split: str | None = "val"
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    lowest: float = math.inf

    def update(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Take in an epoch's metrics. Returns whether it is the best; a tie keeps the earlier one."""
        self.epoch = epoch
        # Without held-out rows, hence metrics, every epoch is better than the one before.
        better = not self.best or selection_key(self.rule, metrics) > selection_key(self.rule, self.best)
        if self.rule == "mixture" and math.isfinite(metrics["auc"]):
            self.lowest = min(self.lowest, metrics["loss"])
            better = better and metrics["loss"] <= (1 + MOST_LOSS) * self.lowest
        if better:
            self.best_epoch, self.best = epoch, dict(metrics)
        return better

    @property
    def stop(self) -> bool:
        """Whether the last `patience` epochs that count brought no better one."""
        waited = self.epoch - max(self.best_epoch, self.stop_after)
        return self.patience > 0 and waited >= self.patience

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values."""
        lowest = self.lowest if math.isfinite(self.lowest) else None
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "best": self.best, "lowest": lowest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.lowest = math.inf if state["lowest"] is None else state["lowest"]
        self.best = {name: math.nan if value is None else value for name, value in state["best"].items()}


def selection_for(protocol: str, select: str, patience: int, lists: bool = False) -> Selection:
    """The rule of a protocol: "strict" selects by `select` on validation; "paper" by its own on test rows.

    `lists`: there is a list head, so that "auto" is the mixture.
    """
    if protocol == "paper":
        return Selection("paper", PAPER_PATIENCE, PAPER_STOP_AFTER, split="test")
    if select == "auto":
        select = "mixture" if lists else "auc"
    return Selection(select, patience)


def no_selection() -> Selection:
    """That of a training without held-out rows: the last epoch is the best."""
    return Selection("last", patience=0, split=None)
