"""The results in three sentences: the rating, the lists, and what both mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.results import LISTS, RATINGS, best_of, over_seeds

LIST_METRIC = "recall@20"


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The first model's AUC against the best other method's, its lists likewise, and what it means.

    The second is left out where no lists were measured. Intervals are those of evaluation, of several seeds
    their mean one; "better" and "worse" only where it excludes zero.
    """
    name = next(iter(summary["models"]))
    said, judged = [_rating(summary, name)], []
    found = {"rating items": summary["differences"].get(name, [])}
    if name in summary["lists"]["models"]:
        said.append(_lists(summary, name))
        found["listing them"] = summary["lists"]["differences"].get(LIST_METRIC, {}).get(name, [])
    for task, seeds in found.items():
        if seeds:
            judged.append(f"{_judged(seeds)} {seeds[0]['against']} at {task}")
    if judged:
        cause = "by drawing the test users again"
        caution = f"{cause}; another split or seed may say otherwise" if summary["seeds"] == 1 else cause
        said.append(f"So on these data {name} {' and '.join(judged)} (judged {caution}).")
    return said


def _rating(summary: Mapping[str, Any], name: str) -> str:
    methods = summary["baselines"] | summary["peers"]
    metrics, rival = summary["models"][name], best_of(methods)
    if metrics["auc"]["mean"] is None or rival is None:
        return f"The AUC of {name} cannot be compared with a baseline on these test rows."
    other = methods[rival]
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
    rival = best_of(found["peers"], LIST_METRIC)
    if rival is None:
        return f"{text} ({LISTS[LIST_METRIC].title}); no other method's lists were measured."
    gap = _gap(own["mean"] - found["peers"][rival][LIST_METRIC]["mean"], LISTS[LIST_METRIC].form)
    return (
        f"{text} ({LISTS[LIST_METRIC].title} {cell(own)}), {gap} the best other method, {rival} "
        f"({cell(found['peers'][rival][LIST_METRIC])})"
        f"{_interval(found['differences'].get(LIST_METRIC, {}).get(name, []))}."
    )


def _gap(gain: float, form: str) -> str:
    return f"{format(abs(gain), form)} {'above' if gain > 0 else 'below'}"


def _interval(seeds: Sequence[Mapping[str, Any]]) -> str:
    """The interval of one seed; of several the mean one, and in how many it excludes zero."""
    if not seeds:
        return ""
    _, low, high, _ = over_seeds(seeds)
    text = f"; 95 % interval of the difference {low:+.3f} to {high:+.3f}".replace("-", "−")
    if len(seeds) > 1:
        counts = sum(seed["verdict"] != "level" for seed in seeds)
        text += f" on average, without zero in {counts} of {len(seeds)} seeds"
    return text


def _judged(seeds: Sequence[Mapping[str, Any]]) -> str:
    verdict = over_seeds(seeds)[3]
    return "cannot be told apart from" if verdict == "level" else f"is {verdict} than"
