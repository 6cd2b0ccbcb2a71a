"""What is wrong with a training in plain words: said once, and kept for the manifest and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

SETTLED = 50  # steps until batch normalisation's running statistics are those of the data
FIRST_STEPS = 10  # whose contrastive loss is the one to fall from
IN_A_ROW = 2  # measurements that must show it before it is said
SATURATED_LOGIT = 13.8  # |logit| beyond which a probability is within 1e-6 of 0 or 1
SATURATED_SHARE = 0.95  # of the rows
EFFECT = 1e-3  # of the logits' spread: below it a part has no effect
AUC_ERROR = 0.02  # standard error of the validation AUC above which epochs cannot be told apart
_TYPICAL_AUC = 0.75


class Alarms:
    """The alarms of one training. Rank 0 takes in measurements; on other ranks there are none.

    An alarm is said when IN_A_ROW measurements of its name in a row show it, so that one which flickers
    around its threshold is quiet, and never again.

    Args:
        say: prints a line.
        falls: whether contrastive losses fall where they have an effect. Semi-hard negatives are chosen by
            what the positive is, so that a loss against them says nothing of the way behind.
    """

    def __init__(self, say: Callable[[str], Any], falls: bool = True) -> None:
        self._say, self._falls = say, falls
        self._seen: dict[str, int] = {}
        self._raised: dict[str, dict[str, Any]] = {}
        self._first: dict[str, float] = {}  # contrastive losses of the first steps

    def measured(
        self, step: int, names: Iterable[str], found: Mapping[str, str], after: int = IN_A_ROW
    ) -> None:
        """Take in a measurement.

        Args:
            names: what was measured; what is not in `found` is right, or right again.
            found: name -> what is wrong, in words.
            after: measurements in a row that must show it.
        """
        for name in names:
            if name not in found:
                self._seen[name] = 0
                if name in self._raised:
                    self._raised[name]["over"] = True
                continue
            self._seen[name] = self._seen.get(name, 0) + 1
            if name in self._raised:
                self._raised[name]["over"] &= self._seen[name] < after
            elif self._seen[name] >= after:
                self._raised[name] = {"name": name, "step": step, "text": found[name], "over": False}
                self._say(f"warning: step {step:,}: {found[name]}")

    def after_epoch(
        self,
        record: Mapping[str, Any],
        steps: Mapping[str, np.ndarray],
        terms: Iterable[str],
        effects: Mapping[str, float],
        scored: tuple[np.ndarray, np.ndarray] | None,
        split: str | None,
    ) -> None:
        """Take in an epoch.

        Args:
            record, steps: of `Trainer.run_epoch`; of epoch 0 the record has `epoch` and `step` alone.
            terms: loss_ii, loss_uu, those that are on.
            effects, scored: of `Trainer.evaluate`, on rows of `split`; empty and None without held-out rows.
        """
        step = record["step"]
        if scored is not None:
            positives = int((scored[0] > 0).sum())
            few = held_out_alarms(positives, len(scored[0]) - positives, split)
            self.measured(step, ["held_out"], few, after=1)
            self.measured(step, PREDICTIONS, prediction_alarms(scored[1], split), after=1)
        if not record["epoch"]:
            return
        if record["epoch"] == 1:
            self._first = {name: float(steps[name][:FIRST_STEPS].mean()) for name in terms}
        losses = {
            name: (self._first[name] if self._falls else math.nan, record[f"train_{name}"])
            for name in terms
            if name in self._first
        }
        self.measured(step, losses, term_alarms(losses))
        if step >= SETTLED:
            self.measured(step, effects, effect_alarms(effects))

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values."""
        return {"seen": self._seen, "raised": self._raised, "first": self._first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._seen, self._raised = dict(state["seen"]), dict(state["raised"])
        self._first = dict(state["first"])

    def listed(self) -> list[dict[str, Any]]:
        """All that were raised, in order: `name`, `step`, `text`, and whether it was `over` at the end."""
        return list(self._raised.values())


def prediction_alarms(logit: np.ndarray, split: str) -> dict[str, str]:
    """Predictions that are constant or saturated, by name; logit f64 [N] of held-out rows."""
    if len(logit) < 2:
        return {}
    advice = "what may help: a lower train.lr, a higher train.weight_decay, train.clip_norm"
    if float(np.ptp(logit)) <= 1e-6 * max(1.0, float(np.abs(logit).max())):
        return {
            "constant": f"the predictions of all {len(logit):,} {split} rows are the same ({advice})",
        }
    share = float((np.abs(logit) > SATURATED_LOGIT).mean())
    if share > SATURATED_SHARE:
        return {
            "saturated": f"{share:.0%} of the {split} probabilities are 0.000 or 1.000 (median |logit| "
            f"{np.median(np.abs(logit)):,.0f}): training no longer moves them ({advice})"
        }
    return {}


PREDICTIONS = ("constant", "saturated")  # the names of `prediction_alarms`


def effect_alarms(effects: Mapping[str, float]) -> dict[str, str]:
    """Modalities without effect, by name.

    Args:
        effects: `effect_MODALITY` -> spread of the change in the logits without its vectors, over the logits'
            own spread.
    """
    return {
        name: f"the vectors of {name.removeprefix('effect_')} hardly change a prediction (by {value:.1e} of "
        "the predictions' spread): leave the modality out by model.modalities, or give its tower less "
        "train.weight_decay or model.tower_dropout"
        for name, value in effects.items()
        if value < EFFECT
    }


def term_alarms(losses: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Contrastive terms without effect, by name.

    Args:
        losses: loss_ii, loss_uu of terms that are on -> the means of the first steps and of the last epoch.
    """
    sides = {"loss_ii": "item", "loss_uu": "user"}
    found = {}
    for name, (first, last) in losses.items():
        side = sides[name]
        if last == 0:
            found[name] = (
                f"the contrastive term of {side}s has nothing to compare: no training row's {side} has "
                f"both a content vector and a SWING neighbour with one (contrastive.{side}_weight=0 leaves "
                "it out)"
            )
        elif math.isfinite(first) and abs(first - last) < EFFECT * first:
            found[name] = (
                f"the contrastive term of {side}s does not fall ({first:.4f} at first, {last:.4f} now): it "
                f"has no effect (what may help: a higher contrastive.{side}_weight, a lower "
                "contrastive.temperature, less train.weight_decay)"
            )
    return found


def held_out_alarms(positives: int, negatives: int, split: str) -> dict[str, str]:
    """Held-out rows that are too few of a label to select by, by name.

    By the standard error of an AUC of 0.75 (`auc_standard_error`).
    """
    rarer = "negatives" if negatives <= positives else "positives"
    fewest, rows = min(positives, negatives), positives + negatives
    if not fewest:
        text = f"all {rows:,} {split} rows have one label: no epoch can be selected by AUC"
    else:
        error = auc_standard_error(_TYPICAL_AUC, positives, negatives)
        if error <= AUC_ERROR:
            return {}
        text = (
            f"{split} has only {fewest:,} {rarer} among {rows:,} rows: its AUC has a standard error of about "
            f"{error:.3f}, and smaller differences between epochs are chance"
        )
    return {"held_out": f"{text} (what may help: a higher split.val_share, more data)"}


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC on so many rows of both labels (Hanley and McNeil 1982, equations 1 and 2).

    sqrt((A (1 - A) + (P - 1) (Q1 - A^2) + (N - 1) (Q2 - A^2)) / (P N)) with Q1 = A / (2 - A) and
    Q2 = 2 A^2 / (1 + A).
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    total = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(total / (positives * negatives))
