"""Stage `report`: the evaluations of all seeds as one table, figures and one self-contained HTML page."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.report import page
from dlrrec_torchrec.report.about import Origin, first_rejected
from dlrrec_torchrec.report.drawing import draw
from dlrrec_torchrec.report.results import best_of, gather_differences
from dlrrec_torchrec.report.space_quality import gather_space
from dlrrec_torchrec.report.stage_notes import stage_notes
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_output
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.paths import RunPaths

_OF_TASK = ("users", "items", "relevant", "chance")
ABOVE = (
    "a share above 100 % is chance: reachable and attainable AUC are expectations over the labels that the "
    "true probabilities can draw, the AUC of a row is that of the labels drawn; and the attainable one is an "
    "estimate that a model can pass"
)


def report(
    runs: Sequence[RunPaths],
    variants: Sequence[str],
    stages: Mapping[str, Sequence[Path]],
    out_dir: str | os.PathLike,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> Manifest:
    """Write `metrics.json`, `table.md`, the figures and `index.html` for the seeds `runs` into `out_dir`.

    Args:
        stages: stage (and variant) -> the folders, one for each seed or one for all, that hold its manifests
            where it has run.
        settings: "train.epochs" -> value, those that differ from the defaults; None where unknown.
        command: what makes this run again, where known.

    `metrics.json` has for every model and baseline and every metric `{"mean", "sd", "seeds"}`: the mean and
    the sample standard deviation (n - 1) over the seeds where the metric is defined, and each seed's value.
    `sd` is null for a single seed. `lists` has the same of the lists of all items, `space` what each seed's
    evaluation measured of the reduced vectors, `swing` how the neighbours' scores are spread. Raises
    DataError if a seed is not evaluated or lacks a variant, or if the seeds' protocols differ, or something
    else than a report is in `out_dir`.
    """
    known = {
        name: [Manifest.read(folder) for folder in folders if (folder / "manifest.json").exists()]
        for name, folders in stages.items()
    }
    known = {name: manifests for name, manifests in known.items() if manifests}
    inputs = {
        f"{name}/{number}": manifest.fingerprint
        for name, manifests in known.items()
        for number, manifest in enumerate(manifests)
    }
    manifest = Manifest(
        "report", {"variants": list(variants), "seeds": len(runs), "settings": jsonable(settings)}, inputs
    )
    if previous := manifest.current(out_dir):
        return previous
    check_output(out_dir, manifest.stage)
    evaluations = [_evaluation(run, variants) for run in runs]
    noted = stage_notes(known)
    with stage_output(manifest, out_dir) as folder:
        summary = summarize(evaluations, variants)
        summary["notes"] += noted
        captions = draw(runs, summary, folder)
        (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (folder / "table.md").write_text(page.markdown_table(summary), encoding="utf-8")
        images = {folder / name: caption for name, caption in captions.items()}
        origin = _origin(runs[0], settings, command)
        html = page.html_page(summary, known, images, origin, _examples(runs[0]))
        (folder / "index.html").write_text(html, encoding="utf-8")
        manifest.rows = {"seeds": len(runs), "test": summary["rows"][0]}
        manifest.facts = {
            f"auc/{name}": metrics["auc"]["mean"]
            for name, metrics in (summary["peers"] | summary["baselines"] | summary["models"]).items()
        }
    return manifest


def summarize(evaluations: Sequence[Mapping[str, Any]], variants: Sequence[str]) -> dict[str, Any]:
    """Mean, standard deviation and each seed's value of every metric of the seeds' `metrics.json`.

    Adds `reachable_share` = (AUC - 0.5) / (reachable AUC - 0.5) where the reachable AUC is known: 0 is
    chance, 1 is a model that knows the true probabilities; and `attainable_share`, the same of the AUC that
    their estimate from the training rows reaches. Raises DataError if the protocols differ.
    """
    protocols = {e["protocol"] for e in evaluations}
    if len(protocols) > 1:
        raise DataError(f"report: seeds of different protocols ({', '.join(sorted(protocols))}); train again")
    tops = {name: [e[f"{name}_auc"] for e in evaluations] for name in ("reachable", "attainable")}
    above = []

    def table(rows: Sequence[Mapping[str, float]], of: Sequence[str] = tuple(tops)) -> dict[str, Any]:
        shares = {
            f"{name}_share": [
                _share(row["auc"], top) if name in of else None for row, top in zip(rows, values, strict=True)
            ]
            for name, values in tops.items()
        }
        above.extend(s for values in shares.values() for s in values if s is not None and s > 1)
        metrics = {key: [row[key] for row in rows] for key in rows[0]} | shares
        return {key: _spread(values) for key, values in metrics.items()}

    def shared(group: str) -> dict[str, Any]:
        everywhere = [n for n in evaluations[0][group] if all(n in e[group] for e in evaluations)]
        return {name: table([e[group][name] for e in evaluations]) for name in everywhere}

    truth_known = all(e["truth"] is not None for e in evaluations)
    notes: dict[str, list[int]] = {}
    for number, evaluation in enumerate(evaluations):
        for note in evaluation["notes"] + evaluation["lists"]["notes"] + evaluation["cold"]["notes"]:
            notes.setdefault(note, []).append(number)
    several = len(evaluations) > 1
    truth = table([e["truth"] for e in evaluations], ["reachable"]) if truth_known else None
    estimated = all(e["attainable"] is not None for e in evaluations)
    attainable = table([e["attainable"] for e in evaluations]) if estimated else None
    models = {name: table([e["models"][name] for e in evaluations]) for name in variants}
    others = {group: shared(group) for group in ("baselines", "peers")}
    return jsonable(
        {
            "protocol": protocols.pop(),
            "seeds": len(evaluations),
            "rows": [e["rows"] for e in evaluations],
            "positives": [e["positives"] for e in evaluations],
            **{f"{name}_auc": _spread(values) for name, values in tops.items()},
            "truth": truth,
            "attainable": attainable,
            "models": models,
            **others,
            "differences": gather_differences(
                [e["differences"] for e in evaluations], best_of(others["baselines"] | others["peers"])
            ),
            "lists": _lists([e["lists"] for e in evaluations]),
            "cold": _content_alone([e["cold"] for e in evaluations]),
            "space": gather_space([e["space"] for e in evaluations], variants),
            "notes": [
                note + (f" (seed {', '.join(map(str, note_seeds))})" if several else "")
                for note, note_seeds in notes.items()
            ]
            + ([] if several else ["one seed: no standard deviation; differences may be chance"])
            + ([] if truth_known else ["the true probabilities are unknown: no reachable AUC"])
            + ([ABOVE] if above else []),
        }
    )


def format_table(report: str | os.PathLike | Mapping[str, Any]) -> str:
    """The table of results for a terminal: `report` is a report's folder or its summary."""
    if isinstance(report, Mapping):
        return page.text_table(report)
    path = Path(report) / "metrics.json"
    try:
        return page.text_table(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run the stage 'report' first") from None


def _lists(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The seeds' evaluations of lists in one: every metric's spread, of the methods that all seeds have."""

    def shared(group: str) -> dict[str, Any]:
        everywhere = [n for n in found[0][group] if all(n in one[group] for one in found)]
        return {
            name: {key: _spread([one[group][name][key] for one in found]) for key in found[0][group][name]}
            for name in everywhere
        }

    compared, peers = dict.fromkeys(metric for one in found for metric in one["differences"]), shared("peers")
    return {
        "protocol": found[0]["protocol"],
        **{key: [one[key] or 0 for one in found] for key in ("users", "items", "relevant")},
        "models": shared("models"),
        "peers": peers,
        "chosen": [one["chosen"] for one in found],
        "differences": {
            metric: gather_differences(
                [one["differences"].get(metric, {}) for one in found], best_of(peers, metric)
            )
            for metric in compared
        },
    }


def _content_alone(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The seeds' evaluations of content alone in one.

    Task -> `users`, `items`, `relevant`, `chance` of each seed; `models`, "VARIANT, WAY" -> metric -> spread;
    `gaps`, "VARIANT less VARIANT, WAY" -> metric -> each seed's interval.
    """
    result = {}
    for task in found[0]["tasks"]:
        seeds = [one["tasks"][task] for one in found]
        models, gaps = {}, {}
        for variant, ways in seeds[0]["models"].items():
            for way in ways:
                of_seeds = [seed["models"][variant][way] for seed in seeds]
                models[f"{variant}, {way}"] = {
                    metric: _spread([seed[metric]["mean"] for seed in of_seeds]) for metric in ways[way]
                }
                if all("gap" in facts for facts in ways[way].values()):
                    gaps[f"{next(iter(seeds[0]['models']))} less {variant}, {way}"] = {
                        metric: [seed[metric]["gap"] for seed in of_seeds] for metric in ways[way]
                    }
        facts = {key: [seed[key] or 0 for seed in seeds] for key in _OF_TASK}
        result[task] = facts | {"models": models, "gaps": gaps}
    return result


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    defined = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else None,
        "seeds": list(values),
    }


def _share(auc: float | None, reachable: float | None) -> float | None:
    if auc is None or reachable is None or reachable <= 0.5:
        return None
    return (auc - 0.5) / (reachable - 0.5)


def _evaluation(run: RunPaths, variants: Sequence[str]) -> dict[str, Any]:
    path = run.evaluation / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run the stage 'evaluate' first") from None
    if "space" not in metrics:
        raise DataError(f"{path}: an earlier version made it; run the stage 'evaluate' again")
    missing = [name for name in variants if name not in metrics["models"]]
    if missing:
        raise DataError(f"{path}: variant '{missing[0]}' is not evaluated; run the stage 'evaluate' again")
    return metrics


def _origin(run: RunPaths, settings: Mapping[str, Any] | None, command: str) -> Origin:
    return Origin(
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=command,
        settings=settings,
        items=Manifest.read(run.items) if (run.items / "manifest.json").exists() else None,
        rejected={"reviews": first_rejected(run.reviews), "items": first_rejected(run.items)},
    )


def _examples(run: RunPaths) -> dict[str, Any] | None:
    """`examples.json` of the evaluation; None where an earlier version made it."""
    path = run.evaluation / "examples.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
