"""Positives and negatives drawn for a step.

Draws come from a counter-based generator (an integer hash of seed, step and index): they need no state and no
copy from the device, and are the same on every rank, for every number of ranks, and after a restart.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dlrrec_torchrec.data.hashing import hash63, mix64

_SIDE_STREAMS = {"item": 0, "user": 1}


@dataclasses.dataclass(frozen=True)
class Draws:
    """What the anchors of one side are compared with: a positive for each, and negatives for all.

    Attributes:
        side: "user" or "item".
        entities: how many there are.
        positive: "best" or "sample".
        negatives: how many to draw from all entities; 0: the negatives are those of the batch.
        seed: of the wrapper.
        hard: negatives that each anchor has of its own, drawn from `near`.
        cumulative: f64 [entities], where some are drawn more often than others (`popularity`); None: all
            with the same probability.
        near: i64 [entities, M], what `hard` draws from (`second_neighbours`).
    """

    side: str
    entities: int
    positive: str
    negatives: int
    seed: int
    hard: int = 0
    cumulative: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    near: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)

    def positives(self, neighbours: Tensor, codes: Tensor, step: int | Tensor) -> Tensor:
        """i64 [B] codes, -1 for none, as `choose_positives`."""
        return choose_positives(neighbours, codes, self.positive, self._stream, step)

    def corpus(
        self, step: int | Tensor, device: torch.device | None = None, cumulative: Tensor | None = None
    ) -> Tensor:
        """i64 [negatives] codes, as `draw_negatives`, or `draw_weighted` where there is `cumulative`.

        By default that is its own; it is on `device`.
        """
        cumulative = self.cumulative if cumulative is None else cumulative
        if cumulative is not None:
            return draw_weighted(self.negatives, cumulative, self._stream, step)
        return draw_negatives(self.negatives, self.entities, self._stream, step, device)

    def hard_negatives(self, codes: Tensor, step: int | Tensor) -> Tensor:
        """i64 [B, hard] codes, -1 for none, as `choose_hard`."""
        return choose_hard(self.near, codes, self.hard, self._stream, step)

    @property
    def _stream(self) -> int:
        return 2 * self.seed + _SIDE_STREAMS[self.side]


POSITIVE = ("best", "sample")
NEGATIVES = ("corpus", "batch", "popularity", "semi_hard", "swing_hard")
POPULARITY_POWER = 0.75  # of the training rows (Mikolov et al. 2013, section 2.2)

_STREAMS = {"offset": 1, "negative": 2, "positive": 3, "dropped": 4, "hard": 5}


def draw_negatives(num: int, corpus_size: int, seed: int, step: int | Tensor, device=None) -> Tensor:
    """`num` codes from range(corpus_size), i64 [num]; the same for equal (seed, step).

    Stratified: the corpus, turned by a random offset, is cut into `num` ranges of equal size and one code is
    drawn from each. Every entity has the same probability; none comes twice as long as num <= corpus_size.

    Args:
        step: number of the training step, int or integer tensor (which is not read back to the host).
    """
    part = torch.arange(num, device=device)
    low = part * corpus_size // num
    width = ((part + 1) * corpus_size // num - low).clamp(min=1)
    offset = _random_bits(part[:1] * 0, seed, "offset", step) % corpus_size
    return (offset + low + _random_bits(part, seed, "negative", step) % width) % corpus_size


def popularity(counts: Tensor) -> Tensor:
    """For `draw_weighted`, the running sum of probabilities in proportion to counts^POPULARITY_POWER.

    Args:
        counts: integers [N], training rows of each entity; one without any is never drawn, unless all are.

    Returns:
        f64 [N], up to 1; the same on every machine.
    """
    weight = counts.double().pow(POPULARITY_POWER)
    weight = weight if weight.any() else torch.ones_like(weight)
    total = weight.cumsum(0)
    return total / total[-1:]


def draw_weighted(num: int, cumulative: Tensor, seed: int, step: int | Tensor) -> Tensor:
    """`num` codes, each with the probability by which `cumulative` (f64 [N], up to 1) rises at it: i64 [num].

    Stratified as `draw_negatives`: the line from 0 to 1, turned by a random offset, is cut into `num` ranges
    of equal length and one point is drawn on each. So a code of probability p comes num · p times in
    expectation, and never more often than num · p + 2 times; the same for equal (seed, step).
    """
    part = torch.arange(num, device=cumulative.device)
    offset = _random_share(part[:1] * 0, seed, "offset", step)
    points = (offset + (part + _random_share(part, seed, "negative", step)) / num) % 1.0
    return torch.searchsorted(cumulative, points, right=True)


def choose_hard(near: Tensor, codes: Tensor, number: int, seed: int, step: int | Tensor) -> Tensor:
    """`number` of the `near` ones of each anchor, drawn without repetition, i64 [B, number]; -1 where it has
    no more.

    Args:
        near: i64 [N, M], row i of entity i, padded with -1 at the end.
        codes: i64 [B], the anchors, -1 for none; an entity that occurs twice in a step gets the same.
    """
    width = near.shape[1]
    chosen = codes.new_full((len(codes), number), -1)
    if not width:
        return chosen
    anchors = codes.clamp(min=0)
    listed = torch.where((codes >= 0).unsqueeze(1), near[anchors], -1)
    keys = _random_bits(anchors.unsqueeze(1) * width + torch.arange(width), seed, "hard", step)
    keys = torch.where(listed >= 0, keys, torch.iinfo(torch.int64).max)
    first = keys.argsort(dim=1, stable=True)[:, :number]
    chosen[:, : first.shape[1]] = listed.gather(1, first)
    return chosen


def choose_positives(positives: Tensor, codes: Tensor, kind: str, seed: int, step: int | Tensor) -> Tensor:
    """One positive for each anchor, i64 [B]; -1 where it has none.

    Args:
        positives: i64 [B, P], best first, padded with -1; P may be 0.
        codes: i64 [B], the anchors; an entity that occurs twice in a step gets the same sample.
        kind: "best" (the first) or "sample" (each of the listed with the same probability).
    """
    if positives.shape[1] == 0:
        return torch.full_like(codes, -1)
    if kind == "best":
        return positives[:, 0]
    count = (positives >= 0).sum(1)
    column = _random_bits(codes, seed, "positive", step) % count.clamp(min=1)
    return positives.gather(1, column.unsqueeze(1)).squeeze(1)


def permuted_positives(positives: Tensor, side: str, seed: int) -> Tensor:
    """Positives of a control: those of another entity, i64 [N, P], padded with -1 at the end.

    The entities that have any are permuted at random, so that as many anchors have positives, each list is
    somebody's as often as before, and only who it belongs to is lost. An entity is no positive of itself.

    Args:
        positives: i64 [N, P], row i of entity i, padded with -1.
        side: "user" or "item"; with `seed` it decides the permutation.
    """
    generator = torch.Generator().manual_seed(2 * seed + _SIDE_STREAMS[side])
    owners = torch.nonzero((positives >= 0).any(1)).squeeze(1)
    moved = positives.clone()
    moved[owners] = positives[owners[torch.randperm(len(owners), generator=generator)]]
    moved[moved == torch.arange(len(moved)).unsqueeze(1)] = -1
    return moved.gather(1, (moved < 0).int().argsort(dim=1, stable=True))


def kept_codes(codes: Tensor, dropped: float, seed: int, step: int | Tensor) -> Tensor:
    """Whether each of `codes` (i64 [n]) is kept in this step, bool [n]: with probability 1 - `dropped`.

    An entity that occurs twice in a step is kept, or not, in both places.
    """
    return _random_bits(codes, seed, "dropped", step) >= dropped * (1 << 63)


def _random_share(index: Tensor, seed: int, stream: str, step: int | Tensor) -> Tensor:
    """A random number in [0, 1) for each entry of `index`, f64 with 53 random bits."""
    return (_random_bits(index, seed, stream, step) >> 10).double() * 2.0**-53


def _random_bits(index: Tensor, seed: int, stream: str, step: int | Tensor) -> Tensor:
    """63 random bits for each entry of `index`, i64: SplitMix64 over seed, stream, step and index in turn."""
    key = torch.full((1,), seed, dtype=torch.int64, device=index.device)
    for value in (_STREAMS[stream], step, index):
        key = mix64(key) + value
    return hash63(key)
