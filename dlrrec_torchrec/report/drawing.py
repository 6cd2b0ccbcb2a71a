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
from dlrrec_torchrec.report.item_map import item_map
from dlrrec_torchrec.report.results import LISTS, RATINGS, best_of
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.shard_facts import ShardFacts


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
    captions |= _item_map(runs, summary, folder)
    scores, coverage = _swing(runs)
    if any(scores.values()):
        figures.swing_scores(scores, coverage, folder / "swing_scores.png")
        captions["swing_scores.png"] = "Scores of the SWING neighbours"
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


def _item_map(runs: Sequence[RunPaths], summary: dict[str, Any], folder: Path) -> dict[str, str]:
    vectors = runs[0].evaluation / "vectors.parquet"
    if not vectors.exists():
        return {}
    drawn = item_map(vectors, folder / "item_map.png")
    if not drawn:
        summary["notes"].append("too few items with content in the model: no map of them")
        return {}
    name = next(iter(summary["models"]))
    seed = " of the first seed" if len(runs) > 1 else ""
    return {
        "item_map.png": f"{drawn:,} items by the reduced content vectors of {name}{seed}: t-SNE, which keeps "
        "neighbours together and says nothing of large distances; colours: the items' first category"
    }


def _swing(runs: Sequence[RunPaths]) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """For users and items: each seed's neighbour scores, and as text how many entities have neighbours."""
    scores: dict[str, list[np.ndarray]] = {"users": [], "items": []}
    coverage = {}
    for kind, seed_scores in scores.items():
        with_any = entities = 0
        for run in runs:
            if not (run.swing / kind).exists():
                continue
            lists = read_table(run.swing / kind, schema.NEIGHBORS, ["scores"])["scores"].combine_chunks()
            seed_scores.append(lists.flatten().to_numpy())
            with_any += int((lists.value_lengths().to_numpy(zero_copy_only=False) > 0).sum())
            entities += int(getattr(ShardFacts.read(run.shards), kind))
        coverage[kind] = (
            f"{with_any / max(entities, 1):.0%} have neighbours" if seed_scores else "not computed"
        )
    return scores, coverage


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
