"""The models' differences from the best other method, with their intervals, as one figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from dlrrec_torchrec.report.results import over_seeds
from dlrrec_torchrec.report.style import STYLE, WIDTH, save

LOOKS = {"better": ("#0072B2", "o"), "level": ("#777777", "D"), "worse": ("#D55E00", "s")}
Differences = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # metric -> model -> seeds


def forest(differences: Differences, path: Path) -> bool:
    """A panel for each metric, a row for each model: difference and 95 % interval, one line for each seed.

    Blue dots: the interval is above zero (better); orange squares: below (worse); grey diamonds: zero is in
    it. The numbers stand on the right. Returns whether there was anything to draw; else no file is written.

    Args:
        differences: title of the metric -> model -> for each seed `against`, `difference`, `low`, `high`
            and `verdict` (`results.gather_differences`).
    """
    known = {title: models for title, models in differences.items() if models}
    if not known:
        return False
    heights = [
        0.75 + sum(max(0.38, 0.14 * len(seeds)) for seeds in models.values()) for models in known.values()
    ]
    with plt.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False}):
        figure, panels = plt.subplots(
            len(known), 1, figsize=(WIDTH, sum(heights)), height_ratios=heights, layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for axes, (title, models) in zip(panels.flat, known.items(), strict=True):
            rival = next(iter(models.values()))[0]["against"]
            axes.set_title(f"{title}, less that of {rival}", loc="left", fontsize=10)
            axes.axvline(0, color="#333333", lw=0.8)
            for row, (_, seeds) in enumerate(models.items()):
                offsets = (np.arange(len(seeds)) - (len(seeds) - 1) / 2) * min(0.16, 0.7 / len(seeds))
                for seed, offset in zip(seeds, offsets, strict=True):
                    colour, marker = LOOKS[seed["verdict"]]
                    axes.plot([seed["low"], seed["high"]], [row + offset] * 2, color=colour, lw=2)
                    axes.plot(seed["difference"], row + offset, marker, color=colour, ms=6)
                axes.annotate(
                    numbers(seeds), (1.03, row), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                )  # fmt: skip
            names = [textwrap.fill(name, 16) for name in models]
            axes.set_yticks(range(len(models)), names, fontsize=9)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8)
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-9 else f"{value:+.3g}")
            axes.set_ylim(len(models) - 0.4, -0.6)
            axes.margins(x=0.08)
        save(figure, path)
    return True


def numbers(seeds: Sequence[Mapping[str, Any]]) -> str:
    """The difference and its interval, of several seeds the means, and what they say."""
    mean, low, high, verdict = over_seeds(seeds)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]\n{verdict}"
