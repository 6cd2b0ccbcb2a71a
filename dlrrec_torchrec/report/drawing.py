"""The figures of a report, out of what the runs of all seeds have left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dlrrec_torchrec.report import figures
from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.curves import draw_panel, panels
from dlrrec_torchrec.report.forest import forest
from dlrrec_torchrec.report.results import LISTS, RATINGS, best_of
from dlrrec_torchrec.report.space_map import mapped, space_map
from dlrrec_torchrec.report.space_quality import draw_distances
from dlrrec_torchrec.report.swing_quality import draw_scores, swing_quality
from dlrrec_torchrec.store.paths import RunPaths


def draw(runs: Sequence[RunPaths], summary: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw every figure into `folder`, and note in the summary what could not be drawn.

    Returns file name -> caption, in the order of the page.
    """
    captions: dict[str, str] = {}
    compared = {RATINGS["auc"].title: summary["differences"]}
    compared |= {LISTS[metric].title: found for metric, found in summary["lists"]["differences"].items()}
    if forest(compared, folder / "differences.png"):
        captions["differences.png"] = (
            "Difference of each model from the best other method, with the 95 % interval of drawing the test "
            "users again. Blue dot: better; orange square: worse; grey diamond: zero is in the interval"
        )
    captions |= _of_test_rows(runs, summary, folder)
    captions |= _of_epochs(runs, summary, folder)
    captions |= _space(runs, summary, folder)
    scores, summary["swing"] = swing_quality(runs)
    if any(map(len, scores.values())):
        draw_scores(scores, summary["swing"], folder / "swing_scores.png")
        captions["swing_scores.png"] = (
            "Scores of the SWING neighbours that were kept; the line is the share of them at or above a score"
        )
    else:
        summary["notes"].append("no SWING neighbours: their scores are not drawn")
    captions["confusion.png"] = captions.pop("confusion.png")  # the tallest one: last
    return captions


def _of_test_rows(runs: Sequence[RunPaths], summary: dict[str, Any], folder: Path) -> dict[str, str]:
    """ROC, calibration and confusion matrices, of the models, the baselines and the best peer."""
    models, baselines = list(summary["models"]), list(summary["baselines"])
    tables = {
        name: [_prediction(run.evaluation / "predictions" / f"{name}.parquet") for run in runs]
        for name in models
    }
    others = {name: "baselines" for name in baselines}
    if (rival := best_of(summary["baselines"] | summary["peers"])) in summary["peers"]:
        others[rival] = "peers"
    plain = {
        name: [
            _prediction(run.evaluation / group / f"{name.replace(',', '').replace(' ', '-')}.parquet")
            for run in runs
        ]
        for name, group in others.items()
    }
    metrics = summary["models"] | {name: summary[group][name] for name, group in others.items()}
    legends = {name: f"{name}, {cell(m['auc'])}" for name, m in metrics.items()}
    figures.roc_curves(
        {name: [(t["label"], t["score"]) for t in seeds] for name, seeds in tables.items()},
        {name: [(t["label"], t["score"]) for t in seeds] for name, seeds in plain.items()},
        legends,
        folder / "roc.png",
    )
    probabilities = {
        name: [(t["label"], t["probability"]) for t in seeds] for name, seeds in (tables | plain).items()
    }
    figures.calibration_curves(probabilities, models, folder / "calibration.png")
    counts = {name: {k: sum(m[k]["seeds"]) for k in ("tp", "fp", "tn", "fn")} for name, m in metrics.items()}
    figures.confusion_matrices(counts, folder / "confusion.png")
    return {
        "roc.png": "ROC curves; beside each name its AUC",
        "calibration.png": "Calibration, where the predictions are: on the diagonal, probabilities are right",
        "confusion.png": "Confusion matrices at a threshold of 0.5, counts of all seeds and shares of a row",
    }


def _of_epochs(runs: Sequence[RunPaths], summary: dict[str, Any], folder: Path) -> dict[str, str]:
    histories = {name: [_history(run.train(name)) for run in runs] for name in summary["models"]}
    best = {name: [_best_epoch(run.train(name)) for run in runs] for name in summary["models"]}
    absent = [name for name, seeds in histories.items() if not any(seeds)]
    summary["notes"] += [f"no metrics.jsonl of '{name}': no learning curve" for name in absent]
    found = panels(histories)
    for name, panel in found.items():
        draw_panel(panel, histories, best, folder / name)
    return {name: panel.caption for name, panel in found.items()}


def _space(runs: Sequence[RunPaths], summary: dict[str, Any], folder: Path) -> dict[str, str]:
    """Maps of users and items of the first seed, and distances of all seeds."""
    captions = {}
    if draw_distances(summary["space"], folder / "space_distances.png"):
        captions["space_distances.png"] = (
            "Do SWING neighbours lie together? Left: mean cosine distance to an entity's SWING neighbours, "
            "to those of others and to random entities, of the content vectors (before the towers) and of "
            "each variant's reduced vectors (after). Right: how often the own neighbour is nearer than "
            "another's, with the 95 % interval; grey line: chance"
        )
    names = mapped(list(summary["models"]))
    seed = " of the first seed" if len(runs) > 1 else ""
    for kind in ("items", "users"):
        files = {name: runs[0].evaluation / "vectors" / f"{name}-{kind}.parquet" for name in names}
        files = {name: file for name, file in files.items() if file.exists()}
        drawn = space_map(files, kind, folder / f"space_{kind}.png")
        if not drawn:
            summary["notes"].append(f"too few {kind} with content in the model: no map of them")
            continue
        what = (
            "the items' first category" if kind == "items" else "the category that most of their items have"
        )
        captions[f"space_{kind}.png"] = (
            f"{drawn:,} {kind} by the reduced vectors{seed} of {' and of '.join(files)}: t-SNE, which "
            f"keeps neighbours together and says nothing of large distances. Colours: {what} (price tags "
            "where there are no categories); where one colour keeps together, the towers keep that content"
        )
    return captions


def _history(train_dir: Path) -> list[dict[str, Any]]:
    path = train_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _best_epoch(train_dir: Path) -> int | None:
    path = train_dir / "best.json"
    return json.loads(path.read_text(encoding="utf-8")).get("epoch") if path.exists() else None


def _prediction(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path, columns=["label", "probability", "score"])
    return {name: table[name].to_numpy() for name in table.column_names}
