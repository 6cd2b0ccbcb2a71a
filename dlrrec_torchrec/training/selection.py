"""Which epoch is the best, and when to stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

# DLRREC section 4.2: the best model is that of the lowest false-positive rate on the test set; early stopping
# starts after 300 epochs and waits for 50.
PAPER_STOP_AFTER = 300
PAPER_PATIENCE = 50


@dataclasses.dataclass
class Selection:
    """The best epoch so far by one rule. Epochs count from 1.

    Attributes:
        rule: "auc" or "accuracy" (higher is better), "loss" (lower), "mixture" (NDCG@20 + Recall@20 / 2 +
            AUC, where it is defined; higher), or "paper": lower false-positive rate, and of equal ones the
            higher AUC.
        patience: epochs without a better one after which to stop; 0: never.
        stop_after: epochs that do not count towards the patience.
        split: the rows that the metrics are of.
        epoch: the last epoch seen.
        best_epoch, best: the best epoch and its metrics; 0 and empty at the start.
    """

    rule: str
    patience: int
    stop_after: int = 0
    split: str = "val"
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)

    def update(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Take in an epoch's metrics. Returns whether it is the best; a tie keeps the earlier one."""
        self.epoch = epoch
        better = not self.best or self._key(metrics) > self._key(self.best)
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
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best = {name: math.nan if value is None else value for name, value in state["best"].items()}

    def _key(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        if self.rule == "paper":
            values = (-metrics["fpr"], metrics["auc"])
        elif self.rule == "mixture":
            auc = 0.0 if math.isnan(metrics["auc"]) else metrics["auc"]
            values = (metrics["ndcg@20"] + metrics["recall@20"] / 2 + auc,)
        else:
            values = (-metrics["loss"] if self.rule == "loss" else metrics[self.rule],)
        return tuple(-math.inf if math.isnan(v) else v for v in values)


def selection_for(protocol: str, select: str, patience: int, lists: bool = False) -> Selection:
    """The rule of a protocol: "strict" selects by `select` on validation; "paper" by its own on test rows.

    `lists`: there is a list head, so that "auto" is the mixture.
    """
    if protocol == "paper":
        return Selection("paper", PAPER_PATIENCE, PAPER_STOP_AFTER, split="test")
    if select == "auto":
        select = "mixture" if lists else "auc"
    return Selection(select, patience)
