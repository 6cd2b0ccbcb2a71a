"""What a training reads from the shards."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from dlrrec_torchrec.config import ContrastiveConfig, TrainConfig
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import Entities, load_entities
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.spec import with_draws, with_rows
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality


@dataclasses.dataclass(frozen=True)
class Opened:
    """Shards opened for a training.

    Attributes:
        spec: of the batches, with what its lookups need of the shards.
        rows: to train on.
        held_out: of the split that selects the epoch; None: of none.
        entities: with the vectors of all modalities in rows; None without a list head.
        corpus: modality -> f16 [entities, V], what contrastive terms and the list head draw from; none where
            they are in tables.
    """

    spec: BatchSpec
    rows: ShardLoader
    held_out: ShardLoader | None
    entities: Entities | None
    corpus: dict[str, Tensor]


def open_rows(
    shards_dir: str | os.PathLike,
    spec: BatchSpec,
    settings: TrainConfig,
    share: int,
    split: str | None,
    ranks: Ranks,
    contrastive: ContrastiveConfig | None = None,
) -> Opened:
    """Open the shards on every rank.

    Args:
        spec: of the batches, as `models.spec.batch_spec` makes it.
        share: rows of a step on each rank.
        split: whose rows select the epoch (None: none).
        contrastive: whose draws are in `spec`; None: of none.

    Raises DataError for shards that would fail in the middle of a training, on all ranks.
    """
    loading = {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "workers": settings.workers,
        "pin_memory": ranks.device.type == "cuda",
    }
    with ranks.together():
        drawn_from = _drawn_from(spec)
        entities = None
        if spec.lists is not None or drawn_from:
            entities = load_entities(shards_dir, drawn_from if spec.lists is None else spec.in_rows)
        corpus = {m.name: torch.from_numpy(entities.vectors[m.name]) for m in drawn_from}
        if spec.lists is not None:
            spec = with_rows(spec, entities.items.category, entities.sequences)
        if contrastive is not None:
            spec = with_draws(spec, shards_dir, contrastive, settings.seed)
        rows = make_loader(shards_dir, "train", share, spec, seed=settings.seed, shuffle=True, **loading)
        rows.check()
        held_out = None
        if split is not None:
            held_out = make_loader(shards_dir, split, share, spec.to_predict(), **loading)
            held_out.check()
    if rows.rows < 2 * ranks.world_size:
        raise DataError(
            f"{Path(shards_dir) / 'train'}: {rows.rows} rows, too few for {ranks.world_size} ranks"
        )
    if held_out is not None and not held_out.rows:
        raise DataError(
            f"{Path(shards_dir) / split}: no rows to select the best epoch by; make this split larger"
        )
    return Opened(spec, rows, held_out, entities if spec.lists is not None else None, corpus)


def _drawn_from(spec: BatchSpec) -> list[Modality]:
    """The modalities in rows whose entities contrastive terms or the list head draw."""
    sides = {draws.side for draws in spec.draws}
    if spec.lists is not None and spec.lists.content and spec.lists.candidates != "batch":
        sides.add("item")
    return [modality for modality in spec.in_rows if modality.side in sides]
