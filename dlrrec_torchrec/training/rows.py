"""What a training reads from the shards."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from dlrrec_torchrec.config import TrainConfig
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.store.errors import DataError


def open_rows(
    shards_dir: str | os.PathLike,
    spec: BatchSpec,
    settings: TrainConfig,
    share: int,
    split: str | None,
    ranks: Ranks,
) -> tuple[ShardLoader, ShardLoader | None, dict[str, Tensor]]:
    """Rows to train on, rows of `split` (None: none), and the entities' vectors that contrastive terms
    and the list head draw from.

    The vectors by modality, f16 [entities, V]; none where they are in tables.

    Shards that would fail in the middle of a training are refused, on all ranks together.
    """
    loading = {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "workers": settings.workers,
        "pin_memory": ranks.device.type == "cuda",
    }
    error = None
    try:
        rows = make_loader(shards_dir, "train", share, spec, seed=settings.seed, shuffle=True, **loading)
        rows.check()
        held_out = None
        if split is not None:
            held_out = make_loader(shards_dir, split, share, spec.to_predict(), **loading)
            held_out.check()
        contrasted = {draws.side for draws in spec.draws}
        if spec.lists is not None and spec.lists.content and spec.lists.candidates != "batch":
            contrasted.add("item")
        vectors = {}
        if drawn_from := [modality for modality in spec.in_rows if modality.side in contrasted]:
            entities = load_entities(shards_dir, drawn_from)
            vectors = {name: torch.from_numpy(matrix) for name, matrix in entities.vectors.items()}
    except DataError as problem:
        error = problem
    ranks.agree(error)
    if rows.rows < 2 * ranks.world_size:
        raise DataError(
            f"{Path(shards_dir) / 'train'}: {rows.rows} rows, too few for {ranks.world_size} ranks"
        )
    if held_out is not None and not held_out.rows:
        raise DataError(
            f"{Path(shards_dir) / split}: no rows to select the best epoch by; make this split larger"
        )
    return rows, held_out, vectors
