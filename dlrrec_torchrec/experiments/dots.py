"""The figure of an experiment: every cell a row, its seeds as dots, their mean as a bar."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from dlrrec_torchrec.experiments.findings import varying_factors, where
from dlrrec_torchrec.experiments.gathered import Outcome, Results
from dlrrec_torchrec.experiments.measures import METRICS
from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, WIDTH, plt, save

MARKERS = ("o", "s", "D", "^")


def draw_cells(results: Results, path: Path) -> str | None:
    """Draw a panel for each metric that is compared (two at most); returns the caption, or None where there
    is nothing to draw, and then no file is written.

    A row has the dots of all its protocols, one under the other; a hollow diamond is the published number.
    """
    metrics = [
        metric
        for metric in results.experiment.compared[:2]
        if any(len(outcome.finite(metric)) for outcome in results.outcomes)
    ]
    if not metrics:
        return None
    factors = [name for name in varying_factors(results) if name != "protocol"]
    rows: dict[str, list[Outcome]] = {}
    for outcome in results.outcomes:
        rows.setdefault(where(outcome.levels, factors) or "all", []).append(outcome)
    protocols = list(dict.fromkeys(outcome.levels.get("protocol", "") for outcome in results.outcomes))
    published = False
    with plt.rc_context(STYLE):
        height = 0.8 + len(rows) * (0.16 + 0.17 * len(protocols))
        figure, panels = plt.subplots(
            len(metrics), 1, figsize=(WIDTH, height * len(metrics)), layout="constrained", squeeze=False
        )
        for axes, metric in zip(panels.flat, metrics, strict=True):
            axes.set_title(METRICS[metric].title, loc="left", fontsize=10)
            for row, outcomes in enumerate(rows.values()):
                for outcome in outcomes:
                    kind = protocols.index(outcome.levels.get("protocol", ""))
                    at = row + (kind - (len(protocols) - 1) / 2) * 0.34
                    colour = OKABE_ITO[kind % len(OKABE_ITO)]
                    values = outcome.finite(metric)
                    look = {"color": colour, "ls": "", "alpha": 0.75, "ms": 5}
                    axes.plot(values, np.full(len(values), at), MARKERS[kind % len(MARKERS)], **look)
                    axes.plot(outcome.mean(metric), at, "|", color=colour, ms=12, mew=2)
                    if metric in outcome.published and kind == 0:
                        published = True
                        axes.plot(outcome.published[metric], row, "D", mfc="none", mec="#333333", ms=6)
            names = [textwrap.fill(name, 28) for name in rows]
            axes.set_yticks(range(len(rows)), names, fontsize=8)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.tick_params(axis="x", labelsize=8)
            axes.locator_params(axis="x", nbins=5)
        handles = [
            plt.Line2D(
                [], [], color=OKABE_ITO[kind % len(OKABE_ITO)], marker=MARKERS[kind % len(MARKERS)], ls=""
            )
            for kind in range(len(protocols))
        ]
        figure.legend(handles, protocols, loc="outside lower center", ncols=len(protocols), fontsize=8)
        save(figure, path)
    caption = "Each dot is a seed, the bar their mean"
    return caption + ("; hollow diamonds are the published numbers" if published else "")
