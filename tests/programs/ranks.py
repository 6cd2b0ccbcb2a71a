"""What the tests run on two ranks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from dlrrec_torchrec.config import (
    SHARDING_TYPES,
    ContrastiveConfig,
    ListConfig,
    ModelConfig,
    TableConfig,
    TrainConfig,
)
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.sharding import apply as parallel
from dlrrec_torchrec.sharding.apply import plan_tables
from dlrrec_torchrec.sharding.describe import to_json
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import build, papers_model

# Adam turns the rounding noise of a gradient that is exactly 0, as that of a bias before batch normalisation,
# into whole steps. With layer normalisation there is none such, so that equal means equal.
MODEL = papers_model(dropout=0.0, tower_norm="layer", user_id=True, wide=False)
WITH_WIDE_PATH = dataclasses.replace(MODEL, wide=True)
# The planner cuts columns into parts of at least 128.
BROAD = ModelConfig(**vars(MODEL) | {"embedding_dim": 256, "interaction": "dcn"})
IN_TABLES = ModelConfig(**vars(MODEL) | {"vectors": "table"})
BOTH_IDS = ModelConfig(**vars(MODEL) | {"item_id": True})
TRAIN = TrainConfig(
    epochs=2, batch_size=60, lr=0.003, weight_decay=0.0, device="cpu", select="loss", warmup_steps=3
)
VARIANTS = {
    "adam": TRAIN,
    "wide": TRAIN,
    "table_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad", "schedule": "cosine"}),
    "row_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad"}),
    "column_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "sgd", "table_lr": 0.1}),
    "mixed": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad"}),
    "content": TRAIN,
    "ids": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad"}),
    "half": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad"}),
    "popularity": TRAIN,
    "swing_hard": TRAIN,
    "refresh": TRAIN,
}
# What its contrastive terms do otherwise.
TERMS = {
    "popularity": {"negatives": "popularity", "positive": "sample"},
    "swing_hard": {"negatives": "swing_hard", "positive": "sample"},
    "refresh": {"negatives": "swing_hard", "refresh": 1, "positive": "sample"},
}
TABLES = {
    "mixed": {
        "category": TableConfig(sharding=["data_parallel"]),
        "user": TableConfig(sharding=["row_wise"]),
    },
    "content": {
        "user_text": TableConfig(sharding=["row_wise"], rows=64),
        "item_text": TableConfig(sharding=["table_wise"]),
        "item_image": TableConfig(sharding=["column_wise"]),
    },
    "ids": {
        "category": TableConfig(sharding=["data_parallel"]),
        "user": TableConfig(sharding=["table_wise"], rows=20, ids="hash"),
        "item": TableConfig(rows=256, ids="managed"),
    },
    "half": {"user": TableConfig(dtype="fp16", sharding=["row_wise"], rows=64)},
}
TABLES["refresh"] = TABLES["content"]
# Beside the trainings of VARIANTS: what a step may do otherwise. Without contrastive terms, whose means are
# over other micro-batches on another number of ranks.
STEPS = {
    "accumulate": {"accumulate": 3, "clip_norm": 0.2},
    "comms": {"comms": "fp16", "table_optimizer": "rowwise_adagrad"},
    "exact": {"table_optimizer": "rowwise_adagrad"},
}


def sharded(model: ModelConfig, name: str) -> ModelConfig:
    """The model, its tables kept as TABLES or the variant's name, if it is a sharding type, say."""
    types = [name] if name in SHARDING_TYPES else []
    tables = {table: TableConfig(sharding=types) for table in ("category", "user")}
    return dataclasses.replace(model, tables=TABLES.get(name, tables))


def train_all(shards: Path, small: Path, out: Path) -> None:
    """Each variant on `shards`, and a training whose one validation row leaves a rank padding alone."""
    models = {"wide": WITH_WIDE_PATH, "column_wise": BROAD, "content": IN_TABLES, "ids": BOTH_IDS}
    models["refresh"] = IN_TABLES
    for name, settings in VARIANTS.items():
        model = sharded(models.get(name, MODEL), name)
        terms = ContrastiveConfig(num_negatives=16, **TERMS.get(name, {}))
        train(model, terms, settings, "strict", shards, out / name)
    off = ContrastiveConfig(item_weight=0, user_weight=0)
    for name, changes in STEPS.items():
        kinds = {} if name == "accumulate" else {"category": "row_wise", "user": "table_wise"}
        tables = {table: TableConfig(sharding=[kind]) for table, kind in kinds.items()}
        settings = dataclasses.replace(TRAIN, epochs=1, **changes)
        train(dataclasses.replace(MODEL, tables=tables), off, settings, "strict", shards, out / name)
    lists = ListConfig(dim=8, id_dropout=0.3, recent=6)
    with_list = dataclasses.replace(TRAIN, table_optimizer="rowwise_adagrad", select="auto")
    kinds = {"list_user": "row_wise", "list_item": "row_wise", "list_category": "table_wise"}
    for name, candidates in (("list", "catalogue"), ("list sampled", "sampled"), ("list batch", "batch")):
        tables = {table: TableConfig(sharding=[kind]) for table, kind in kinds.items()}
        model = dataclasses.replace(MODEL, tables=tables)
        chosen = dataclasses.replace(lists, candidates=candidates, num_candidates=20)
        train(model, ContrastiveConfig(num_negatives=16), with_list, "strict", shards, out / name, chosen)
    # Fused tables are updated after each micro-batch, and ids that are left out are drawn for each.
    in_parts = dataclasses.replace(TRAIN, accumulate=2, select="auto")
    whole = dataclasses.replace(lists, id_dropout=0.0)
    train(MODEL, off, in_parts, "strict", shards, out / "list accumulate", whole)
    alone = {"reduction": "upstream", "joined": ["user_text+item_text"], "interaction": "pairwise"}
    for name, changes in (("v0", {}), ("v0 without tables", {"category": False, "user_id": False})):
        model = dataclasses.replace(MODEL, **alone, **changes)
        train(model, off, TRAIN, "strict", shards, out / name)
    tiny = TrainConfig(epochs=1, batch_size=8, select="loss", device="cpu", table_optimizer="rowwise_adagrad")
    train(MODEL, ContrastiveConfig(num_negatives=16), tiny, "strict", small, out / "small")


def plan_all(out: Path) -> None:
    """What each rank takes for the plan, and is told where there is none: only rank 0 may plan."""
    with process_group("cpu") as ranks:
        model = build(MODEL, users=5000, items=9, device="meta")
        if ranks.rank:
            parallel.make_plan = None
        plan = plan_tables(model, ranks, batch_size=30, table_optimizer="sgd")
        told = {"plan": to_json(plan), "problem": ""}
        try:
            settings = {"user": TableConfig(sharding=["row_wise"])}
            plan_tables(model, ranks, batch_size=30, table_optimizer="adam", settings=settings)
        except DataError as error:
            told["problem"] = str(error)
        (out / f"plan-{ranks.rank}.json").write_text(json.dumps(told))


def work(shards: Path, small: Path, out: Path) -> None:
    """All of it, as a rank."""
    torch.set_num_threads(1)
    with process_group("cpu"):
        train_all(shards, small, out)
        plan_all(out)
