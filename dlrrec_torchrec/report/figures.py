"""Figures of the test rows: ROC, calibration, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dlrrec_torchrec.report.style import (
    DASHES,
    GREYS,
    STYLE,
    WIDTH,
    colours,
    new_figure,
    padded,
    save,
    say,
)

Rows = tuple[np.ndarray, np.ndarray]  # label [N], and score or probability [N], of one seed


def roc_curves(
    models: Mapping[str, Sequence[Rows]],
    baselines: Mapping[str, Sequence[Rows]],
    legends: Mapping[str, str],
    path: Path,
) -> None:
    """ROC curves: the mean over seeds, and for models a band of one standard deviation.

    Args:
        models, baselines: name -> (label, score) of each seed.
        legends: name -> text in the legend, with its AUC.
    """
    with plt.rc_context(STYLE):
        figure, axes = new_figure(6.2)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, label="chance, AUC 0.500")
        curve_count = 0
        own = colours(list(models))
        looks = [(name, rows, own[name], "-", 2.0) for name, rows in models.items()]
        looks += [
            (name, rows, GREYS[k // 2 % len(GREYS)], DASHES[k % len(DASHES)], 1.3)
            for k, (name, rows) in enumerate(baselines.items())
        ]
        grid = np.linspace(0, 1, 501)
        for name, seeds, colour, dash, width in looks:
            curves = [roc_points(*rows) for rows in seeds if len(np.unique(rows[0])) == 2]
            if not curves or all(len(x) == 2 for x, _ in curves):
                continue  # undefined, or a constant, which is the diagonal
            curve_count += 1
            if len(curves) == 1:
                axes.plot(*curves[0], color=colour, ls=dash, lw=width, label=legends[name])
                continue
            heights = np.stack([np.interp(grid, *curve) for curve in curves])
            mean, deviation = heights.mean(0), heights.std(0, ddof=1)
            axes.plot(grid, mean, color=colour, ls=dash, lw=width, label=legends[name])
            if name in models:
                axes.fill_between(grid, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title="ROC on the test rows")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        if curve_count:
            figure.legend(loc="outside lower center", ncols=2)
        else:
            say(axes, "the test rows have one label only")
        save(figure, path)


def roc_points(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates [K + 1]: (0, 0), then at each distinct score from high to low."""
    values, place = np.unique(-score, return_inverse=True)
    positives = np.bincount(place, weights=label > 0, minlength=len(values))
    negatives = np.bincount(place, weights=label <= 0, minlength=len(values))
    rates = [np.concatenate([[0.0], np.cumsum(x) / x.sum()]) for x in (negatives, positives)]
    return rates[0], rates[1]


def calibration_curves(predictions: Mapping[str, Sequence[Rows]], models: Sequence[str], path: Path) -> None:
    """Observed share of positives against the mean probability, in up to ten bins of equal size.

    All seeds together, at least 40 rows in a bin. Bars are 95 % Wilson intervals. The axes show the part
    where 99 % of the predictions of the models are, and all points. Below: the distribution of the models'
    probabilities.
    """
    with plt.rc_context(STYLE):
        figure, (above, below) = new_figure(6.0, nrows=2, ncols=1, sharex=True, height_ratios=(3, 1))
        own = colours([name for name in predictions if name in models])
        x_values, y_values, spread = [], [], []
        for number, (name, seeds) in enumerate(predictions.items()):
            if all(len(np.unique(probability)) <= 1 for _, probability in seeds):
                continue  # a constant has no curve
            label, probability = (np.concatenate(part) for part in zip(*seeds, strict=True))
            colour, dash = (own[name], "-") if name in own else (GREYS[number % len(GREYS)], DASHES[1])
            x, y, low, high = reliability(label, probability, min(10, max(2, len(label) // 40)))
            above.errorbar(
                x, y, yerr=[y - low, high - y], color=colour, ls=dash, marker="o", ms=4, lw=1.5,
                elinewidth=0.8, label=name,
            )  # fmt: skip
            x_values += x.tolist()
            y_values += [*low, *high]
            if name in own:
                spread.append((name, probability))
        edges = [edge for _, p in spread for edge in np.quantile(p, [0.005, 0.995])]
        across = padded(*_ends(x_values + edges), 0.03)
        bins = np.linspace(max(across[0], 0), min(across[1], 1), 41)
        for name, probability in spread:
            below.hist(probability, bins, histtype="step", color=own[name], density=True)
        above.axline((0.5, 0.5), slope=1, color="#bbbbbb", lw=1)
        above.set(ylabel="observed share liked", title="Calibration on the test rows")
        above.set(xlim=across, ylim=padded(*_ends(y_values), 0.03))
        below.set(xlabel="predicted probability", ylabel="density")
        if above.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2)
        save(figure, path)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if len(values) else (0.0, 1.0)


def reliability(
    label: np.ndarray, probability: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of positives and its 95 % Wilson bounds, in bins of equal size."""
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, probability, side="left")
    count = np.bincount(place)
    keep = count > 0
    count = count[keep]
    mean = np.bincount(place, weights=probability)[keep] / count
    share = np.bincount(place, weights=label)[keep] / count
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half_width = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return mean, share, np.minimum(centre - half_width, share), np.maximum(centre + half_width, share)


def confusion_matrices(counts: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One 2 x 2 matrix for each name, from `tp`, `fp`, `tn`, `fn`; shaded by its row shares."""
    columns = min(2, len(counts))
    rows = -(-len(counts) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, grid = plt.subplots(
            rows, columns, figsize=(WIDTH / 2 * columns, 2.6 * rows), layout="constrained", squeeze=False
        )
        for axes in grid.flat[len(counts) :]:
            axes.axis("off")
        for axes, (name, c) in zip(grid.flat, counts.items(), strict=False):
            matrix = np.array([[c["tn"], c["fp"]], [c["fn"], c["tp"]]], float)
            share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (row, column), value in np.ndenumerate(matrix):
                dark = share[row, column] > 0.55
                text = f"{value:,.0f}\n{share[row, column]:.1%}"
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "#222222")
            axes.set_xticks([0, 1], ["no", "yes"])
            axes.set_yticks([0, 1], ["no", "yes"])
            axes.set(xlabel="predicted liked", ylabel="liked")
            axes.set_title(name, fontsize=10)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        save(figure, path)
