"""The model with its loss: what is trained. L = L_rec + w1 L_ii + w2 L_uu (DLRREC equation 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlrrec_torchrec.models.collectives import all_sum, world_size
from dlrrec_torchrec.models.contrastive import TermWeight, batch_loss, corpus_loss
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.losses import weighted_bce_sum
from dlrrec_torchrec.models.sampling import POSITIVE, choose_positives, draw_negatives
from dlrrec_torchrec.schema import DataError

if TYPE_CHECKING:
    from dlrrec_torchrec.data.batch import Batch

NEGATIVES = ("corpus", "batch")
_SEEDS = {"item": 0, "user": 1}

# What depends on shapes or on the process group is one node for the FX tracer. TorchRec's pipelined trainer
# traces the wrapper, and pipelines only if it can see that the ids reach the embedding tables unchanged.
for _name in ("choose_positives", "draw_negatives", "corpus_loss", "batch_loss"):
    torch.fx.wrap(_name)


class TrainWrapper(nn.Module):
    """The model predicts, the wrapper adds the loss.

    Losses are means over the rows (or valid anchors) of all ranks. After the averaging of gradients by
    DistributedDataParallel, N ranks have the gradients of one rank on the joined batch.

    The anchors' reduced vectors are those of the prediction. Positives and corpus negatives pass through the
    towers once, together but apart from the anchors, so that the contrastive terms do not change what the
    prediction sees: they have batch statistics of their own, and the running ones follow the prediction.

    Args:
        model: the model.
        corpus: modality -> f16 or f32 [entities, vector_dim], row i is code i, zeros where it has none.
            Needed for the modalities of every term whose weight is not 0. Kept as f16, outside the state.
        class_weights: of the labels 0 and 1 (`losses.class_weights`).
        item_weight, user_weight: w1, w2; 0 switches a term off.
        learnable: learn w1 and w2 (`contrastive.TermWeight`).
        temperature, normalize: of InfoNCE.
        negatives: "corpus" or "batch"; num_negatives: corpus negatives of a step.
        positive: "best" or "sample".
        seed: of negatives and sampled positives.

    State: `step`, the number of training steps so far, so that a resumed run draws on where it stopped.

    Raises:
        DataError: a term that is on without a modality or vectors for it, or a bad setting; names the flag.
    """

    def __init__(
        self,
        model: DLRREC,
        corpus: Mapping[str, Tensor],
        class_weights: Sequence[float] = (1.0, 1.0),
        item_weight: float = 0.1,
        user_weight: float = 0.1,
        learnable: bool = False,
        temperature: float = 0.1,
        normalize: bool = True,
        negatives: str = "corpus",
        num_negatives: int = 256,
        positive: str = "best",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for flag, value, choices in (("negatives", negatives, NEGATIVES), ("positive", positive, POSITIVE)):
            if value not in choices:
                raise DataError(f"contrastive.{flag}: {value!r} is not one of {', '.join(choices)}")
        if not temperature > 0:
            raise DataError(f"contrastive.temperature: {temperature} must be above 0")
        if negatives == "corpus" and num_negatives < 1:
            raise DataError(f"contrastive.num_negatives: {num_negatives} must be at least 1")
        self.model = model
        self.temperature = temperature
        self.normalize = normalize
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.positive = positive
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer(
            "class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False
        )
        self.weights = nn.ModuleDict()  # the terms that are on
        self.sides: dict[str, list[str]] = {}  # their modalities
        self.entities: dict[str, int] = {}
        for side, weight in (("item", item_weight), ("user", user_weight)):
            term = TermWeight(weight, learnable, f"{side}_weight")
            if weight:
                self.weights[side] = term
                self.sides[side] = self._add_corpus(side, corpus)

    def _add_corpus(self, side: str, corpus: Mapping[str, Tensor]) -> list[str]:
        """Keep the side's vectors with a row of zeros at the end, where code -1 leads; returns the names."""
        names = [m for m in self.model.modalities if m.startswith(f"{side}_")]
        if not names:
            raise DataError(
                f"contrastive.{side}_weight: there is no vector of {side}s to contrast; set it to 0, or add "
                f"a modality of {side}s to model.modalities"
            )
        if missing := [m for m in names if m not in corpus]:
            raise DataError(
                f"contrastive.{side}_weight: no vectors of the entities for {', '.join(missing)}; add it to "
                "prepare.modalities and run prepare again, or set the weight to 0"
            )
        if len({len(corpus[m]) for m in names}) > 1:
            raise DataError(f"entities: {', '.join(names)} have different numbers of rows; run prepare again")
        if not len(corpus[names[0]]):
            raise DataError(f"entities: there are no {side}s; run prepare again")
        for name in names:
            vectors = torch.as_tensor(corpus[name]).half()
            padded = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
            self.register_buffer(f"corpus_{name}", padded, persistent=False)
        self.entities[side] = len(corpus[names[0]])
        return names

    def forward(self, batch: Batch, step: int | Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            batch: this rank's rows; may be none, as long as some rank has rows.
            step: number of the step, for the draws; by default the wrapper's own count. In training the count
                goes on from it.

        Returns:
            loss: f32 scalar to go backward from. Its mean over the ranks is the loss of the joined batch.
            parts, detached: `logits` and `label` f32 [B]; `loss_rec` (with class weights), `loss_ii` and
            `loss_uu` (without term weights, 0 where off) as means over all ranks.
        """
        step = next_step(self.step, step, self.training)
        reduced = self.model.reduce(batch.vectors)
        logits = self.model.predict(batch.dense, batch.sparse, reduced)
        terms = {"rec": (weighted_bce_sum(logits, batch.label, self.class_weights), row_count(batch.label))}
        if "item" in self.sides:
            terms["ii"] = self._contrast("item", batch.item, batch.item_positives, reduced, step)
        if "user" in self.sides:
            terms["uu"] = self._contrast("user", batch.user, batch.user_positives, reduced, step)

        local, joined = global_means([terms[name][0] for name in terms], [terms[name][1] for name in terms])
        parts = {"logits": logits.detach(), "label": batch.label}
        for number, name in enumerate(terms):
            parts[f"loss_{name}"] = joined[number]
        loss = local[0]
        for number, side in enumerate(self.weights, start=1):
            loss = loss + self.weights[side](local[number])
        for name in ("ii", "uu"):
            if name not in terms:
                parts[f"loss_{name}"] = torch.zeros_like(joined[0])
        return loss, parts

    def _contrast(
        self, side: str, codes: Tensor, neighbours: Tensor, reduced: dict[str, Tensor], step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum of the side's losses, number of valid anchors) on this rank."""
        names = self.sides[side]
        seed = 2 * self.seed + _SEEDS[side]
        corpus = {name: getattr(self, f"corpus_{name}") for name in names}
        entities = self.entities[side]
        wanted = choose_positives(neighbours, codes, self.positive, seed, step)
        batch = codes.shape[0]
        share = None
        if self.negatives == "corpus":
            drawn = draw_negatives(self.num_negatives, entities, seed, step, step.device)
            share = shares(wanted, drawn)
            wanted = torch.cat([wanted, drawn])
        rows = wanted.remainder(entities + 1)  # -1 becomes the row of zeros
        vectors = {name: corpus[name].index_select(0, rows) for name in names}
        others = joined_vectors(self.model.dense_arch.reduce(vectors, names, track=False, share=share), names)
        anchors = joined_vectors(reduced, names)
        if self.negatives == "corpus":
            return corpus_loss(
                anchors,
                codes,
                neighbours,
                others[:batch],
                others[batch:],
                drawn,
                self.temperature,
                self.normalize,
            )
        return batch_loss(anchors, codes, neighbours, others, self.temperature, self.normalize)


def joined_vectors(reduced: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """An entity's representation: its reduced vectors of all modalities side by side, [B, sum of R]."""
    return torch.cat([reduced[name] for name in names], dim=1)


@torch.fx.wrap
def next_step(counter: Tensor, step: int | Tensor | None, training: bool) -> Tensor:
    """The number of this step, i64 scalar on the counter's device; in training the counter moves past it."""
    now = counter.clone() if step is None else torch.as_tensor(step, dtype=torch.int64, device=counter.device)
    if training:
        counter.copy_(now + 1)
    return now


@torch.fx.wrap
def shares(own: Tensor, common: Tensor) -> Tensor:
    """How much rows count in statistics over the ranks: a rank's own 1, those all ranks hold 1 / ranks."""
    each = torch.ones(len(own) + len(common), device=own.device)
    each[len(own) :] /= world_size()
    return each


@torch.fx.wrap
def row_count(label: Tensor) -> Tensor:
    """Number of rows without padding (label -1), i64 scalar on the label's device."""
    return (label >= 0).sum()


@torch.fx.wrap
def global_means(sums: Sequence[Tensor], counts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Local sums and counts of K terms as means over all ranks, with one message.

    Returns:
        for the gradient: K scalars, sum * ranks / global count, whose mean over the ranks is the global mean;
        for the report: the K global means, detached. 0 where nothing counts anywhere.
    """
    # float64 keeps counts exact
    both = all_sum(torch.stack([*(s.detach().double() for s in sums), *(c.double() for c in counts)]))
    totals, numbers = both[: len(sums)], both[len(sums) :].clamp(min=1)
    local = [s * (world_size() / n).to(s.dtype) for s, n in zip(sums, numbers, strict=True)]
    return local, list((totals / numbers).to(sums[0].dtype))
