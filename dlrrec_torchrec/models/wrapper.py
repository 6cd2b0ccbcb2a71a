"""The model with its loss: what is trained. L = L_rec + w1 L_ii + w2 L_uu (DLRREC equation 2) + w L_list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlrrec_torchrec.data.draws import NEGATIVES, POSITIVE, Draws
from dlrrec_torchrec.distributed.collectives import all_sum, world_size
from dlrrec_torchrec.models.compared import (
    anchors_and_candidates,
    compared_parts,
    distinct_uses,
    drawn_codes,
    joined_vectors,
    looked_up,
    parted,
    row_numbers,
    stacked,
)
from dlrrec_torchrec.models.contrastive import TermWeight, batch_loss, corpus_loss
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.list_loss import ListTerm
from dlrrec_torchrec.models.losses import weighted_bce_sum
from dlrrec_torchrec.store.errors import DataError

if TYPE_CHECKING:
    from dlrrec_torchrec.data.batch import Batch

TERMS = {"item": "loss_ii", "user": "loss_uu", "list": "loss_list"}  # as they are reported
Reduced = dict[str, Tensor]  # modality -> [B, R]

# What depends on shapes or on the process group is one node for the FX tracer. TorchRec's pipelined trainer
# traces the wrapper, and pipelines only if it can see that the ids reach the embedding tables unchanged.
for _name in ("corpus_loss", "batch_loss", "anchors_and_candidates", "parted", "row_numbers", "stacked"):
    torch.fx.wrap(_name)
for _name in ("compared_parts", "distinct_uses", "drawn_codes", "looked_up"):
    torch.fx.wrap(_name)


class TrainWrapper(nn.Module):
    """The model predicts, the wrapper adds the loss.

    Losses are means over the rows (or valid anchors) of all ranks. After the averaging of gradients by
    DistributedDataParallel, N ranks have the gradients of one rank on the joined batch.

    The anchors' reduced vectors are those of the prediction. Positives and corpus negatives pass through the
    towers once, together but apart from the anchors, so that the contrastive terms do not change what the
    prediction sees: they have batch statistics of their own, and the running ones follow the prediction.

    With a wide path L_rec has two sums: that of wide and residual path alone, and that of their logits as
    they were kept (constants) plus the deep part's. So it learns what they leave, and cannot harm them.

    Args:
        model: the model.
        corpus: modality -> f16 or f32 [entities, V], row i is code i, zeros where it has none.
            Needed for the modalities of every term whose weight is not 0, where the model has no content
            tables. Kept as f16, outside the state.
        class_weights: of the labels 0 and 1 (`losses.class_weights`).
        item_weight, user_weight: w1, w2; 0 switches a term off.
        learnable: learn w1 and w2 (`contrastive.TermWeight`).
        temperature, normalize: of InfoNCE.
        negatives: of NEGATIVES; num_negatives: those of a step that are drawn from all entities; num_hard:
            those that "semi_hard" keeps, and that "swing_hard" has in the batch, for an anchor.
        positive: "best" or "sample".
        seed: of negatives and sampled positives.
        popularity: "user", "item" -> as `Draws.cumulative`; for "popularity" with vectors in the rows.
        refreshed: "user", "item" -> i64 [entities, P], the positives that a training makes anew, kept with
            the weights so that a resumed run has them. The batches bring them.
        lists: the term of the model's list head, whose candidates' content vectors come from `corpus` too.
        rating: False leaves L_rec out of the loss.

    State: `step`, the number of training steps so far, so that a resumed run continues its draws, and
    `refreshed_SIDE`.

    Raises:
        DataError: a term that is on without a modality or vectors for it, or a bad setting; names the flag.

    Example::

        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> from torchrec.modules.embedding_modules import EmbeddingBagCollection
        >>> from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
        >>> from dlrrec_torchrec.data.batch import Batch
        >>> from dlrrec_torchrec.store.modality import Modality
        >>> text = Modality("item_text", "item", "text", source="reviews", dim=384, encoder="MiniLM")
        >>> table = EmbeddingBagConfig(
        ...     name="t_user", embedding_dim=8, num_embeddings=9, feature_names=["user"]
        ... )
        >>> model = DLRREC(
        ...     EmbeddingBagCollection(tables=[table]),
        ...     dense_in_features=7,
        ...     dense_arch_layer_sizes=[8],
        ...     over_arch_layer_sizes=[16, 1],
        ...     modalities=[text],
        ...     towers={"item_text": [8]},
        ... )
        >>> corpus = {"item_text": torch.randn(20, 384)}  # of 20 items
        >>> wrapper = TrainWrapper(model, corpus, item_weight=0.1, user_weight=0, num_negatives=4)
        >>> user, item = torch.tensor([3, 8]), torch.tensor([0, 19])
        >>> batch = Batch(
        ...     dense=torch.randn(2, 7),
        ...     sparse=KeyedJaggedTensor(["user"], user, lengths=torch.tensor([1, 1])),
        ...     vectors={"item_text": corpus["item_text"][item].half()},
        ...     label=torch.tensor([1.0, 0.0]),
        ...     user=user,
        ...     item=item,
        ...     user_positives=torch.full((2, 1), -1),
        ...     item_positives=torch.tensor([[7], [2]]),
        ... )
        >>> loss, parts = wrapper(batch)
        >>> loss.backward()
        >>> sorted(parts)
        ['label', 'logits', 'loss_ii', 'loss_list', 'loss_rec', 'loss_uu']
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
        num_hard: int = 8,
        positive: str = "best",
        seed: int = 0,
        lists: ListTerm | None = None,
        rating: bool = True,
        popularity: Mapping[str, Tensor] | None = None,
        refreshed: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        for flag, value, choices in (("negatives", negatives, NEGATIVES), ("positive", positive, POSITIVE)):
            if value not in choices:
                raise DataError(f"contrastive.{flag}: {value!r} is not one of {', '.join(choices)}")
        if not temperature > 0:
            raise DataError(f"contrastive.temperature: {temperature} must be above 0")
        for flag, number in (("num_negatives", num_negatives), ("num_hard", num_hard)):
            if number < 1:
                raise DataError(f"contrastive.{flag}: {number} must be at least 1")
        self.model = model
        self.temperature = temperature
        self.normalize = normalize
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.hardest = num_hard if negatives == "semi_hard" else 0
        self.positive = positive
        self.seed = seed
        self.lists = lists
        self.rating = rating
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer(
            "class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False
        )
        self.weights = nn.ModuleDict()  # the terms that are on
        self.sides: dict[str, list[str]] = {}  # their modalities
        self.draws: dict[str, Draws] = {}
        for side, weight in (("item", item_weight), ("user", user_weight)):
            term = TermWeight(weight, learnable, f"{side}_weight")
            if weight:
                self.weights[side] = term
                self.sides[side], entities = self._add_corpus(side, corpus)
                drawn_number = 0 if negatives == "batch" else num_negatives
                hard = num_hard if negatives == "swing_hard" else 0
                self.draws[side] = Draws(side, entities, positive, drawn_number, seed, hard)
                weights = (popularity or {}).get(side)
                if negatives == "popularity" and weights is None and model.content is None:
                    raise DataError(f"contrastive.negatives: popularity needs the {side}s' training rows")
                self.register_buffer(f"cumulative_{side}", weights, persistent=False)
                if side in (refreshed or {}):
                    self.register_buffer(f"refreshed_{side}", refreshed[side].clone())
        self.compared: list[str] = []  # modalities of the list's candidates
        if lists is not None and lists.candidates != "batch" and model.list_head.sides["item"]:
            self.compared = self._add_corpus("item", corpus)[0]

    def _add_corpus(self, side: str, corpus: Mapping[str, Tensor]) -> tuple[list[str], int]:
        """The side's modalities and entities; vectors that are not in tables are kept."""
        names = [modality.name for modality in self.model.modalities if modality.side == side]
        if not names:
            raise DataError(
                f"contrastive.{side}_weight: there is no vector of {side}s to contrast; set it to 0, or add "
                f"a modality of {side}s to model.modalities"
            )
        if self.model.content is not None:
            return names, self.model.content.entities[side]
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
            self.register_buffer(f"corpus_{name}", vectors, persistent=False)
        return names, len(corpus[names[0]])

    def forward(self, batch: Batch, step: int | Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            batch: this rank's rows; may be none, as long as some rank has rows.
            step: number of the step, for the draws; by default the wrapper's own count. In training the count
                goes on from it.

        Returns:
            loss: f32 scalar to go backward from. Its mean over the ranks is the loss of the joined batch.
            parts, detached: `logits` and `label` f32 [B]; `loss_rec` (with class weights), `loss_ii`,
            `loss_uu` and `loss_list` (without term weights, 0 where off) as means over all ranks.
        """
        step = next_step(self.step, step, self.training)
        if self.model.content is None:
            reduced, others, compared = self._from_rows(batch, step)
        else:
            reduced, others, compared = self._from_tables(batch)
        rows, weights = row_count(batch.label), self.class_weights
        base, kept, logits = self.model.parts(batch.dense, batch.sparse, reduced, batch.managed)
        logits = logits if kept is None else kept + logits
        terms = {"rec": (weighted_bce_sum(logits, batch.label, weights), rows)}
        if base is not None:
            terms["base"] = (weighted_bce_sum(base, batch.label, weights), rows)
        for side in self.sides:
            terms[side] = self._contrast(side, batch, reduced, *others[side])
        if self.lists is not None:
            terms["list"] = (self._list(batch, reduced, compared, step), rows)

        sums = {name: total for name, (total, _) in terms.items()}
        counts = {name: count for name, (_, count) in terms.items()}
        local, means = global_means(sums, counts)
        rating = local["rec"] if base is None else local["rec"] + local["base"]
        loss = rating if self.rating else rating * 0.0
        for side, weight in self.weights.items():
            loss = loss + weight(local[side])
        if self.lists is not None:
            loss = loss + self.lists.weight * local["list"]
        parts = {"logits": logits.detach(), "label": batch.label, "loss_rec": means["rec"]}
        for side, name in TERMS.items():
            parts[name] = means[side] if side in terms else torch.zeros_like(means["rec"])
        return loss, parts

    def _list(self, batch: Batch, reduced: Reduced, compared: Reduced, step: Tensor) -> Tensor:
        """The sum of the list's losses on this rank."""
        head, codes = self.model.list_head, batch.listed.candidates
        kept = self.lists.kept(batch.user, batch.item, codes, step)
        sides = head(batch.listed, batch.item, reduced, compared, kept)
        return self.lists(sides, batch.listed, batch.item, batch.label, head.temperature, batch.rating)

    def _from_rows(
        self, batch: Batch, step: Tensor
    ) -> tuple[Reduced, dict[str, tuple[Tensor, Tensor]], Reduced]:
        """The anchors' reduced vectors from the rows; for each side those they are compared with; the list's
        candidates'.

        The second are (of the positives, the hard negatives and then of the negatives [B + B·H + N, sum of
        R], codes of the negatives).
        """
        arch, others, candidates = self.model.dense_arch, {}, {}
        if not self.compared:
            reduced = self.model.reduce(batch.vectors)
        else:
            names = [modality.name for modality in self.model.modalities]
            others_of_rows = [name for name in names if name not in self.compared]
            reduced = {name: arch.towers[name](batch.vectors[name]) for name in others_of_rows}
        for name in self.compared:
            codes = batch.listed.candidates
            both = stacked(batch.vectors[name], getattr(self, f"corpus_{name}"), codes)
            places, share = anchors_and_candidates(row_numbers(both), codes, None)
            uses = [(places, share, True)]
            reduced[name], candidates[name] = parted(arch.reduce_uses({name: both}, name, uses)[0], codes)
        for side, names in self.sides.items():
            corpus = {name: getattr(self, f"corpus_{name}") for name in names}
            used_codes, negative_codes, share = drawn_codes(
                self.draws[side],
                getattr(batch, f"{side}_positives"),
                getattr(batch, side),
                step,
                getattr(batch, f"{side}_hard"),
                getattr(self, f"cumulative_{side}"),
            )
            codes, places = distinct_uses(used_codes)
            vectors = {name: corpus[name].index_select(0, codes) for name in names}
            uses = [(places, share, False)]
            compared = {name: arch.reduce_uses(vectors, name, uses)[0] for name in names}
            others[side] = (joined_vectors(compared, names), negative_codes)
        return reduced, others, candidates

    def _from_tables(self, batch: Batch) -> tuple[Reduced, dict[str, tuple[Tensor, Tensor]], Reduced]:
        """As `_from_rows`, from the content tables; each distinct entity passes the towers once."""
        vectors, reduced = self.model.content(batch.lookup.ids), {}
        against = {side: looked_up(draws, batch.lookup) for side, draws in self.draws.items()}
        for modality in self.model.modalities:
            roles, name = batch.lookup.places[modality.side], modality.name
            uses = [(roles["anchor"], None, True)]
            if name in self.compared:
                places, share = anchors_and_candidates(
                    roles["anchor"], roles["candidate"], roles["candidate"]
                )
                uses = [(places, share, True)]
            if modality.side in against:
                places, _, share = against[modality.side]
                uses.append((places, share, False))
            reduced[name] = self.model.dense_arch.reduce_uses(vectors, name, uses)
        anchors = {name: rows[0] for name, rows in reduced.items()}
        others = {name: rows[1] for name, rows in reduced.items() if len(rows) > 1}
        contrasted = {
            side: (joined_vectors(others, names), against[side][1]) for side, names in self.sides.items()
        }
        candidates = {}
        for name in self.compared:
            anchors[name], candidates[name] = parted(anchors[name], batch.listed.candidates)
        return anchors, contrasted, candidates

    def _contrast(
        self, side: str, batch: Batch, reduced: Reduced, others: Tensor, negative_codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum of the side's losses, number of valid anchors) on this rank."""
        codes, neighbours = getattr(batch, side), getattr(batch, f"{side}_positives")
        anchors, hard = joined_vectors(reduced, self.sides[side]), self.draws[side].hard
        if self.negatives == "batch":
            return batch_loss(anchors, codes, neighbours, others, self.temperature, self.normalize)
        positives, own, negatives = compared_parts(others, anchors, negative_codes, hard)
        return corpus_loss(
            anchors,
            codes,
            neighbours,
            positives,
            negatives,
            negative_codes,
            self.temperature,
            self.normalize,
            own if hard else None,
            self.hardest,
        )


@torch.fx.wrap
def next_step(counter: Tensor, step: int | Tensor | None, training: bool) -> Tensor:
    """The number of this step, i64 scalar on the counter's device; in training the counter moves past it."""
    now = counter.clone() if step is None else torch.as_tensor(step, dtype=torch.int64, device=counter.device)
    if training:
        counter.copy_(now + 1)
    return now


@torch.fx.wrap
def row_count(label: Tensor) -> Tensor:
    """Number of rows without padding (label -1), i64 scalar on the label's device."""
    return (label >= 0).sum()


@torch.fx.wrap
def global_means(
    sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Local sums and counts of the terms, by name, as means over all ranks, with one message.

    Returns:
        for the gradient: scalars, sum * ranks / global count, whose mean over the ranks is the global mean;
        for the report: the global means, detached. 0 where nothing counts anywhere.
    """
    # float64 keeps counts exact
    local = [*(sums[name].detach().double() for name in sums), *(counts[name].double() for name in sums)]
    totals, numbers = all_sum(torch.stack(local)).split(len(sums))
    numbers = numbers.clamp(min=1)
    means = dict(zip(sums, (totals / numbers).to(next(iter(sums.values())).dtype), strict=True))
    shares = {
        n: s * (world_size() / number).to(s.dtype)
        for (n, s), number in zip(sums.items(), numbers, strict=True)
    }
    return shares, means
