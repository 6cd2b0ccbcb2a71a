"""What a training reads of the shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrrec_torchrec.config import ModelConfig, TrainConfig
from dlrrec_torchrec.data.draws import Lookups
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.spec import build_lookups, in_tables, row_modalities, sparse_keys
from dlrrec_torchrec.store.errors import DataError


def open_rows(
    shards_dir: str | os.PathLike,
    facts: dict[str, Any],
    model: ModelConfig,
    settings: TrainConfig,
    share: int,
    split: str,
    ranks: Ranks,
    lookups: Lookups | None,
) -> tuple[ShardLoader, ShardLoader, dict[str, Tensor]]:
    """Rows to train on, rows of `split`, and the entities' vectors by modality, unless they are in tables.

    Shards that would fail in the middle of a training are refused, on all ranks together.
    """
    loading = {
        "modalities": row_modalities(model),
        "sparse_keys": sparse_keys(model),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "workers": settings.workers,
        "pin_memory": ranks.device.type == "cuda",
    }
    error = None
    try:
        rows = make_loader(
            shards_dir,
            "train",
            share,
            positives=facts["positives"],
            seed=settings.seed,
            shuffle=True,
            lookups=lookups,
            **loading,
        )
        held_out = make_loader(shards_dir, split, share, positives=0, lookups=build_lookups(model), **loading)
        rows.check()
        held_out.check()
        vectors = {}
        if not in_tables(model):
            vectors = {m: torch.from_numpy(v) for m, v in load_entities(shards_dir).vectors.items()}
    except DataError as found:
        error = found
    ranks.agree(error)
    if rows.rows < 2 * ranks.world_size:
        raise DataError(
            f"{Path(shards_dir) / 'train'}: {rows.rows} rows, too few for {ranks.world_size} ranks"
        )
    if not held_out.rows:
        raise DataError(
            f"{Path(shards_dir) / split}: no rows to select the best epoch by; make this split larger"
        )
    return rows, held_out, vectors
