"""The same model and losses in plain torch, as one would write them by hand: the benchmark's reference.

nn.EmbeddingBag, nn.Linear, nn.BatchNorm1d, and torch's Adam over everything. It knows no ranks and no missing
vectors. Negatives that are an anchor's neighbours are left out as in the project, or the losses would differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.draws import draw_negatives
from dlrrec_torchrec.models.dlrrec import DLRREC

SIDES = {"item": "ii", "user": "uu"}


class PlainModel(nn.Module):
    """DLRREC with dot interaction and the category table.

    Args:
        spec: what the batches hold, vectors in rows.
        towers, dense_arch, over_arch, dropout: as DLRREC's.
    """

    def __init__(
        self,
        spec: BatchSpec,
        towers: Mapping[str, Sequence[int]],
        dense_arch: Sequence[int],
        over_arch: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        size, padding = dense_arch[-1], spec.facts.category_types
        self.sides = {m.name: m.side for m in spec.modalities}
        self.category = nn.EmbeddingBag(padding + 1, size, mode="sum", padding_idx=padding)
        self.dense = nn.Sequential(*_layers(spec.facts.dense_width, dense_arch), nn.ReLU())
        self.towers = nn.ModuleDict(
            {
                m.name: nn.Sequential(*_layers(m.dim, towers[m.name]), nn.BatchNorm1d(towers[m.name][-1]))
                for m in spec.modalities
            }
        )
        for tower in self.towers.values():
            tower[-2].bias = None  # batch normalisation takes it away
        vectors = 2 + len(spec.modalities)
        self.pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.over = nn.Sequential(*_layers(size + self.pairs.shape[1], over_arch, dropout))

    def forward(self, batch: Batch, reduced: dict[str, Tensor]) -> Tensor:
        """Logits [B]."""
        ids = batch.sparse["category"]
        dense = self.dense(batch.dense)
        category = self.category(ids.values(), ids.offsets()[:-1])
        vectors = torch.stack([dense, category, *(reduced[name] for name in self.towers)], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.over(torch.cat([dense, products], dim=1)).squeeze(1)


class PlainTraining(nn.Module):
    """The model with its losses: L_rec + w1 L_ii + w2 L_uu, cosine InfoNCE, the best neighbour as positive.

    Args:
        corpus: modality -> f16 [entities, V].
        weights: "item", "user" -> w1, w2; 0 switches a term off.
        num_negatives, temperature, seed: as TrainWrapper's, whose negatives these are.
    """

    def __init__(
        self,
        model: PlainModel,
        corpus: dict[str, Tensor],
        weights: dict[str, float],
        num_negatives: int,
        temperature: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.weights, self.temperature = model, weights, temperature
        self.num_negatives, self.seed, self.step = num_negatives, seed, 0
        for name, vectors in corpus.items():
            self.register_buffer(f"corpus_{name}", vectors, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts: `loss_rec`, and `loss_ii`, `loss_uu` of the terms that are on."""
        reduced = {name: tower(batch.vectors[name].float()) for name, tower in self.model.towers.items()}
        logits = self.model(batch, reduced)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.label)
        parts = {"loss_rec": loss.detach()}
        for number, side in enumerate(SIDES):
            if self.weights[side]:
                term = self._info_nce(side, number, batch, reduced)
                parts[f"loss_{SIDES[side]}"] = term.detach()
                loss = loss + self.weights[side] * term
        self.step += 1
        return loss, parts

    def _info_nce(self, side: str, number: int, batch: Batch, reduced: dict[str, Tensor]) -> Tensor:
        names = [name for name, side_of in self.model.sides.items() if side_of == side]
        corpus = {name: getattr(self, f"corpus_{name}") for name in names}
        entities = len(corpus[names[0]])
        neighbours = getattr(batch, f"{side}_positives")
        rows = (neighbours[:, 0] >= 0).nonzero().squeeze(1)  # no positive, no loss
        codes, neighbours = getattr(batch, side)[rows], neighbours[rows]
        drawn = draw_negatives(self.num_negatives, entities, 2 * self.seed + number, self.step, codes.device)

        compared = torch.cat([neighbours[:, 0], drawn])
        others = [self.model.towers[name](corpus[name][compared].float()) for name in names]
        anchors = F.normalize(torch.cat([reduced[name] for name in names], dim=1)[rows], dim=1)
        positives, negatives = F.normalize(torch.cat(others, dim=1), dim=1).split([len(rows), len(drawn)])

        near = (anchors * positives).sum(1, keepdim=True)
        far = (anchors @ negatives.T).masked_fill(self._refused(codes, neighbours, drawn, entities), -1e30)
        logits = torch.cat([near, far], dim=1).float() / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64, device=logits.device))

    @staticmethod
    def _refused(codes: Tensor, neighbours: Tensor, drawn: Tensor, entities: int) -> Tensor:
        """True where a negative is the anchor or one of its neighbours, bool [B, N]; none is drawn twice."""
        column = torch.full((entities + 1,), len(drawn), device=drawn.device)  # the last entry: no neighbour
        column[drawn] = torch.arange(len(drawn), device=drawn.device)
        avoid = torch.cat([codes.unsqueeze(1), neighbours], dim=1)
        refused = torch.zeros(len(codes), len(drawn) + 1, dtype=torch.bool, device=drawn.device)
        return refused.scatter_(1, column[avoid], True)[:, :-1]


@torch.no_grad()
def copy_weights(source: DLRREC, category: Tensor, target: PlainModel) -> None:
    """Give `target` the weights of `source`, whose category table [types + 1, E] is `category`."""
    pairs = [(source.dense_arch.model, target.dense), (source.over_arch, target.over)]
    pairs += [(source.dense_arch.towers[name], tower) for name, tower in target.towers.items()]
    for theirs, ours in pairs:
        state = zip(theirs.parameters(), ours.parameters(), strict=True)
        for source_values, target_values in state:
            target_values.copy_(source_values)
    target.category.weight.copy_(category)
    target.category.weight[target.category.padding_idx] = 0


def _layers(width: int, sizes: Sequence[int], dropout: float = 0.0) -> list[nn.Module]:
    """Linear layers with ReLU (and dropout) between them."""
    layers: list[nn.Module] = []
    for before, after in zip([width, *sizes], sizes, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return layers[: -2 if dropout else -1]
