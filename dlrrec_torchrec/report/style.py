"""How the figures look: one panel each, narrow enough to be read at the width of a phone."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

WIDTH = 5.2  # inches: at 380 pixels, 10 points become 10 pixels
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # for colour-blind readers
GREYS = ("#999999", "#777777", "#555555", "#333333")
DASHES = ((0, (1, 1)), (0, (4, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
STYLE = {
    "figure.dpi": 150,
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


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour of its own for each name: those for colour-blind readers first, then hues between them."""
    more = max(len(names) - len(OKABE_ITO), 0)
    hues = [colorsys.hls_to_rgb((k + 0.5) / more, (0.28, 0.45)[k % 2], 0.75) for k in range(more)]
    chosen = [*OKABE_ITO, *map(matplotlib.colors.to_hex, hues)]
    return dict(zip(names, chosen, strict=False))


def label_ends(axes, ends: Mapping[str, tuple[float, float]], colour: Mapping[str, str]) -> None:
    """Write each line's name beside its end (x, y), right of the axes, moved apart where they would overlap.

    Call it when the limits of the axes are final. The figure grows in height where there are many names.
    """
    texts = {name: textwrap.wrap(name, 16) or [""] for name in ends}
    line = 0.155  # inches of one line of text
    needed = sum(len(text) for text in texts.values()) * line
    figure = axes.figure
    figure.set_figheight(max(figure.get_figheight(), needed + 1.2))
    unit = line / (figure.get_figheight() - 1.0)  # as a share of the axes' height
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [(ends[name][1] - low) / (high - low) for name in order]
    gaps = [unit * (len(texts[a]) + len(texts[b])) / 2 for a, b in zip(order[:-1], order[1:], strict=True)]
    for name, place in zip(order, spread(wanted, gaps), strict=True):
        axes.annotate(
            "\n".join(texts[name]),
            xy=ends[name], xycoords="data",
            xytext=(1.05, place), textcoords="axes fraction",
            color=colour[name], fontsize=9, va="center", linespacing=1.0,
            arrowprops={"arrowstyle": "-", "color": colour[name], "lw": 0.6, "shrinkA": 1, "shrinkB": 1},
        )  # fmt: skip


def spread(places: Sequence[float], gaps: Sequence[float], top: float = 1.0) -> list[float]:
    """Ascending `places` moved so that neighbours are at least `gaps` apart and none is above `top`."""
    moved = list(places)
    for k, gap in enumerate(gaps):
        moved[k + 1] = max(moved[k + 1], moved[k] + gap)
    if moved:
        moved[-1] = min(moved[-1], top)
    for k in reversed(range(len(gaps))):
        moved[k] = min(moved[k], moved[k + 1] - gaps[k])
    return moved


def say(axes, text: str) -> None:
    """Words in place of a curve."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#777777")


def save(figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """Limits of an axis a little beyond the values."""
    pad = share * (high - low) or 0.05 * abs(high) or 0.05
    return float(low - pad), float(high + pad)


def new_figure(height: float, **options) -> tuple:
    """A figure of WIDTH with one panel, or as `plt.subplots` takes it."""
    return plt.subplots(figsize=(WIDTH, height), layout="constrained", **options)


def finite(values: Sequence[float | None]) -> np.ndarray:
    """Those that are numbers."""
    return np.array([v for v in values if v is not None and np.isfinite(v)], np.float64)
