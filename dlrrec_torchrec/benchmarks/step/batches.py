"""What the training step is measured on: random batches, or those of prepared shards."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any

import torch
from torch import Tensor

from dlrrec_torchrec.config import ModelConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.data.lookup import side_of
from dlrrec_torchrec.models.spec import sparse_keys
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import CATEGORY_SLOTS, NUM_CATEGORIES, PAD_CATEGORY, VECTOR_DIM

PAPER = {"users": 28_912, "items": 15_290}  # of the papers' data
DENSE_WIDTH, POSITIVES = 7, 10  # of the prepare stage's defaults


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model is trained on: batches in host memory, and the vectors of all entities.

    Attributes:
        batches: of one size.
        corpus: modality -> f16 [entities, 384].
        facts: what `training.assemble` needs of the shards' manifest.
    """

    batches: list[Batch]
    corpus: dict[str, Tensor]
    facts: dict[str, Any]


def random_data(
    model: ModelConfig, batch_size: int, batches: int, *, users: int, items: int, seed: int = 0
) -> Data:
    """Random rows in the form of the prepare stage's: a step's time does not depend on what they say."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    def vectors(rows: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, VECTOR_DIM, generator=draw)).half()

    counts = {"user": users, "item": items}
    corpus = {name: vectors(counts[side_of(name)]) for name in model.modalities}
    made = []
    for _ in range(batches):
        codes = {side: integers(count, batch_size) for side, count in counts.items()}
        category = integers(NUM_CATEGORIES, batch_size, CATEGORY_SLOTS)
        used = integers(CATEGORY_SLOTS + 1, batch_size, 1)
        category[torch.arange(CATEGORY_SLOTS) >= used] = PAD_CATEGORY
        made.append(
            Batch(
                dense=torch.randn(batch_size, DENSE_WIDTH, generator=draw),
                sparse=make_sparse(category, codes["user"], codes["item"], sparse_keys(model)),
                vectors={name: corpus[name][codes[side_of(name)]] for name in model.modalities},
                label=integers(2, batch_size).float(),
                user=codes["user"],
                item=codes["item"],
                user_positives=integers(users, batch_size, POSITIVES),
                item_positives=integers(items, batch_size, POSITIVES),
            )
        )
    labels = {"negative": batch_size * batches, "positive": batch_size * batches}  # as many of each
    facts = {"dense_width": DENSE_WIDTH, "users": users, "items": items, "label_counts": labels}
    return Data(made, corpus, facts)


def shards_data(shards: str | os.PathLike, model: ModelConfig, batch_size: int, batches: int) -> Data:
    """The first `batches` batches of an epoch of prepared shards, fewer where there are fewer.

    Raises DataError for shards that cannot be used, and for less than one batch.
    """
    facts = Manifest.read(shards).facts
    rows = make_loader(
        shards,
        "train",
        batch_size,
        modalities=model.modalities,
        positives=facts["positives"],
        sparse_keys=sparse_keys(model),
        shuffle=True,
        drop_last=True,
    )
    made = list(itertools.islice(rows, batches))
    if not made:
        raise DataError(f"{shards}: has fewer than {batch_size} training rows; take a smaller batch")
    corpus = {name: torch.from_numpy(v) for name, v in load_entities(shards).vectors.items()}
    return Data(made, corpus, facts)
