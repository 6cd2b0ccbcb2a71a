"""What the tests run on several ranks: `torchrun --nproc_per_node 2 tests/ranks.py SHARDS SMALL OUT`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

from dlrrec_torchrec import parallel
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.train import train

# Adam turns the rounding noise of a gradient that is exactly 0, as that of a bias before batch normalisation,
# into whole steps. With layer normalisation there is none such, so that equal means equal.
MODEL = ModelConfig(dropout=0.0, tower_norm="layer", user_id=True)
# The planner cuts columns into parts of at least 128.
WIDE = ModelConfig(**vars(MODEL) | {"embedding_dim": 256, "interaction": "dcn"})
TRAIN = TrainConfig(epochs=2, batch_size=60, lr=0.003, device="cpu", select="loss", warmup_steps=3)
VARIANTS = {
    "adam": TRAIN,
    "table_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad", "schedule": "cosine"}),
    "row_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "rowwise_adagrad"}),
    "column_wise": TrainConfig(**vars(TRAIN) | {"table_optimizer": "sgd", "table_lr": 0.1}),
}


def train_all(shards: Path, small: Path, out: Path) -> None:
    """Each variant on `shards`, and a training whose one validation row leaves a rank padding alone."""
    for name, settings in VARIANTS.items():
        # On one rank there is nothing to cut, and the planner offers only whole tables.
        forced = "WORLD_SIZE" in os.environ and name in parallel.SHARDINGS
        kinds = [name] if forced else parallel.SHARDINGS
        # Rows are not offered for CPUs, but work.
        offered = mock.Mock(return_value=[*kinds, "data_parallel"])
        sharder = parallel.EmbeddingBagCollectionSharder
        with (
            mock.patch.object(parallel, "SHARDINGS", kinds),
            mock.patch.object(sharder, "sharding_types", offered),
        ):
            model = WIDE if name == "column_wise" else MODEL
            train(model, ContrastiveConfig(num_negatives=16), settings, "strict", shards, out / name)
    tiny = TrainConfig(epochs=1, batch_size=8, select="loss", device="cpu", table_optimizer="rowwise_adagrad")
    train(MODEL, ContrastiveConfig(num_negatives=16), tiny, "strict", small, out / "small")


if __name__ == "__main__":
    with parallel.process_group("cpu"):
        train_all(*map(Path, sys.argv[1:]))
