"""The figures of the report, in colours that colour-blind readers can distinguish (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter

MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_COLOURS = ("#999999", "#777777", "#555555", "#333333")
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

Rows = tuple[np.ndarray, np.ndarray]  # label [N], and score or probability [N], of one seed


def learning_curves(
    histories: Mapping[str, Sequence[Sequence[Mapping]]], best: Mapping[str, Sequence[int | None]], path: Path
) -> None:
    """Loss, AUC and the contrastive losses over the epochs: one colour a variant, one line a seed.

    Args:
        histories: variant -> for each seed the epochs' records: `epoch`, `split` (the rows that select the
            model), and, where they exist, `train_loss`, `loss` and `auc` (of `split`), `train_loss_ii` and
            `train_loss_uu`.
        best: variant -> for each seed the selected epoch, None where unknown.
    """
    all_records = [record for seeds in histories.values() for records in seeds for record in records]
    held_out = "test" if any(record.get("split") == "test" for record in all_records) else "validation"
    lines = {
        "loss": {"train_loss": ("training", DASHES[3]), "loss": (held_out, "-")},
        "auc": {"auc": ("", "-")},
        "contrastive": {"train_loss_ii": ("items", "-"), "train_loss_uu": ("users", DASHES[1])},
    }
    lines = {
        k: v for k, v in lines.items() if k != "contrastive" or any(r.get(n) for r in all_records for n in v)
    }
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(lines), figsize=(1 + 4.5 * len(lines), 3.9), layout="constrained"
        )
        for axes, keys in zip(panels, lines.values(), strict=True):
            for colour, (name, seeds) in zip(_cycle(MODEL_COLOURS), histories.items(), strict=False):
                for key, (word, dash) in keys.items():
                    for number, records in enumerate(seeds):
                        label = (f"{name}, {word}" if word else name) if number == 0 else None
                        _line(axes, records, key, colour, dash, label, best[name][number])
            axes.set(xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
            else:
                _say(axes, "not recorded")
        panels[0].set(ylabel="loss (nats)", title="Loss")
        panels[1].set(ylabel="AUC", title=f"AUC on the {held_out} rows")
        if "contrastive" in lines:
            panels[2].set(ylabel="InfoNCE (nats)", title="Contrastive losses on the training rows")
        _save(figure, path)


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
        figure, axes = plt.subplots(figsize=(6.2, 6.2), layout="constrained")
        axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, label="chance, AUC 0.500")
        curve_count = 0
        looks = [(name, rows, colour, "-", 2.0) for (name, rows), colour in _paired(models, MODEL_COLOURS)]
        looks += [
            (name, rows, colour, DASHES[k % len(DASHES)], 1.3)
            for k, ((name, rows), colour) in enumerate(_paired(baselines, BASELINE_COLOURS))
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
            axes.legend(loc="lower right")
        else:
            _say(axes, "the test rows have one label only")
        _save(figure, path)


def roc_points(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates [K + 1]: (0, 0), then at each distinct score from high to low."""
    values, place = np.unique(-score, return_inverse=True)
    positives = np.bincount(place, weights=label > 0, minlength=len(values))
    negatives = np.bincount(place, weights=label <= 0, minlength=len(values))
    rates = [np.concatenate([[0.0], np.cumsum(x) / x.sum()]) for x in (negatives, positives)]
    return rates[0], rates[1]


def calibration_curves(predictions: Mapping[str, Sequence[Rows]], models: Sequence[str], path: Path) -> None:
    """Observed share of positives against the mean probability, in up to ten bins of equal size.

    All seeds together, at least 40 rows in a bin. Bars are 95 % Wilson intervals. Below: the distribution of
    the models' probabilities.
    """
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(6.2, 6.4), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        above.plot([0, 1], [0, 1], color="#bbbbbb", lw=1)
        model_colours, baseline_colours = _cycle(MODEL_COLOURS), _cycle(BASELINE_COLOURS)
        for name, seeds in predictions.items():
            if all(len(np.unique(probability)) <= 1 for _, probability in seeds):
                continue  # a constant has no curve
            label, probability = (np.concatenate(part) for part in zip(*seeds, strict=True))
            model = name in models
            colour, dash = (next(model_colours), "-") if model else (next(baseline_colours), DASHES[1])
            x, y, low, high = reliability(label, probability, min(10, max(2, len(label) // 40)))
            above.errorbar(
                x, y, yerr=[y - low, high - y], color=colour, ls=dash, marker="o", ms=4, lw=1.5,
                elinewidth=0.8, label=name,
            )  # fmt: skip
            if model:
                below.hist(probability, np.linspace(0, 1, 41), histtype="step", color=colour, density=True)
        above.set(
            ylabel="observed share of positives", title="Calibration on the test rows", ylim=(-0.02, 1.02)
        )
        below.set(xlabel="predicted probability", ylabel="density", xlim=(-0.01, 1.01))
        if above.get_legend_handles_labels()[0]:
            above.legend(loc="upper left")
        _save(figure, path)


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
    columns = min(3, len(counts))
    rows = -(-len(counts) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.3 * columns, 3.1 * rows), layout="constrained", squeeze=False
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
            axes.set(xlabel="predicted", ylabel="actual", title=name)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        _save(figure, path)


def swing_scores(scores: Mapping[str, Sequence[np.ndarray]], coverage: Mapping[str, str], path: Path) -> None:
    """Histogram of the neighbours' SWING scores on a log axis, for users and for items; all seeds together.

    Args:
        scores: "users" and "items" -> for each seed the scores of all kept neighbours.
        coverage: the same keys -> text on how many entities have neighbours.
    """
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(scores), figsize=(10, 3.4), layout="constrained", squeeze=False)
        for axes, colour, (kind, seeds) in zip(grid[0], MODEL_COLOURS, scores.items(), strict=False):
            values = np.concatenate([np.zeros(0), *seeds])
            values = values[values > 0]
            axes.set(
                xlabel="SWING score", ylabel="neighbours", title=f"{kind.capitalize()}: {coverage[kind]}"
            )
            if not len(values):
                _say(axes, "no neighbours")
                continue
            low, high = np.log10(values.min()), np.log10(values.max())
            pad = 0.05 * (high - low) or 0.5
            axes.hist(values, np.logspace(low - pad, high + pad, 41), color=colour, alpha=0.85)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}" if high - low < 1 else NullFormatter())
        _save(figure, path)


def _line(
    axes, records: Sequence[Mapping], key: str, colour: str, dash, label: str | None, best: int | None
) -> None:
    """One metric over the epochs, a dot at the selected one; nothing where it is absent or always 0."""
    points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if not any(value for _, value in points):
        return
    axes.plot(*zip(*points, strict=True), color=colour, ls=dash, lw=1.4, alpha=0.8, label=label)
    for epoch, value in points:
        if epoch == best and not key.startswith("train"):
            axes.plot(epoch, value, "o", color=colour, ms=5)


def _paired(items_by_name: Mapping, colours: Sequence[str]) -> list[tuple]:
    return list(zip(items_by_name.items(), _cycle(colours), strict=False))


def _cycle(colours: Sequence[str]):
    while True:
        yield from colours


def _say(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#777777")


def _save(figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
