"""What the batches of a model must hold, derived once for everything that makes batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.batch import SPARSE_KEYS, Batch
from dlrrec_torchrec.data.draws import Draws
from dlrrec_torchrec.data.hashing import hash_rows
from dlrrec_torchrec.data.listing import ListRows
from dlrrec_torchrec.data.lookup import make_lookup
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality, joined, parts_of
from dlrrec_torchrec.store.shard_facts import ShardFacts


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """What the batches of a model hold.

    Attributes:
        facts: of the shards that the batches are of.
        sparse: features of `Batch.sparse`, from SPARSE_KEYS; the model has a table of each.
        managed: features of `Batch.managed`, from "user", "item".
        hashed: feature in `sparse` -> rows of its table, where its ids are hashed to.
        in_rows: modalities whose vectors the rows bring, `Batch.vectors`.
        joined: names of modalities of `in_rows` that the batches hold as one (`store.modality.joined`).
        in_tables: modalities whose vectors are looked up, `Batch.lookup`. One of the two is empty.
        draws: of the contrastive terms that are on; none where it only predicts.
        positives: neighbours of the user and of the item in a row, at most.
        lists: what the list head looks up; None without one, and where it only predicts.
        replaced: side -> i64 [entities, P], each entity's positives in place of those in the rows. Where they
            change while a training goes on, they are in memory that the loader's processes share.

    Raises DataError for a sparse feature that is unknown, and a modality to join that is not there.
    """

    facts: ShardFacts
    sparse: tuple[str, ...] = ("category",)
    managed: tuple[str, ...] = ()
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    in_rows: tuple[Modality, ...] = ()
    joined: tuple[str, ...] = ()
    in_tables: tuple[Modality, ...] = ()
    draws: tuple[Draws, ...] = ()
    positives: int = 0
    lists: ListRows | None = None
    replaced: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.sparse:
            if key not in SPARSE_KEYS:
                raise DataError(f"unknown sparse feature '{key}' (known: {', '.join(SPARSE_KEYS)})")
        joined(self.in_rows, self.joined, "model.joined")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """All of them as the model sees them, wherever their vectors come from."""
        return joined(self.in_rows, self.joined, "model.joined") or self.in_tables

    def to_predict(self) -> BatchSpec:
        """The same without what only a loss needs."""
        return dataclasses.replace(self, draws=(), positives=0, lists=None, replaced={})

    def complete(self, batch: Batch, step: int = 0) -> Batch:
        """The batch, whose `sparse` holds codes, with what is not looked up by code. Runs on the host.

        Args:
            step: number of the training step, for the draws.
        """
        if self.hashed:
            ids = {
                key: hash_rows(jagged.values(), self.hashed[key]) if key in self.hashed else jagged.values()
                for key, jagged in batch.sparse.to_dict().items()
            }
            lengths = batch.sparse.lengths()
            sparse = KeyedJaggedTensor(list(ids), torch.cat(list(ids.values())), lengths=lengths)
            batch = dataclasses.replace(batch, sparse=sparse)
        if self.managed:
            codes = [getattr(batch, key) for key in self.managed]
            values, lengths = [c[c >= 0] for c in codes], [(c >= 0).int() for c in codes]
            managed = KeyedJaggedTensor(list(self.managed), torch.cat(values), lengths=torch.cat(lengths))
            batch = dataclasses.replace(batch, managed=managed)
        if self.joined:
            vectors = dict(batch.vectors)
            for name in self.joined:
                vectors[name] = torch.cat([vectors.pop(part) for part in parts_of(name)], dim=1)
            batch = dataclasses.replace(batch, vectors=vectors)
        for side, positives in self.replaced.items():
            codes = getattr(batch, side)
            found = torch.where((codes >= 0).unsqueeze(1), positives[codes.clamp(min=0)], -1)
            batch = dataclasses.replace(batch, **{f"{side}_positives": found})
        for draws in self.draws:
            if draws.hard:
                hard = draws.hard_negatives(getattr(batch, draws.side), step)
                batch = dataclasses.replace(batch, **{f"{draws.side}_hard": hard})
        if self.lists is not None:
            batch = dataclasses.replace(batch, listed=self.lists.of_batch(batch.user, batch.item, step))
        if not self.in_tables:
            return batch
        codes_of: dict[str, dict[str, Tensor]] = {}
        draws_of = {draws.side: draws for draws in self.draws}
        for side in sorted({modality.side for modality in self.in_tables}):
            roles = codes_of[side] = {"anchor": getattr(batch, side)}
            if side in draws_of:
                neighbours = getattr(batch, f"{side}_positives")
                roles["positive"] = draws_of[side].positives(neighbours, roles["anchor"], step)
                if draws_of[side].hard:
                    roles["hard"] = getattr(batch, f"{side}_hard")
                if draws_of[side].negatives:
                    roles["negative"] = draws_of[side].corpus(step)
            if side == "item" and self.lists is not None and self.lists.content:  # none of them in "batch"
                roles["candidate"] = batch.listed.candidates
        return dataclasses.replace(batch, lookup=make_lookup(codes_of, self.in_tables))
