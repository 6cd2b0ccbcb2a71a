"""The figures of the audit, in colours that colour-blind readers can distinguish (Okabe and Ito)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure  # without pyplot: no global state, drawn by Agg
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
DASHED = (0, (4, 1.5))
STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WHOLE = FuncFormatter(lambda value, _: "" if 0 < value < 1 else f"{value:,.0f}")


def coverage(report: dict[str, Any], path: Path) -> None:
    """Share of ids with a list, over degrees that double from bar to bar; below, how many ids these are."""
    rows, cover = report["by_degree"], report["coverage"]
    names = [str(r["from"]) if r["from"] == r["to"] else f"{r['from']}–{r['to']}" for r in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.2, 1.5 + 0.55 * len(rows)), 5.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        place = range(len(rows))
        above.bar(place, [row["coverage"] for row in rows], color=BLUE)
        above.axhline(cover["share"], color=ORANGE, lw=1.4, ls=DASHED)
        above.set(
            ylim=(0, 1.02),
            ylabel="share with a list",
            title=f"Coverage: {cover['share']:.1%} of {cover['ids']:,} {report['side']} (dashed)",
        )
        above.yaxis.set_major_formatter(PercentFormatter(1))
        below.bar(place, [row["ids"] for row in rows], color=GREY)
        below.set(yscale="log", ylabel=report["side"], xlabel="degree")
        below.set_ylim(bottom=0.5)
        _count_in_decades(below.yaxis)
        below.set_xticks(place, names, rotation=45 if len(rows) > 6 else 0, rotation_mode="anchor")
        for label in below.get_xticklabels():
            label.set_ha("right" if len(rows) > 6 else "center")
        figure.savefig(path)


def scores(report: dict[str, Any], path: Path) -> None:
    """Counts of all neighbours and of the best of each id over their scores, log axes; dashed: thresholds."""
    summary = report["scores"]
    histogram = summary["histogram"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.1), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="score", ylabel="neighbours", title="Scores")
        if not summary["all"]["count"]:
            _say(axes, "no neighbours")
        else:
            low, high = histogram["edges"][0], histogram["edges"][-1]
            edges = histogram["edges"] if low < high else [low / 1.1, low * 1.1]
            for name, words, colour in (("all", "all", BLUE), ("best", "best of each id", ORANGE)):
                axes.stairs(histogram[name], edges, color=colour, fill=True, alpha=0.4)
                axes.stairs(
                    histogram[name], edges, color=colour, lw=1.6, label=f"{words}: {summary[name]['count']:,}"
                )
            for row in report["thresholds"]:
                if row["quantile"] is None and low <= row["threshold"] <= high:
                    axes.axvline(row["threshold"], color="#333333", lw=1, ls=DASHED)
            axes.set(xscale="log", yscale="log")
            axes.set_ylim(bottom=0.5)
            _count_in_decades(axes.yaxis)
            if high / low < 30:
                axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter("{x:g}")
            figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(path)


def popularity(report: dict[str, Any], degree: np.ndarray, appearances: np.ndarray, path: Path) -> None:
    """Ids by degree and by appearances in the lists, both on log axes, with the means.

    `degree` i32[ids], `appearances` i64[ids].
    """
    rows = [row for row in report["by_degree"] if row["edges"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 5.2), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="degree", ylabel="appearances as a neighbour", title="Appearances by degree")
        if not (rows and appearances.any()):
            _say(axes, "no neighbours")
        else:
            x, y = _steps(degree.max()), np.concatenate([[-0.5], _steps(appearances.max())])
            ids, _, _ = np.histogram2d(degree, appearances, [x, y])
            mesh = axes.pcolormesh(
                x, y, np.ma.masked_equal(ids.T, 0), cmap="Blues", norm=LogNorm(0.5, max(ids.max(), 2))
            )
            _count_in_decades(figure.colorbar(mesh, label=report["side"]).ax.yaxis)
            means = np.array([[row["edges"], row["appearances"]] for row in rows]).T / [
                r["ids"] for r in rows
            ]
            axes.plot(*means, color=ORANGE, marker="o", ms=4, lw=1.6, label="mean")
            ratio = appearances.sum() / degree.sum(dtype=np.int64)
            line = np.array([max(x[0], 1), x[-1]])
            axes.plot(line, ratio * line, color="#333333", lw=1, ls=DASHED, label="in proportion to degree")
            axes.set_xscale("log")
            axes.set_yscale("symlog", linthresh=1, linscale=0.5)
            axes.set(xlim=(x[0], x[-1]), ylim=(-0.5, max(y[-1], 1.5)))
            _count_in_decades(axes.xaxis)
            axes.yaxis.set_major_formatter(WHOLE)
            axes.legend(loc="upper left")
        figure.savefig(path)


def agreement(report: dict[str, Any], path: Path) -> None:
    """Mean overlap of the first d neighbours of both outputs, over d."""
    comparison = report["agreement"]
    curve = comparison["overlap_by_rank"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.set(
            xlabel="first d neighbours",
            ylabel="mean overlap@d",
            title=f"Agreement over {comparison['lists_in_both']:,} {report['side']} with a list in both",
            ylim=(0, 1.02),
        )
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        if not curve:
            _say(axes, "no id has a list in both")
        else:
            axes.plot(
                range(1, len(curve) + 1), curve, color=BLUE, lw=1.8, marker="o" if len(curve) < 25 else ""
            )
            at = min(comparison["k"], len(curve))
            label = f"overlap@{comparison['k']} {comparison['overlap']:.3f}"
            axes.plot(at, curve[at - 1], "o", color=ORANGE, ms=7, label=label)
            axes.legend(loc="best")
        figure.savefig(path)


def _count_in_decades(axis) -> None:
    """Ticks at whole numbers of a log axis; between the decades too where it spans few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(WHOLE)
    axis.set_minor_formatter(NullFormatter())


def _steps(largest: int) -> np.ndarray:
    """Edges of bins for 1..largest, halfway between whole numbers, and nearly equal on a log axis."""
    return np.unique(np.round(np.geomspace(1, largest + 1, 33))) - 0.5


def _say(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#777777")
