"""What changes over the epochs: losses, AUC, lists, contrastive losses, effective rank of the towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dlrrec_torchrec.report.style import DASHES, STYLE, colours, label_ends, new_figure, padded, save, say

Histories = Mapping[str, Sequence[Sequence[Mapping]]]  # variant -> for each seed the epochs' records
EFFECTIVE_RANK = "effective_rank_"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: some metrics of the records, each with its dash."""

    title: str
    axis: str
    keys: Mapping[str, str]  # metric -> its word in the legend
    caption: str


def panels(histories: Histories) -> dict[str, Panel]:
    """File name -> panel, of what the histories hold; loss and AUC are always there."""
    records = [record for seeds in histories.values() for epochs in seeds for record in epochs]
    held_out = "test" if any(record.get("split") == "test" for record in records) else "validation"
    towers = sorted({key for record in records for key in record if key.startswith(EFFECTIVE_RANK)})
    training = "train_loss_rec" if any("train_loss_rec" in r for r in records) else "train_loss"
    dot = "a dot marks the selected epoch, epoch 0 is the model before training"
    found = {
        "loss.png": Panel(
            "Loss", "nats", {"loss": held_out, training: "training"}, f"Loss over the epochs; {dot}"
        ),
        "auc.png": Panel(f"AUC on the {held_out} rows", "AUC", {"auc": ""}, f"AUC over the epochs; {dot}"),
        "lists.png": Panel(
            f"Lists of the {held_out} users", "NDCG@20", {"ndcg@20": ""}, f"Lists over the epochs; {dot}"
        ),
        "contrastive.png": Panel(
            "Contrastive losses, training rows",
            "InfoNCE (nats)",
            {"train_loss_ii": "items", "train_loss_uu": "users"},
            "Contrastive losses over the epochs",
        ),
        "effective_rank.png": Panel(
            "Effective rank of the reduced vectors",
            "dimensions in use",
            {key: key.removeprefix(EFFECTIVE_RANK).replace("_", " ") for key in towers},
            "Effective rank over the epochs: how many dimensions of a tower's vectors carry content; near 1, "
            "all entities look alike",
        ),
    }
    return {
        name: panel
        for name, panel in found.items()
        if name in ("loss.png", "auc.png") or any(record.get(key) for record in records for key in panel.keys)
    }


def draw_panel(
    panel: Panel, histories: Histories, best: Mapping[str, Sequence[int | None]], path: Path
) -> None:
    """Each variant in a colour of its own with its name at the end of its line; one line for each seed.

    Args:
        best: variant -> for each seed the selected epoch, None where unknown.
    """
    colour = colours(list(histories))
    dashes = dict(zip(panel.keys, ("-", DASHES[1], DASHES[0], DASHES[2]), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = new_figure(3.6)
        ends: dict[str, tuple[float, float]] = {}
        values = []
        for name, seeds in histories.items():
            for records, chosen in zip(seeds, best[name], strict=True):
                for key, dash in dashes.items():
                    points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
                    if not any(value for _, value in points):
                        continue  # absent, or a term that is off
                    axes.plot(*zip(*points, strict=True), color=colour[name], ls=dash, lw=1.5, alpha=0.85)
                    marked = [] if key.startswith("train") else [p for p in points if p[0] == chosen]
                    for point in marked:
                        axes.plot(*point, "o", color=colour[name], ms=5)
                    ends.setdefault(name, points[-1])
                    values += [value for _, value in points]
        axes.set(xlabel="epoch", ylabel=panel.axis)
        axes.set_title(panel.title, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if values:
            axes.set_ylim(padded(min(values), max(values)))
            label_ends(axes, ends, colour)
        else:
            say(axes, "not recorded")
        used = {key: word for key, word in panel.keys.items() if word}
        if len(used) > 1:
            handles = [Line2D([], [], color="#555555", ls=dashes[k], label=w) for k, w in used.items()]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
        save(figure, path)
