"""The results in three sentences: the rating, the lists, and what both mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.results import LISTS, RATINGS, rival_of

LIST_METRIC = "recall@20"


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The first model's AUC against the best other method's, its lists likewise, and what it means.

    The second is left out where no lists were measured. Intervals are those of evaluation; "better" and
    "worse" only where they exclude zero, in every seed.
    """
    name = next(iter(summary["models"]))
    said, judged = [_rating(summary, name)], []
    found = {"rating items": summary["differences"].get(name, [])}
    if name in summary["lists"]["models"]:
        said.append(_lists(summary, name))
        found["listing them"] = summary["lists"]["differences"].get(LIST_METRIC, {}).get(name, [])
    for task, seeds in found.items():
        if known := _known(seeds):
            rivals = " or ".join(dict.fromkeys(seed["against"] for seed in known))
            judged.append(f"{_judged(known)} {rivals} at {task}")
    if judged:
        cause = "by drawing the test users again"
        caution = f"{cause}; another split or seed may say otherwise" if summary["seeds"] == 1 else cause
        said.append(f"So on these data {name} {' and '.join(judged)} (judged {caution}).")
    return said


def _rating(summary: Mapping[str, Any], name: str) -> str:
    metrics, rival = summary["models"][name], rival_of(summary)
    if metrics["auc"]["mean"] is None or rival is None:
        return f"The AUC of {name} cannot be compared with a baseline on these test rows."
    other = (summary["baselines"] | summary["peers"])[rival]
    shares = {kind: metrics[f"{kind}_share"]["mean"] for kind in ("reachable", "attainable")}
    told = [f"{share:.0%} to the {kind} AUC" for kind, share in shares.items() if (share or -1) > 0]
    reached = f" (of the way from chance, {' and '.join(told)})" if told else ""
    return (
        f"Rating: {name} has AUC {cell(metrics['auc'])}{reached}, "
        f"{_gap(metrics['auc']['mean'] - other['auc']['mean'], RATINGS['auc'].form)} the best other method, "
        f"{rival} ({cell(other['auc'])}){_interval(summary['differences'].get(name, []))}."
    )


def _lists(summary: Mapping[str, Any], name: str) -> str:
    found = summary["lists"]
    own = found["models"][name][LIST_METRIC]
    if own["mean"] is None:
        return f"Lists: {LISTS[LIST_METRIC].title} of {name} is undefined on these test rows."
    text = f"Lists: {name}'s first 20 items hold {own['mean']:.1%} of what a user likes among the test rows"
    means = {n: m[LIST_METRIC]["mean"] for n, m in found["peers"].items()}
    means = {n: mean for n, mean in means.items() if mean is not None}
    if not means:
        return f"{text} ({LISTS[LIST_METRIC].title}); no other method's lists were measured."
    rival = max(means, key=means.get)
    gap = _gap(own["mean"] - means[rival], LISTS[LIST_METRIC].form)
    return (
        f"{text} ({LISTS[LIST_METRIC].title} {cell(own)}), {gap} the best other method, {rival} "
        f"({cell(found['peers'][rival][LIST_METRIC])})"
        f"{_interval(found['differences'].get(LIST_METRIC, {}).get(name, []))}."
    )


def _gap(gain: float, form: str) -> str:
    return f"{format(abs(gain), form)} {'above' if gain > 0 else 'below'}"


def _known(seeds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [seed for seed in seeds if seed["difference"] is not None and seed["low"] is not None]


def _interval(seeds: Sequence[Mapping[str, Any]]) -> str:
    """The interval of one seed; of several the mean one, and in how many it excludes zero."""
    known = _known(seeds)
    if not known:
        return ""
    low, high = (float(np.mean([seed[key] for seed in known])) for key in ("low", "high"))
    text = f"; 95 % interval of the difference {low:+.3f} to {high:+.3f}".replace("-", "−")
    if len(known) > 1:
        counts = sum(seed["verdict"] != "level" for seed in known)
        text += f" on average, without zero in {counts} of {len(known)} seeds"
    return text


def _judged(seeds: Sequence[Mapping[str, Any]]) -> str:
    verdicts = {seed["verdict"] for seed in seeds}
    if verdicts in ({"better"}, {"worse"}):
        return f"is {verdicts.pop()} than"
    return "cannot be told apart from" if verdicts == {"level"} else "is not reliably better or worse than"
