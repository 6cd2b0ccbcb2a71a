"""The results of all seeds: two tables of methods, and how the models differ from the best other one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlrrec_torchrec.report.comparison import Column, Comparison, cell

RATINGS = {
    "auc": Column(
        "AUC", ".3f", "high", "Share of (positive, negative) pairs that are ranked correctly; 0.5 is chance."
    ),
    "reachable_share": Column(
        "of reachable",
        ".0%",
        "high",
        "(AUC − 0.5) / (reachable AUC − 0.5). The reachable AUC is that of ranking by the true "
        "probabilities, which are known in a synthetic world only; no data tell them for sure.",
    ),
    "attainable_share": Column(
        "of attainable",
        ".0%",
        "high",
        "(AUC − 0.5) / (attainable AUC − 0.5). The attainable AUC is that of the synthetic world's own "
        "formula with each user's and item's hidden numbers estimated from the training rows.",
    ),
    "user_auc": Column(
        "user AUC",
        ".3f",
        "high",
        "AUC within each user who has test rows of both labels, weighted by rows.",
    ),
    "auprc": Column(
        "AUPRC",
        ".3f",
        "high",
        "Average precision. A constant reaches the share of positives, so compare with that.",
    ),
    "accuracy": Column(
        "accuracy",
        ".3f",
        "high",
        "Share of rows on the right side of 0.5. Compare with the majority class.",
    ),
    "fpr": Column(
        "FPR",
        ".3f",
        None,
        "False positives / all negatives at 0.5. Never judge by it alone: a model that says “no” to "
        "everything has rate 0, one that says “yes” to everything has rate 1.",
    ),
    "loss": Column("loss", ".3f", "low", "Mean binary cross-entropy in nats; lower is better."),
    "ne": Column(
        "NE",
        ".3f",
        "low",
        "Normalised entropy: loss / entropy of the test rows' base rate; below 1 beats that constant.",
    ),
    "calibration": Column(
        "calibration", ".3f", None, "Sum of probabilities / number of positives; 1 is best."
    ),
}
_OF_RECALL = (
    "The user's relevant items among the first {}, as a share of all that are relevant; mean of the users."
)
LISTS = {
    "recall@10": Column("Recall@10", ".3f", "high", _OF_RECALL.format(10)),
    "recall@20": Column("Recall@20", ".3f", "high", _OF_RECALL.format(20)),
    "recall@50": Column("Recall@50", ".3f", "high", _OF_RECALL.format(50)),
    "ndcg@20": Column(
        "NDCG@20",
        ".3f",
        "high",
        "Relevant items among the first 20, each worth 1 / log2(rank + 1); share of the best list's worth.",
    ),
    "mrr@20": Column(
        "MRR@20", ".3f", "high", "1 / rank of the first relevant item among the first 20, else 0."
    ),
    "map@20": Column(
        "MAP@20",
        ".3f",
        "high",
        "Precision at the rank of each relevant item among the first 20, summed, / all that are relevant.",
    ),
    "hit@20": Column("hit@20", ".3f", "high", "Share of the users with a relevant item among the first 20."),
    "coverage@20": Column("coverage", ".3f", None, "Share of all items that are among anybody's first 20."),
    "popularity@20": Column(
        "popularity",
        ".3f",
        None,
        "Mean popularity percentile of the first 20: .5 is the average item, 1 the most reviewed one.",
    ),
}


def ratings(summary: Mapping[str, Any]) -> Comparison:
    """The table of the test rows."""
    groups = {group: summary[group] for group in ("models", "baselines", "peers")}
    rows = {"true probabilities": summary["truth"], "true form, estimated": summary["attainable"]}
    known = {name: metrics for name, metrics in rows.items() if metrics}
    return Comparison(RATINGS, groups, {"reachable": known} if known else {})


def lists(summary: Mapping[str, Any]) -> Comparison:
    """The table of the lists of all unseen items."""
    return Comparison(LISTS, {group: summary["lists"][group] for group in ("models", "peers")})


def content_alone(summary: Mapping[str, Any]) -> list[tuple[str, Comparison, list[str]]]:
    """Of each task of lists by content alone: what it is, its table, and the first variant's Recall@20 less
    each other one's."""
    tables = []
    columns = {metric: LISTS[metric] for metric in ("recall@20", "ndcg@20")}
    for name, task in summary["cold"].items():
        users, items, relevant, chance = (np.mean(task[k]) for k in ("users", "items", "relevant", "chance"))
        head = (
            f"{name}, by content alone · {users:,.0f} users, {relevant:.1f} relevant items each, of "
            f"{items:,.0f} · Recall@20 of a random order {chance:.3f}"
        )
        lines = []
        for pair, metrics in task["gaps"].items():
            known = [seed for seed in metrics["recall@20"] if seed["difference"] is not None]
            if known:
                mean = np.mean([seed["difference"] for seed in known])
                interval = f" [{known[0]['low']:+.3f}, {known[0]['high']:+.3f}]" if len(known) == 1 else ""
                lines.append(f"Recall@20 of {pair}: {mean:+.3f}{interval}")
        tables.append((head, Comparison(columns, {"models": task["models"]}), lines))
    return [table for table in tables if table[1].shown()]


