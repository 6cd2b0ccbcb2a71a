"""Content vectors in frozen tables, looked up by the codes of users and items.

A batch's codes are drawn and made distinct on the host, before the step: all lookups are one part of the
batch, so that TorchRec's pipelined trainer fetches the vectors of the next batch while it computes this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.hashing import hash_rows
from dlrrec_torchrec.data.lookup import make_lookup, side_of
from dlrrec_torchrec.models.sampling import choose_positives, draw_negatives
from dlrrec_torchrec.schema import VECTOR_DIM

_STREAMS = {"item": 0, "user": 1}


class ContentTables(nn.Module):
    """One frozen table `t_MODALITY` for each modality; row i is the vector of code i.

    Args:
        rows: modality -> rows.
        entities: "user", "item" -> how many there are; further rows are zeros.
        data_types: modality -> of the table's numbers.
        device: of the tables.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        entities: Mapping[str, int],
        data_types: Mapping[str, DataType],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.modalities = list(rows)
        self.entities = dict(entities)
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"t_{name}",
                    embedding_dim=VECTOR_DIM,
                    num_embeddings=number,
                    feature_names=[name],
                    data_type=data_types[name],
                )
                for name, number in rows.items()
            ],
            device=device,
        )
        self.tables.requires_grad_(False)

    def forward(self, ids: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The vectors of the ids, modality -> [U, 384], in their order; no gradient passes."""
        found = self.tables(ids)
        return {name: found[name].values().detach() for name in self.modalities}


@dataclasses.dataclass(frozen=True)
class Draws:
    """What stands against the anchors of one side: a positive for each, and negatives for all.

    Attributes:
        side: "user" or "item".
        entities: how many there are.
        positive: "best" or "sample".
        negatives: how many to draw from all entities; 0: the negatives are those of the batch.
        seed: of the wrapper.
    """

    side: str
    entities: int
    positive: str
    negatives: int
    seed: int

    def positives(self, neighbours: Tensor, codes: Tensor, step: int | Tensor) -> Tensor:
        """i64 [B] codes, -1 for none, as `sampling.choose_positives`."""
        return choose_positives(neighbours, codes, self.positive, self._stream, step)

    def corpus(self, step: int | Tensor, device: torch.device | None = None) -> Tensor:
        """i64 [negatives] codes, as `sampling.draw_negatives`."""
        return draw_negatives(self.negatives, self.entities, self._stream, step, device)

    @property
    def _stream(self) -> int:
        return 2 * self.seed + _STREAMS[self.side]


@dataclasses.dataclass(frozen=True)
class Lookups:
    """Adds to a batch what it looks up other than by code. Runs on the host, also in a loader's worker.

    Attributes:
        modalities: of the content tables; none without them.
        draws: of the contrastive terms that are on; none to predict alone.
        hashed: feature in `sparse` -> rows of its table, where its ids are hashed to.
        managed: "user", "item": features of managed tables.
    """

    modalities: Sequence[str] = ()
    draws: Sequence[Draws] = ()
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    managed: Sequence[str] = ()

    def __call__(self, batch: Batch, step: int = 0) -> Batch:
        """The batch with all of that. `step`: number of the training step, for the draws."""
        if self.hashed:
            ids = {
                key: hash_rows(one.values(), self.hashed[key]) if key in self.hashed else one.values()
                for key, one in batch.sparse.to_dict().items()
            }
            lengths = batch.sparse.lengths()
            sparse = KeyedJaggedTensor(list(ids), torch.cat(list(ids.values())), lengths=lengths)
            batch = dataclasses.replace(batch, sparse=sparse)
        if self.managed:
            codes = [getattr(batch, key) for key in self.managed]
            values, lengths = [c[c >= 0] for c in codes], [(c >= 0).int() for c in codes]
            managed = KeyedJaggedTensor(list(self.managed), torch.cat(values), lengths=torch.cat(lengths))
            batch = dataclasses.replace(batch, managed=managed)
        if not self.modalities:
            return batch
        wanted: dict[str, dict[str, Tensor]] = {}
        drawn = {draws.side: draws for draws in self.draws}
        for side in sorted({side_of(name) for name in self.modalities}):
            roles = wanted[side] = {"anchor": getattr(batch, side)}
            if side in drawn:
                neighbours = getattr(batch, f"{side}_positives")
                roles["positive"] = drawn[side].positives(neighbours, roles["anchor"], step)
                if drawn[side].negatives:
                    roles["negative"] = drawn[side].corpus(step)
        return dataclasses.replace(batch, lookup=make_lookup(wanted, self.modalities))


@torch.fx.wrap
def use_counts(places: Tensor, share: Tensor | None, distinct: Tensor) -> Tensor:
    """How often each of the U distinct rows is used, f32 [U]; a use counts `share` [n] (default 1)."""
    share = torch.ones(len(places), device=places.device) if share is None else share
    return share.new_zeros(len(distinct) + 1).index_add_(0, places, share)[:-1]


@torch.fx.wrap
def take_rows(distinct: Tensor, places: Tensor) -> Tensor:
    """The rows [n, R] at `places` out of [U, R]; zeros at place U."""
    return torch.cat([distinct, distinct.new_zeros(1, distinct.shape[1])]).index_select(0, places)
