"""The quality of the SWING neighbours: how their scores are spread, and what share is above a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from dlrrec_torchrec.report.about import plain_table
from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, new_figure, save, say
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.shard_facts import ShardFacts

QUANTILES = (0.1, 0.5, 0.9)


def swing_quality(runs: Sequence[RunPaths]) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """The scores of all kept neighbours, and what is to be said of them, of all seeds together.

    Returns:
        "users", "items" -> f32 [n]; and -> `computed`, `coverage` (share of the entities with a neighbour),
        `neighbours` (of an entity with any, mean), `quantiles` (those of QUANTILES), and `above`: threshold
        -> the share of the scores, and of all entities whose best score is, at or above it. Thresholds are
        the powers of ten between the smallest and the largest score, three at most.
    """
    scores, facts = {}, {}
    for kind in ("users", "items"):
        found, best, entities = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)], 0
        computed = [run for run in runs if (run.swing / kind).exists()]
        for run in computed:
            lists = read_table(run.swing / kind, schema.NEIGHBORS, ["scores"])["scores"].combine_chunks()
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
            values = lists.flatten().to_numpy()
            found.append(values)
            best.append(values[(np.cumsum(lengths) - lengths)[lengths > 0]])  # best first
            entities += int(getattr(ShardFacts.read(run.shards), kind))
        values, first = np.concatenate(found), np.concatenate(best)
        scores[kind] = values
        facts[kind] = {
            "computed": bool(computed),
            "coverage": len(first) / max(entities, 1),
            "neighbours": len(values) / len(first) if len(first) else 0.0,
            "quantiles": [float(q) for q in np.quantile(values, QUANTILES)] if len(values) else [],
            "above": {
                f"{level:g}": [
                    float((values >= level).mean()),
                    float((first >= level).sum() / max(entities, 1)),
                ]
                for level in thresholds(values)
            },
        }
    return scores, facts


def thresholds(values: np.ndarray) -> list[float]:
    """The powers of ten within the positive values, three at most: those around their middle."""
    positive = values[values > 0]
    if not len(positive):
        return []
    low, high = math.ceil(math.log10(positive.min())), math.floor(math.log10(positive.max()))
    middle = math.log10(float(np.median(positive)))
    powers = sorted(range(low, high + 1), key=lambda power: abs(power - middle))[:3]
    return [10.0**power for power in sorted(powers)]


def swing_html(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of `swing_quality`; "" where no neighbours are known."""
    rows = []
    for kind, found in facts.items():
        if not found["quantiles"]:
            continue
        above = ", ".join(f"≥ {k}: {share:.0%} ({any_:.0%})" for k, (share, any_) in found["above"].items())
        quantiles = (f"{value:.3g}" for value in found["quantiles"])
        rows.append(
            [kind, f"{found['coverage']:.0%}", f"{found['neighbours']:.1f}", *quantiles, above or "–"]
        )
    if not rows:
        return ""
    head = ["of", "with a neighbour", "neighbours each", "10 % below", "median", "90 % below"]
    told = (
        '<p class="soft">Scores of the SWING neighbours that were kept. Last column: the share of the scores '
        "at or above a threshold and, in brackets, of all entities whose best neighbour is.</p>"
    )
    return told + plain_table([*head, "share above a threshold"], rows)


def draw_scores(scores: Mapping[str, np.ndarray], facts: Mapping[str, Any], path: Path) -> None:
    """Histogram of the scores on a log axis, and as a line the share of them at or above each score."""
    with plt.rc_context(STYLE):
        figure, grid = new_figure(5.6, nrows=len(scores), ncols=1, squeeze=False)
        for axes, colour, (kind, values) in zip(grid.flat, OKABE_ITO, scores.items(), strict=False):
            values = np.sort(values[values > 0])
            computed = facts[kind]["computed"]
            covered = f"{facts[kind]['coverage']:.0%} have neighbours" if computed else "not computed"
            axes.set(xlabel="SWING score", ylabel="neighbours", title=f"{kind.capitalize()}: {covered}")
            if not len(values):
                say(axes, "no neighbours")
                continue
            low, high = np.log10(values[0]), np.log10(values[-1])
            pad = 0.05 * (high - low) or 0.5
            axes.hist(values, np.logspace(low - pad, high + pad, 41), color=colour, alpha=0.85)
            beside = axes.twinx()
            beside.plot(values, 1 - np.arange(len(values)) / len(values), color="#333333", lw=1.2)
            beside.set(ylabel="share at or above", ylim=(0, 1.03))
            beside.grid(False)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}" if high - low < 1 else NullFormatter())
        save(figure, path)
