"""What a trained cell is worth, on the rows it was trained on and on the test rows.

Output: `predictions.parquet`, the test rows in the shards' order with their logits; where lists are asked for
`lists.parquet`, a row a user; `history.jsonl`, the training's record of each epoch; and the manifest, whose
facts are the metrics. Probabilities are the sigmoid of the logit, not calibrated afterwards, as the papers'
are, so that accuracy and false-positive rate are those of a threshold of 0 on the logit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.data.entities import Entities, load_entities
from dlrrec_torchrec.evaluation.baselines import Rows, logistic, read_rows
from dlrrec_torchrec.evaluation.peers.histories import liked_matrix, pair_matrix
from dlrrec_torchrec.metrics import binary_metrics, roc_auc, sigmoid
from dlrrec_torchrec.ranking.full_ranking import Ranking, Relevant, rank_lists
from dlrrec_torchrec.report.comparison import Column
from dlrrec_torchrec.report.results import LISTS, RATINGS
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.schema import SPLITS
from dlrrec_torchrec.training.stage import FREE

LISTED = ("recall@20", "ndcg@20")  # by content alone
_SCORED = ("accuracy", "fpr", "loss", "auc", "user_auc", "auprc")
_BY_CONTENT = (
    "By content alone: items ranked by the sum, over the items that the user liked in training, of the "
    "cosines of the reduced vectors; relevant are the user's liked test rows."
)
METRICS: dict[str, Column] = {
    **{name: RATINGS[name] for name in _SCORED},
    **{
        f"train_{name}": Column(
            f"{RATINGS[name].title}, train", ".3f", RATINGS[name].goal, "Of training rows."
        )
        for name in _SCORED
    },
    **{
        f"content_{name}": Column(f"content {LISTS[name].title}", ".3f", "high", _BY_CONTENT)
        for name in LISTED
    },
    "yes": Column(
        "says yes", ".3f", None, "Test rows that are predicted positive; at 0 an FPR of 0 is worthless."
    ),
    "parameters": Column("parameters", ",.0f", None, "Weights of the dense part and of the tables."),
    "mebibytes": Column("MiB", ",.2f", None, "Of the weights."),
    "epoch": Column("epoch", ",.0f", None, "The best one, whose weights are measured."),
    "epochs": Column("of", ",.0f", None, "Epochs that were trained."),
    "seconds": Column("s", ",.0f", None, "Seconds of the training, with what it measures after each epoch."),
    "peak_mib": Column("peak MiB", ",.0f", None, "Peak memory of the process that trained."),
}
COSTS = ("parameters", "epoch", "epochs", "seconds", "peak_mib")


def is_measured(config: RunConfig, shards_dir: Path, out_dir: Path, lists: bool = False) -> bool:
    """Whether `out_dir` has what `measure` would write of a training with these settings."""
    if not (shards_dir / "manifest.json").exists():
        return False
    return _manifest(config, shards_dir, lists).current(out_dir) is not None


def measure(
    config: RunConfig,
    train_dir: str | os.PathLike,
    shards_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    lists: bool = False,
) -> Manifest:
    """Measure a finished training.

    Args:
        config: it was trained with; list.val_users is the number of users whose lists are measured, at most.
        lists: measure lists by content alone, too.

    The manifest's facts: `train`, `test` (metrics of `binary_metrics`), `content` (metric of LISTED -> mean,
    or null), `users` of the lists, `parameters` (as the training's), `best_epoch`, `epochs`, `seconds`,
    `peak_mib`, `positives` (share of the test rows), `baseline_auc` (of a logistic
    regression on the dense features, on the test rows).
    Raises DataError as `Scorer` does.
    """
    train_dir, shards_dir = Path(train_dir), Path(shards_dir)
    manifest = _manifest(config, shards_dir, lists)
    if previous := manifest.current(out_dir):
        return previous
    trained = Manifest.read(train_dir)
    scorer = Scorer(train_dir, shards_dir, config.train.device)
    modalities = [m for m in scorer.spec.modalities if m.side == "item"]
    with stage_output(manifest, out_dir) as folder:
        train, validation, test = (read_rows(shards_dir, name) for name in SPLITS)
        entities = load_entities(shards_dir, modalities)
        facts: dict[str, Any] = {"content": None, "users": 0, "positives": float(test.label.mean())}
        facts["baseline_auc"] = roc_auc(test.label, logistic(train.dense, train.label, test.dense)[0])
        for name, rows in (("train", train), ("test", test)):
            logit = scorer.logits(scorer.split(name))
            facts[name] = binary_metrics(rows.label, sigmoid(logit), rows.user, score=logit)
        pq.write_table(
            _predictions(test, entities, logit), folder / "predictions.parquet", compression="zstd"
        )
        if lists and modalities:
            ranking = _by_content(scorer, entities, (train, validation, test), config.list.val_users)
            facts["content"] = {name: ranking.means()[name] for name in LISTED}
            facts["users"] = len(ranking.users)
            table = {"user": pa.array(entities.users.ids).take(pa.array(ranking.users))}
            table |= {name: ranking.per_user[name] for name in LISTED}
            pq.write_table(pa.table(table), folder / "lists.parquet", compression="zstd")
        shutil.copyfile(train_dir / "metrics.jsonl", folder / "history.jsonl")
        epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        facts |= {
            "parameters": trained.facts["parameters"],
            "best_epoch": trained.facts["best_epoch"],
            "epochs": trained.facts["epochs"],
            # One that was interrupted has seconds of its last process alone.
            "seconds": max(trained.seconds, sum(epoch["seconds"] for epoch in epochs)),
            "peak_mib": trained.peak_memory_mib,
        }
        manifest.rows = {"train": len(train), "test": len(test)}
        manifest.facts = jsonable(facts)
    return manifest


def measured_values(facts: dict[str, Any]) -> dict[str, float | None]:
    """Metric of METRICS -> value, of the facts that `measure` left."""
    values = {name: facts["test"][name] for name in _SCORED}
    values |= {f"train_{name}": facts["train"][name] for name in _SCORED}
    values |= {f"content_{name}": (facts["content"] or {}).get(name) for name in LISTED}
    counts, test = facts["parameters"], facts["test"]
    return values | {
        "baseline_auc": facts["baseline_auc"],
        "yes": (test["tp"] + test["fp"]) / (test["tp"] + test["fp"] + test["tn"] + test["fn"]),
        "parameters": counts["dense"] + counts["tables"],
        "mebibytes": counts["bytes"] / 2**20,
        "epoch": facts["best_epoch"],
        "epochs": facts["epochs"],
        "seconds": facts["seconds"],
        "peak_mib": facts["peak_mib"],
    }


def _manifest(config: RunConfig, shards_dir: Path, lists: bool) -> Manifest:
    settings = jsonable({name: getattr(config, name) for name in ("model", "contrastive", "list", "train")})
    for name in FREE:
        del settings["train"][name]
    settings |= {"protocol": config.protocol, "content_lists": lists}
    return Manifest("measure", settings, {"shards": Manifest.read(shards_dir).fingerprint})


def _predictions(test: Rows, entities: Entities, logit: np.ndarray) -> pa.Table:
    """user and item as the source's ids, label and logit, of the test rows."""
    ids = {
        name: pa.array(side.ids).take(pa.array(codes))
        for name, side, codes in (
            ("user", entities.users, test.user),
            ("item", entities.items, test.item),
        )
    }
    return pa.table(ids | {"label": test.label, "logit": logit})


def _by_content(scorer: Scorer, entities: Entities, rows: tuple[Rows, Rows, Rows], users: int) -> Ranking:
    """Lists by the reduced vectors of the items (`evaluation.cold`, its way "likes")."""
    shape = len(entities.users), len(entities.items)
    train, validation, test = rows
    seen = sum(pair_matrix(part.user, part.item, *shape) for part in (train, validation))
    task = Relevant.of(liked_matrix(test, *shape), seen).sample(users)
    directions = scorer.content_directions(entities.vectors)
    profiles = liked_matrix(train, *shape) @ directions
    return rank_lists(lambda chosen: profiles[chosen] @ directions.T, task, np.zeros(shape[1]), (20,))
