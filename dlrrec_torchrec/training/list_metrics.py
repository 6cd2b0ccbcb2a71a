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
from dlrrec_torchrec.ranking.full_ranking import Relevant, Scores, rank_lists
from dlrrec_torchrec.sharding.table_optimizers import uncounted

MEASURED = ("recall@20", "ndcg@20")
_MIX_USERS = 200  # whose lists choose the share of the rating


class ListMetrics:
    """Recall and NDCG of the lists of some users of a held-out split.

    Relevant are a user's rows with label 1; items of the user's training rows are not ranked.

    Args:
        shards_dir: the shards; split: "val" or "test".
        spec, entities: as ListSides.
        users: measured, at most.
        seed: of their choice.
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
    ) -> None:
        self._spec, self._entities, self._ranks = spec.to_predict(), entities, ranks
        seen = split_pairs(shards_dir, "train")
        self._counts = np.asarray(seen.sum(0)).reshape(-1)
        self._task = Relevant.of(split_pairs(shards_dir, split, liked=True), seen).sample(users, seed)
        self._few = self._task.sample(_MIX_USERS, seed)

    @property
    def users(self) -> int:
        """How many are measured."""
        return len(self._task.users)

    def measure(self, model: DistributedModelParallel) -> dict[str, float]:
        """MEASURED by list logits alone, the same on all ranks; 0 without users. Call it on all ranks."""
        with uncounted(model):
            return self._means(self._task, self._sides(model).scores)

    def best_mix(self, model: DistributedModelParallel) -> dict[str, float]:
        """The share `mix` of the rating logit (of MIXES) with the best NDCG@20 + Recall@20 / 2, and both."""
        with uncounted(model):
            sides = self._sides(model)
            scores = sides.scores(self._few.users)
            seen = self._few.seen.toarray() > 0

            def rating(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
                return sides.ratings(self._few.users[rows], items)

            reranked = Reranked(scores, rating, seen)
        found = []
        for mix in MIXES:
            combined = reranked.at(mix)
            means = self._means(
                self._few, lambda users, s=combined: s[np.searchsorted(self._few.users, users)]
            )
            found.append({"mix": mix} | means)
        return max(found, key=lambda m: m["ndcg@20"] + m["recall@20"] / 2)

    def _sides(self, model: DistributedModelParallel) -> ListSides:
        plain = get_unwrapped_module(model.eval()).model
        return ListSides(plain, self._spec, self._entities, self._ranks.device)

    def _means(self, task: Relevant, scores: Scores) -> dict[str, float]:
        """All ranks call `scores` for the same users; rank 0's means go to all."""
        means = rank_lists(scores, task, self._counts, cutoffs=(20,)).means() if len(task.users) else {}
        return self._ranks.share({name: float(means.get(name, 0.0)) for name in MEASURED})
