"""What the stages before the report leave of random data."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.evaluation.stage import PREDICTIONS
from dlrrec_torchrec.metrics import binary_metrics, expected_auc
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from tests.helpers.shards import make_facts

MODELS = {"dlrrec": 1.0, "bce": 0.4}
BASELINES = {"majority class": 0.0, "item mean": 0.7}
PEERS = {"SVD++": 0.5}
LIST_MODELS = {"dlrrec": 0.2}  # recall
LIST_PEERS = {"popularity": 0.1, "EASE": 0.25}
EXAMPLES = {
    "variant": "dlrrec",
    "note": "",
    "users": [
        {
            "user": "u<7>",
            "training_rows": 1234,
            "best_rated": [{"title": "Alien <1979>", "rating": 5.0}, {"title": "Grease", "rating": 4.5}],
            "recommended": [
                {"title": "Fargo", "probability": 0.914, "test_row": "liked"},
                {"title": "Speed", "probability": 0.4, "test_row": None},
            ],
        }
    ],
}


def write_evaluation(run, seed, *, truth=True, label=None, protocol="strict"):
    """An evaluation as its stage leaves it, of random rows; returns its metrics."""
    rng = np.random.default_rng(seed)
    n = 200
    p, q = rng.beta(3, 1, (2, n))
    q = (3 * p + q) / 4
    label = (rng.random(n) < p).astype(np.float32) if label is None else np.full(n, label, np.float32)
    user = rng.integers(0, 30, n).astype(np.int32)
    body = {
        "protocol": protocol,
        "rows": n,
        "positives": int(label.sum()),
        "reachable_auc": expected_auc(p) if truth else None,
        "attainable_auc": expected_auc(p, q) if truth else None,
        "truth": binary_metrics(label, p, user) if truth else None,
        "attainable": binary_metrics(label, q, user) if truth else None,
        "models": {},
        "baselines": {},
        "peers": {},
        "notes": [f"a note of seed {seed}", "a note of all"],
    }
    for kind, folder, names in (
        ("models", "predictions", MODELS),
        ("baselines", "baselines", BASELINES),
        ("peers", "peers", PEERS),
    ):
        (run.evaluation / folder).mkdir(parents=True, exist_ok=True)
        for name, share in names.items():
            probability = share * p + (1 - share) * (0.8 if share == 0 else rng.random(n))
            table = pa.table([user, user, label, label, probability, probability], schema=PREDICTIONS)
            pq.write_table(table, run.evaluation / folder / f"{name.replace(' ', '-')}.parquet")
            body[kind][name] = binary_metrics(label, probability, user)
    shift = seed / 100
    verdict = "better" if seed == 0 else "level"
    interval = {"difference": 0.04 + shift, "low": 0.01 - shift, "high": 0.07, "verdict": verdict}
    names = [f"category {k % 3}" if k % 4 else "" for k in range(30)]
    (run.evaluation / "vectors").mkdir(exist_ok=True)
    for name in MODELS:
        vectors = {"entity": range(30), "group": names, "vector": list(rng.random((30, 4)))}
        pq.write_table(pa.table(vectors), run.evaluation / "vectors" / f"{name}-items.parquet")
    (run.evaluation / "examples.json").write_text(json.dumps(EXAMPLES))
    body["differences"] = {"dlrrec": {"item mean": interval}}
    body["lists"] = write_lists(shift)
    body["cold"] = write_cold(shift)
    body["space"] = write_space(shift)
    body = jsonable(body)
    (run.evaluation / "metrics.json").write_text(json.dumps(body))
    Manifest("evaluate", {"seed": seed}, {}, rows={"test": n}, seconds=1.5, peak_memory_mib=200).write(
        run.evaluation
    )
    return body


def write_cold(shift):
    gap = {"difference": 0.02 + shift, "low": 0.01, "high": 0.03, "verdict": "better"}

    def metrics(mean, **more):
        return {m: {"mean": mean + shift, "low": 0.1, "high": 0.5} | more for m in ("recall@20", "ndcg@20")}

    models = {"dlrrec": {"likes": metrics(0.31)}, "bce": {"likes": metrics(0.29, gap=gap)}}
    task = {"users": 50, "items": 12, "relevant": 1.5, "chance": 0.25, "models": models}
    return {"tasks": {"new items, 1 review": task}, "notes": ["content alone: a reason"]}


def write_space(shift):
    def interval(value):
        return {"difference": value + shift, "low": value - 0.01, "high": value + 0.03, "verdict": "level"}

    def distances(near, share):
        return {
            "neighbours": near,
            "others": 0.9,
            "random": 0.95,
            "gap": interval(0.2),
            "nearer": interval(share),
        }

    tower = {"effective_rank": 7.25, "width": 32, "content_rank": 100.4}
    space = {}
    for name, share in (("dlrrec", 0.7), ("bce", 0.6)):
        space[name] = {
            side: {
                "entities": 30,
                "with_neighbours": 20,
                "before": distances(0.2, 0.8),
                "after": distances(0.3, share) | {"gain": interval(share - 0.8)},
                "uniformity": -3.4,
                "towers": {f"{side}_text": tower},
                "kept": 0.4,
                "kept_most": 0.6,
            }
            for side in ("user", "item")
        }
    for side in space["bce"].values():
        side["less"] = interval(0.1)
    return space


def write_lists(shift):
    def metrics(recall):
        names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr", "map", "hit") for k in (10, 20, 50)]
        of_catalogue = {"coverage@20": 0.3, "popularity@20": 0.8, "popularity of relevant": 0.7}
        return dict.fromkeys(names, recall + shift) | of_catalogue

    interval = {"difference": -0.05, "low": -0.08, "high": -0.02, "verdict": "worse"}
    return {
        "protocol": "all unseen items",
        "users": 50,
        "all_users": 60,
        "items": 30,
        "relevant": 2.5,
        "models": {name: metrics(recall) for name, recall in LIST_MODELS.items()},
        "peers": {name: metrics(recall) for name, recall in LIST_PEERS.items()},
        "chosen": {"EASE": "λ = 100"},
        "differences": {"recall@20": {"dlrrec": {"EASE": interval}}},
        "notes": ["lists of 'bce' left out: no reason"],
    }


def write_rest(run, seed):
    """What the report reads of the other stages."""
    rng = np.random.default_rng(seed)
    for kind in ("users", "items"):
        scores = [rng.random(k).astype(np.float32) for k in rng.integers(0, 4, 30)]
        rows = {
            "id": [f"{k}" for k in range(30)],
            "neighbors": [["x"] * len(s) for s in scores],
            "scores": scores,
        }
        write_table(pa.table(rows, schema=schema.NEIGHBORS), run.swing / kind)
    Manifest("swing", {}, {}, seconds=2, peak_memory_mib=300 + seed).write(run.swing)
    Manifest(
        "prepare", {}, {}, facts=make_facts(users=40, items=30).as_facts(), seconds=3, peak_memory_mib=10
    ).write(run.shards)
    Manifest("extract", {}, {}, facts={"agreement": {"price": {"macro_f1": 0.6125}}}).write(run.content)
    counted = {"users": 30, "items": 30}
    parts = {"train": counted | {"rows": 90, "positives": 65}, "test": counted | {"rows": 10, "positives": 5}}
    Manifest("split", {}, {}, facts={"parts": parts, "positive_rating": 8.0}).write(run.split)
    for name in MODELS:
        run.train(name).mkdir(parents=True)
        Manifest("train", {"model": {}, "protocol": "strict"}, {}, seconds=10.0 + seed).write(run.train(name))
        lines = [
            {
                "epoch": e,
                "train_loss": 1 / (e + 1),
                "loss": 0.5,
                "auc": 0.6 + e / 100,
                "effective_rank_item_text": 7.0,
            }
            for e in range(5)
        ]
        (run.train(name) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        (run.train(name) / "best.json").write_text(json.dumps({"epoch": 3}))
