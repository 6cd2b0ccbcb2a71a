"""What the lists of held-out users are worth during training, over all ranks."""

from __future__ import annotations

import os

import numpy as np
from torchrec.distributed.model_parallel import DistributedModelParallel, get_unwrapped_module

from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import Entities
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.list_sides import MIXES, ListSides, Reranked
from dlrrec_torchrec.ranking import second_stage
from dlrrec_torchrec.ranking.full_ranking import Relevant, Scores, rank_lists
from dlrrec_torchrec.sharding.table_optimizers import uncounted

MEASURED = ("recall@20", "ndcg@20")
_MIX_PAIRS = 20_000_000  # of users and items, whose scores choose the shares: that many users, but from
_MIX_USERS = (200, 1000)  # so many to so many


class ListMetrics:
    """Recall and NDCG of the lists of some users of a held-out split.

    Relevant are a user's rows with label 1; items of the user's training rows are not ranked.

    Args:
        shards_dir: the shards; split: "val" or "test".
        spec, entities: as ListSides.
        users: measured, at most.
        seed: of their choice.
        ease: whether `best_mix` may add EASE; it does not where `second_stage.left_out` says why.
    """

    def __init__(
        self,
        shards_dir: str | os.PathLike,
        split: str,
        spec: BatchSpec,
        entities: Entities,
        ranks: Ranks,
        users: int,
        seed: int,
        ease: bool = True,
    ) -> None:
        self._spec, self._entities, self._ranks = spec.to_predict(), entities, ranks
        seen = split_pairs(shards_dir, "train")
        self._counts = np.asarray(seen.sum(0)).reshape(-1)
        self._task = Relevant.of(split_pairs(shards_dir, split, liked=True), seen).sample(users, seed)
        fewest, most = _MIX_USERS
        self._few = self._task.sample(
            int(np.clip(_MIX_PAIRS // max(len(self._counts), 1), fewest, most)), seed
        )
        self._shards_dir = shards_dir
        self._ease = ease and not second_stage.left_out(*seen.shape)

    @property
    def users(self) -> int:
        """How many are measured."""
        return len(self._task.users)

    def measure(self, model: DistributedModelParallel) -> dict[str, float]:
        """MEASURED by list logits alone, the same on all ranks; 0 without users. Call it on all ranks."""
        with uncounted(model):
            return self._means(self._task, self._sides(model).scores)

    def best_mix(self, model: DistributedModelParallel, rated: bool) -> dict[str, float]:
        """What is added to list logits, by the best NDCG@20 + Recall@20 / 2: first the share `mix` of the
        rating logit, of MIXES; then, beside it, the share `ease` of EASE, of `second_stage.SHARES`. And both
        metrics with it. The first of equals is taken.

        Args:
            rated: False: the rating was not trained, and its share is 0.
        """
        users, seen = self._few.users, self._few.seen.toarray() > 0
        with uncounted(model):
            sides = self._sides(model)
            scores = sides.scores(users)
            reranked = Reranked(scores, lambda rows, items: sides.ratings(users[rows], items), seen)
        found = [
            {"mix": mix, "ease": 0.0} | self._worth(reranked.at(mix))
            for mix in (MIXES if rated else MIXES[:1])
        ]
        if self._ease:
            mix = max(found, key=_mixture)["mix"]
            mixed = reranked.at(mix)
            # Every rank fits it: a second of work, and no matrix of weights to send.
            other = second_stage.fit(split_pairs(self._shards_dir, "train", liked=True))(users)
            found += [
                {"mix": mix, "ease": share} | self._worth(second_stage.added(mixed, other, seen, share))
                for share in second_stage.SHARES[1:]
            ]
        return max(found, key=_mixture)

    def _worth(self, scores: np.ndarray) -> dict[str, float]:
        """MEASURED of these scores f32 [n, items] of the users who choose."""
        return self._means(self._few, lambda users: scores[np.searchsorted(self._few.users, users)])

    def _sides(self, model: DistributedModelParallel) -> ListSides:
        plain = get_unwrapped_module(model.eval()).model
        return ListSides(plain, self._spec, self._entities, self._ranks.device)

    def _means(self, task: Relevant, scores: Scores) -> dict[str, float]:
        """All ranks call `scores` for the same users; rank 0's means go to all."""
        means = rank_lists(scores, task, self._counts, cutoffs=(20,)).means() if len(task.users) else {}
        return self._ranks.share({name: float(means.get(name, 0.0)) for name in MEASURED})


def _mixture(found: dict[str, float]) -> float:
    return found["ndcg@20"] + found["recall@20"] / 2
