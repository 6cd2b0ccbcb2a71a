"""Stage `evaluate`: the test rows scored by every trained variant and by the baselines, and their metrics.

Output: `metrics.json`, `predictions/VARIANT.parquet`, `baselines/NAME.parquet`, `peers/NAME.parquet` and,
where the true probabilities are known, `truth.parquet` and `attainable.parquet`: each has the test rows in
the shards' order. And `lists/NAME.parquet`: each user's metrics of the list of all items; and of the first
variant `examples.json` (`evaluation.samples`), and `vectors/VARIANT-users.parquet`, `-items.parquet`
(`evaluation.space`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.config.automatic import latest_items
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.evaluation.baselines import Prediction, Rows, baseline_predictions, read_rows
from dlrrec_torchrec.evaluation.cold import ALL_ITEMS, ColdLists, all_items, new_items
from dlrrec_torchrec.evaluation.lists import Lists, auc_differences, file_name
from dlrrec_torchrec.evaluation.peers.rating_peers import rating_peers
from dlrrec_torchrec.evaluation.samples import example_lists
from dlrrec_torchrec.evaluation.space import SAMPLE, ReducedSpace
from dlrrec_torchrec.evaluation.truth import attainable, true_probabilities
from dlrrec_torchrec.metrics import binary_metrics, expected_auc, user_auc
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest, file_digest, jsonable, stage_output
from dlrrec_torchrec.store.progress import track
from dlrrec_torchrec.store.shard_facts import ShardFacts

PREDICTIONS = pa.schema(
    [
        ("user", pa.int32()),  # codes of the shards
        ("item", pa.int32()),
        ("label", pa.float32()),
        ("rating", pa.float32()),
        ("probability", pa.float64()),
        ("score", pa.float64()),  # what ranks the rows: a model's logit, a baseline's raw value
    ]
)


def evaluate(
    train_dirs: Mapping[str, str | os.PathLike],
    shards_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    truth: str | os.PathLike | None = None,
    law: str | os.PathLike | None = None,
    batch_size: int = 4096,
    device: str = "auto",
    peers: bool = True,
    list_users: int = 10_000,
    split_dir: str | os.PathLike | None = None,
    content_dir: str | os.PathLike | None = None,
) -> Manifest:
    """Score the test rows and rank all items by each trained variant; write what comes out to `out_dir`.

    Args:
        train_dirs: variant name -> folder of its finished training.
        truth: Parquet of `user_id`, `item_id`, `probability`: the true probability of a positive for every
            test row, where a synthetic world knows it. It gives the AUC that is reachable on these rows.
        law: what the probabilities are made of, for a `truth` that has the types that texts like and avoid
            too. It gives the AUC that is attainable from the training rows (`attainable_probability`).
        batch_size: rows scored at once; does not change the result.
        device: "auto", "cpu" or "cuda".
        peers: fit other people's methods to the same rows (`evaluation.peers`) too.
        list_users: users drawn for the lists, at most.
        split_dir, content_dir: what split and extract wrote; where split.cold_items set items apart, these
            are a test of content alone.

    `metrics.json` holds `protocol`, `rows`, `positives`, `reachable_auc` and `attainable_auc` (in
    expectation of the labels, or null), `truth` and `attainable` (metrics of the true probabilities and of
    the estimated ones, or null), `models`, `baselines` and `peers` (name -> metrics of `binary_metrics`),
    `differences` (`auc_differences` from every baseline and peer), `lists` (`Lists.result`), `cold`
    (`ColdLists.result`), `space` (`ReducedSpace.result`) and `notes`.
    Raises DataError if a variant is not trained, the variants' protocols differ, or `truth` misses a row.
    """
    train_dirs = {name: Path(folder) for name, folder in train_dirs.items()}
    trained = {name: Manifest.read(folder) for name, folder in train_dirs.items()}
    protocol = _protocol(trained)
    shards = Manifest.read(shards_dir)
    inputs = {"shards": shards.fingerprint}
    inputs |= {f"train/{name}": manifest.fingerprint for name, manifest in trained.items()}
    if truth is not None:
        inputs["truth"] = file_digest([path for path in (truth, law) if path is not None])
    settings = {"variants": list(train_dirs), "protocol": protocol, "peers": peers, "list_users": list_users}
    settings |= {"new_items": split_dir is not None, "space": SAMPLE}
    manifest = Manifest("evaluate", settings, inputs)
    if previous := manifest.current(out_dir):
        return previous

    with stage_output(manifest, out_dir) as folder:
        train_rows, validation, rows = (read_rows(shards_dir, name) for name in schema.SPLITS)
        facts = ShardFacts.of(shards, shards_dir)
        sequences = Sequences.read(shards_dir) if latest_items(facts.later) else None
        lists = Lists(train_rows, validation, rows, facts, list_users, sequences)
        entities = load_entities(shards_dir, [m for m in facts.modalities if m.side == "item"])
        tasks = {ALL_ITEMS: all_items(entities, lists.task)}
        if split_dir is not None:
            folders = map(Path, (split_dir, content_dir, shards_dir))
            tasks |= new_items(*folders, facts, entities, list_users)
        cold = ColdLists(tasks, lists.histories.liked, entities)
        types = (Path(shards_dir) / "categories.txt").read_text(encoding="utf-8").splitlines()
        space = ReducedSpace(shards_dir, facts.modalities, entities, train_rows, types)
        result: dict[str, Any] = {
            "protocol": protocol,
            "rows": len(rows),
            "positives": int(rows.label.sum()),
            "reachable_auc": None,
            "attainable_auc": None,
            "truth": None,
            "attainable": None,
            "models": {},
            "baselines": {},
            "peers": {},
            "notes": [],
        }
        scores: dict[str, dict[str, np.ndarray]] = {"models": {}, "baselines": {}, "peers": {}}

        def keep(group: str, name: str, prediction: Prediction, file: Path) -> None:
            result[group][name] = _write(prediction, rows, file)
            result["notes"] += [f"{name}: {prediction.note}"] if prediction.note else []
            scores[group][name] = prediction.score

        if truth is not None:
            probability = true_probabilities(truth, shards_dir, rows)
            true = Prediction(probability, probability)
            result["reachable_auc"] = expected_auc(probability)
            result["truth"] = _write(true, rows, folder / "truth.parquet")
            if law is not None:
                estimate = attainable(truth, law, shards_dir, train_rows, rows)
                result["attainable_auc"] = expected_auc(probability, estimate)
                prediction = Prediction(estimate, estimate)
                result["attainable"] = _write(prediction, rows, folder / "attainable.parquet")
        for name, train_dir in train_dirs.items():
            scorer = Scorer(train_dir, shards_dir, device, batch_size)
            logit = score_rows(scorer, shards_dir, rows, f"score by '{name}'")
            calibration = scorer.calibration
            prediction = Prediction(calibration.probability(logit), logit, calibration.note)
            keep("models", name, prediction, folder / "predictions" / f"{name}.parquet")
            lists.rank_model(name, scorer, scorer.entities)
            cold.rank_model(name, scorer)
            raised = [alarm for alarm in trained[name].facts.get("alarms", []) if not alarm["over"]]
            space.measure(name, scorer, [alarm["name"] for alarm in raised])
            if name == next(iter(train_dirs)):
                examples = example_lists(name, scorer, scorer.entities, train_rows, rows, lists.task)
                text = json.dumps(jsonable(examples), indent=2, ensure_ascii=False)
                (folder / "examples.json").write_text(text + "\n", encoding="utf-8")
        predictions, skipped = baseline_predictions(train_rows, rows, list(shards.facts["dense"]))
        for name, prediction in predictions.items():
            keep("baselines", name, prediction, folder / "baselines" / f"{file_name(name)}.parquet")
        if peers:
            others = list(rating_peers(train_rows, validation, rows, facts.rating_range))
            for name, predict in track(others, "peers", len(others), transient=True):
                if isinstance(predict, str):
                    result["notes"].append(f"peer '{name}' left out: {predict}")
                else:
                    keep("peers", name, predict(), folder / "peers" / f"{file_name(name)}.parquet")
            lists.rank_peers()
        result["differences"] = auc_differences(rows, scores["models"], scores["baselines"] | scores["peers"])
        result["lists"] = lists.result(folder / "lists")
        result["cold"], result["space"] = cold.result(), space.result()
        space.write(folder / "vectors")
        result["notes"] += space.notes
        result["notes"] += [f"baseline '{name}' left out: {why}" for name, why in skipped.items()]
        result["notes"] += _class_notes(rows)
        text = json.dumps(jsonable(result), indent=2)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        manifest.rows = {"test": len(rows)}
        manifest.facts = jsonable(
            {key: result[key] for key in ("protocol", "reachable_auc", "attainable_auc")}
            | {
                f"auc/{name}": m["auc"]
                for name, m in (result["baselines"] | result["peers"] | result["models"]).items()
            }
        )
    return manifest


def score_rows(scorer: Scorer, shards_dir: str | os.PathLike, rows: Rows, title: str) -> np.ndarray:
    """Logits f64 [N] of the test rows, in the shards' order.

    Raises DataError if the loader's rows are not `rows`, or a logit is not a number.
    """
    loader = scorer.split("test")
    users, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]

    def watched() -> Iterator[Batch]:
        for batch in track(loader, title, len(loader), transient=True):
            users.append(batch.user.numpy())
            items.append(batch.item.numpy())
            yield batch

    logits = scorer.logits(watched())
    for codes, expected in ((users, rows.user), (items, rows.item)):
        if not np.array_equal(np.concatenate(codes), expected):
            raise DataError(f"{shards_dir}: the loader's test rows are not the shards'; run prepare again")
    return logits


def _write(prediction: Prediction, rows: Rows, path: Path) -> dict[str, float]:
    """Write one prediction table and return its metrics; those of ranking are by score."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [rows.user, rows.item, rows.label, rows.rating, prediction.probability, prediction.score]
    pq.write_table(pa.table([pa.array(c) for c in columns], schema=PREDICTIONS), path, compression="zstd")
    return binary_metrics(rows.label, prediction.probability, rows.user, score=prediction.score)


def _protocol(trained: Mapping[str, Manifest]) -> str:
    if not trained:
        raise DataError("evaluate: no variant to evaluate; name one under 'variants' in the configuration")
    protocols = {name: manifest.config.get("protocol", "unknown") for name, manifest in trained.items()}
    if len(set(protocols.values())) > 1:
        listed = ", ".join(f"{name}: {protocol}" for name, protocol in protocols.items())
        raise DataError(
            f"evaluate: the variants were trained under several protocols ({listed}); train again"
        )
    return next(iter(protocols.values()))


def _class_notes(rows: Rows) -> list[str]:
    if not len(rows):
        return ["there are no test rows: no metric is defined"]
    if len(np.unique(rows.label)) < 2:
        only = "positive" if rows.label[0] else "negative"
        return [f"all test rows are {only}: AUC and what else compares the two labels is undefined"]
    if math.isnan(user_auc(rows.label, np.zeros(len(rows)), rows.user)[0]):
        return ["no user has test rows of both labels: the per-user AUC is undefined"]
    return []
