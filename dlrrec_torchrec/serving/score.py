"""Scores of (user, item) pairs by a trained model: one path for evaluation and recommendation."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from dlrrec_torchrec.config import ModelConfig, from_dict
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.entities import Entities, load_entities, pair_batch
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.models.calibration import Calibration
from dlrrec_torchrec.models.list_sides import ListSides, Reranked, content_directions, reduced_vectors
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.ranking import second_stage
from dlrrec_torchrec.ranking.full_ranking import Scores
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts


class Scorer:
    """The best epoch's model of a training, ready to score.

    Args:
        train_dir: of a finished training.
        shards_dir: the shards it was trained on.
        device: "cpu", "cuda" or "auto".
        batch_size: pairs that are scored at once.

    Attributes:
        spec: what its batches hold.
        calibration: makes probabilities of its logits.
        has_lists: whether it has a list head.

    Raises:
        DataError: as `load_trained`; from its methods also for a score that is not a number.
    """

    def __init__(
        self,
        train_dir: str | os.PathLike,
        shards_dir: str | os.PathLike,
        device: str = "cpu",
        batch_size: int = 4096,
    ) -> None:
        self._train_dir, self._shards_dir, self._batch_size = Path(train_dir), Path(shards_dir), batch_size
        self._model = load_trained(train_dir, shards_dir, device)
        self._device = next(self._model.parameters()).device
        trained = Manifest.read(train_dir)
        settings = from_dict(ModelConfig, trained.config["model"], str(train_dir))
        self.calibration = Calibration.of(trained.facts)
        self.spec = batch_spec(settings, ShardFacts.read(shards_dir))
        self.has_lists = getattr(self._model, "list_head", None) is not None

    @functools.cached_property
    def entities(self) -> Entities:
        """Users and items of the shards with the vectors that its batches hold, read at the first use."""
        return load_entities(self._shards_dir, self.spec.in_rows)

    def split(self, name: str) -> ShardLoader:
        """The batches of a split's rows, in the shards' order, as `logits` takes them."""
        return make_loader(self._shards_dir, name, self._batch_size, self.spec)

    def pairs(self, entities: Entities, users: np.ndarray, items: np.ndarray) -> Iterator[Batch]:
        """The batches of any pairs of codes, integers [N] each, as `logits` takes them.

        Args:
            entities: of the shards, with the vectors of `spec.in_rows` (`load_entities`).
        """
        for start in range(0, len(items), self._batch_size):
            chosen = slice(start, start + self._batch_size)
            yield pair_batch(entities, users[chosen], items[chosen], self.spec)

    def list_scores(self, users: np.ndarray, rated: bool = True) -> np.ndarray:
        """What ranks all items for users: list logit + a · rating logit + a share of EASE, f32 [n, items].

        `a` and the share are what validation chose at the end of the training. The rating logits are those of
        each user's best items without a training row (`models.list_sides.Reranked`); EASE, of the training
        rows, is added as in `ranking.second_stage`.

        Args:
            users: int64 [n] codes.
            rated: False: the list logit alone, as training measures it after each epoch.

        Raises:
            ValueError: the model has no list head.
        """
        sides, shares, pairs = self._lists
        scores = sides.scores(users)
        if rated and (shares["mix"] or shares["ease"]):
            seen = pairs[users].toarray() > 0
            if shares["mix"]:
                reranked = Reranked(scores, lambda rows, items: sides.ratings(users[rows], items), seen)
                scores = reranked.at(shares["mix"])
            if shares["ease"]:
                scores = second_stage.added(scores, self._ease(users), seen, shares["ease"])
        if bad := int((~np.isfinite(scores)).sum()):
            raise DataError(
                f"{self._train_dir}: {bad} list scores are not numbers; train again with a lower rate"
            )
        return scores

    def content_directions(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """As `models.list_sides.content_directions`: modality -> [n, V] to f32 [n, sum of R]."""
        return content_directions(self._model, vectors, self._device)

    def content_scores(
        self, users: np.ndarray, vectors: Mapping[str, np.ndarray], category: np.ndarray
    ) -> np.ndarray:
        """List logits f32 [n, items] of users for items that count by their content alone, not by an id.

        Args:
            users: int64 [n] codes.
            vectors, category: of the items, as in `models.list_sides.ListSides.by_content`.

        Raises:
            ValueError: the model has no list head.
        """
        sides = self._lists[0]
        return sides.scores(users, sides.by_content(vectors, category))

    @functools.cached_property
    def _lists(self) -> tuple[ListSides, dict[str, float], sparse.csr_matrix]:
        """The items' sides, the shares "mix" of the rating and "ease", and the pairs of the training rows."""
        if not self.has_lists:
            raise ValueError("the model has no list head")
        shares = {"ease": 0.0} | Manifest.read(self._train_dir).facts["list"]
        sides = ListSides(self._model, self.spec, self.entities, self._device)
        return sides, shares, split_pairs(self._shards_dir, "train")

    @functools.cached_property
    def _ease(self) -> Scores:
        """EASE of the liked training rows."""
        return second_stage.fit(split_pairs(self._shards_dir, "train", liked=True))

    def reduced(self, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The towers' vectors f32 [n, R] of content vectors [n, V], by modality; zeros where missing."""
        return {
            name: reduced_vectors(self._model, name, found, self._device).cpu().numpy()
            for name, found in vectors.items()
        }

    @torch.no_grad()
    def logits(self, batches: Iterable[Batch]) -> np.ndarray:
        """Logits f64 [N] of all rows of the batches, in order."""
        parts = [np.zeros(0)]
        for batch in batches:
            parts.append(self._model.score(batch.to(self._device)).double().cpu().numpy())
        logits = np.concatenate(parts)
        if bad := int((~np.isfinite(logits)).sum()):
            raise DataError(
                f"{self._train_dir}: {bad} of {len(logits)} predictions are not numbers; "
                "train again with a lower train.lr"
            )
        return logits
