"""What the training step is measured on: random batches, or those of prepared shards."""

from __future__ import annotations

import dataclasses
import itertools
import os

import torch
from torch import Tensor

from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.store.errors import DataError

PAPER = {"users": 28_912, "items": 15_290}  # of the papers' data


@dataclasses.dataclass(frozen=True)
class Data:
    """What a model is trained on: batches in host memory, and the vectors of all entities.

    Attributes:
        batches: of one size.
        corpus: modality -> f16 [entities, V].
        spec: what the batches hold.
    """

    batches: list[Batch]
    corpus: dict[str, Tensor]
    spec: BatchSpec


def random_data(spec: BatchSpec, batch_size: int, batches: int, seed: int = 0) -> Data:
    """Random rows in the form of the prepare stage's: a step's time does not depend on their values.

    Args:
        spec: with vectors in rows, of facts as `random_facts`.
    """
    facts, draw = spec.facts, torch.Generator().manual_seed(seed)
    slots, counts = facts.category_slots, facts.entities

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    def vectors(rows: int, dim: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, dim, generator=draw)).half()

    corpus = {m.name: vectors(counts[m.side], m.dim) for m in spec.in_rows}
    rows = []
    for _ in range(batches):
        codes = {side: integers(count, batch_size) for side, count in counts.items()}
        category = integers(facts.category_types, batch_size, slots)
        used = integers(slots + 1, batch_size, 1)
        category[torch.arange(slots) >= used] = facts.category_types
        rows.append(
            Batch(
                dense=torch.randn(batch_size, facts.dense_width, generator=draw),
                sparse=make_sparse(category, codes["user"], codes["item"], spec.sparse, facts.category_types),
                vectors={m.name: corpus[m.name][codes[m.side]] for m in spec.in_rows},
                label=integers(2, batch_size).float(),
                user=codes["user"],
                item=codes["item"],
                user_positives=integers(facts.users, batch_size, facts.positives),
                item_positives=integers(facts.items, batch_size, facts.positives),
            )
        )
    return Data(rows, corpus, spec)


def shards_data(shards: str | os.PathLike, spec: BatchSpec, batch_size: int, batches: int) -> Data:
    """The first `batches` batches of an epoch of prepared shards, fewer where there are fewer.

    Raises DataError for shards that cannot be used, and for less than one batch.
    """
    loader = make_loader(shards, "train", batch_size, spec, shuffle=True, drop_last=True)
    rows = list(itertools.islice(loader, batches))
    if not rows:
        raise DataError(f"{shards}: has fewer than {batch_size} training rows; take a smaller batch")
    vectors = load_entities(shards, spec.in_rows).vectors
    return Data(rows, {name: torch.from_numpy(matrix) for name, matrix in vectors.items()}, spec)