def lists_headline(summary: Mapping[str, Any]) -> str:
    """One line: who is ranked for, over what, and how popular the relevant items are."""
    of = summary["lists"]
    users, items, relevant = (np.mean(of[key]) for key in ("users", "items", "relevant"))
    rows = [*of["models"].values(), *of["peers"].values()]
    popular = cell(rows[0]["popularity of relevant"]) if rows else "–"
    return (
        f"{of['protocol']} · {users:,.0f} users, {relevant:.1f} relevant items each, of {items:,.0f} items · "
        f"popularity of the relevant ones {popular}"
    )


def best_of(methods: Mapping[str, Mapping[str, Any]], metric: str = "auc") -> str | None:
    """The method with the highest mean of a metric; None where none has one."""
    means = {
        name: metrics[metric]["mean"]
        for name, metrics in methods.items()
        if metrics[metric]["mean"] is not None
    }
    return max(means, key=means.get) if means else None


def gather_differences(
    found: Sequence[Mapping[str, Mapping[str, Any]]], rival: str | None
) -> dict[str, list[dict[str, Any]]]:
    """Name of a model -> its difference from the `rival` in each seed that has one.

    Args:
        found: of each seed, model -> rival -> `evaluation.lists.interval_facts`.
        rival: the method that is best over all seeds.
    """
    gathered: dict[str, list[dict[str, Any]]] = {}
    for seed in found:
        for name, rivals in seed.items():
            if (facts := rivals.get(rival)) and facts["difference"] is not None and facts["low"] is not None:
                gathered.setdefault(name, []).append({"against": rival, **facts})
    return gathered


def over_seeds(seeds: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, str]:
    """The mean difference of the seeds, the mean ends of their intervals, and what these say of it.

    Seeds of one data set share most of their rows, so the mean interval is not made narrower by their number.
    """
    mean, low, high = (float(np.mean([seed[key] for seed in seeds])) for key in ("difference", "low", "high"))
    return mean, low, high, "better" if low > 0 else "worse" if high < 0 else "level"


def difference_lines(differences: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """A sentence for each model and metric: its difference from the best other method, and whether it counts.

    Args:
        differences: title of the metric -> as `gather_differences` returns.
    """
    lines = []
    for title, models in differences.items():
        for name, seeds in models.items():
            mean, low, high, verdict = over_seeds(seeds)
            lines.append(
                f"{title} of {name} less that of the best other method, {seeds[0]['against']}: "
                f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}{of_seeds(seeds)}"
            )
    return lines


def of_seeds(seeds: Sequence[Mapping[str, Any]]) -> str:
    """How many of several seeds are better, level or worse, by their own intervals."""
    if len(seeds) == 1:
        return ""
    counts = Counter(seed["verdict"] for seed in seeds)
    words = ", ".join(f"{counts[v]} {v}" for v in ("better", "level", "worse") if counts[v])
    return f"; of {len(seeds)} seeds {words}"


def all_difference_lines(summary: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """`difference_lines` of the test rows, and of the lists."""
    titles = {metric: LISTS[metric].title for metric in summary["lists"]["differences"]}
    of_lists = {titles[metric]: models for metric, models in summary["lists"]["differences"].items()}
    return difference_lines({RATINGS["auc"].title: summary["differences"]}), difference_lines(of_lists)
