"""List logits of any users and all items, by a model whose tables may be sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import Entities, pair_batch
from dlrrec_torchrec.data.listing import ListRows, category_lookup
from dlrrec_torchrec.data.lookup import make_lookup
from dlrrec_torchrec.models.dlrrec import DLRREC

BLOCK = 4096  # users, or items, that are looked up at once
RERANKED = 500  # items of a user, best list logits first, whose rating scores count
MIXES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # the shares of the rating logit that validation chooses from


class ListSides:
    """The sides of all items, computed once, and of users as they are asked for.

    With sharded tables every rank must make the same calls. Entities without training rows count by their
    content alone: their ids were never trained.

    Args:
        model: in eval mode; has a list head.
        spec: of its batches.
        entities: of the shards, with the vectors of `spec.in_rows`.
        device: of the model.

    Example::

        >>> sides = ListSides(model, spec, entities, torch.device("cpu"))  # doctest: +SKIP
        >>> sides.scores(np.array([3])).argmax()  # the best item for user 3  # doctest: +SKIP
        17
    """

    def __init__(self, model: DLRREC, spec: BatchSpec, entities: Entities, device: torch.device) -> None:
        self._model, self._spec, self._entities, self._device = model, spec, entities, device
        category = entities.items.category if model.list_head.by_category else None
        items = len(entities.items)
        self._rows = ListRows(
            "catalogue",
            items,
            category=category,
            padding=spec.facts.category_types,
            sequences=entities.sequences if model.list_head.recent else None,
            recent=model.list_head.recent,
        )
        blocks = [self._side("item", codes) for codes in np.array_split(np.arange(items), -(-items // BLOCK))]
        self.items = torch.cat(blocks)

    def scores(self, users: np.ndarray, items: Tensor | None = None) -> np.ndarray:
        """List logits f32 [n, items] of users int64 [n].

        Args:
            items: their sides [items, E + 1] (default: all of the shards).
        """
        items = self.items if items is None else items
        blocks = [
            self._side("user", users[start : start + BLOCK]) @ items.T / self._model.list_head.temperature
            for start in range(0, len(users), BLOCK)
        ]
        return torch.cat(blocks).cpu().numpy() if blocks else np.zeros((0, len(items)), np.float32)

    @torch.no_grad()
    def by_content(self, vectors: Mapping[str, np.ndarray], category: np.ndarray) -> Tensor:
        """The sides [n, E + 1] of items by their content alone, as of new ones.

        Args:
            vectors: modality of items -> [n, V], zeros where missing.
            category: i32 [n, slots], padded with the number of types.
        """
        head = self._model.list_head
        reduced = {
            name: reduced_vectors(self._model, name, vectors[name], self._device)
            for name in head.sides["item"]
        }
        categories = None
        if head.by_category:
            ids = category_lookup(category, self._spec.facts.category_types)
            categories = head.tables(ids.to(self._device)).to_dict()["list_category"]
        return head.content_side(len(category), reduced, categories)

    def ratings(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Rating logits f32 [n] of pairs of codes [n]."""
        parts = [np.zeros(0, np.float32)]
        with torch.no_grad():
            for start in range(0, len(users), BLOCK):
                chosen = slice(start, start + BLOCK)
                batch = pair_batch(self._entities, users[chosen], items[chosen], self._spec)
                parts.append(self._model.score(batch.to(self._device)).cpu().numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def _side(self, side: str, codes: np.ndarray) -> Tensor:
        """The sides f32 [n, E + 1] of the users or items with these codes."""
        head, device, wanted = self._model.list_head, self._device, torch.from_numpy(codes)
        none = wanted[:0]
        ids = self._rows.lookup(*((wanted, none) if side == "user" else (none, wanted)))
        found = head.tables(ids.to(device)).to_dict()
        names, vectors = head.sides[side], self._vectors(side, codes)
        places = torch.arange(len(codes), device=device)
        reduced = {
            name: self._model.dense_arch.reduce_uses(vectors, name, [(places, None, False)])[0]
            for name in names
        }
        counts = self._entities.users.count if side == "user" else self._entities.items.count
        known = torch.from_numpy(counts[codes] > 0).to(device)
        ids = found[f"list_{side}"][: len(codes)] * known.unsqueeze(1)
        if side == "user":
            recent = None
            if head.recent:
                recent = head.recent_side(found["list_item"], found.get("list_category"))
            return head.user_side(ids, reduced, recent=recent)
        category = found["list_category"] if head.by_category else None
        return head.item_side(wanted.to(device), ids, reduced, category)

    def _vectors(self, side: str, codes: np.ndarray) -> dict[str, Tensor]:
        """modality -> the content vectors [n, V] of the side."""
        names = self._model.list_head.sides[side]
        if self._model.content is None or not names:
            vectors = self._entities.vectors
            return {name: torch.from_numpy(vectors[name][codes]).to(self._device) for name in names}
        wanted = torch.from_numpy(codes)
        of_sides = {m.side for m in self._spec.in_tables}
        codes_of = {s: {"anchor": wanted if s == side else wanted[:0]} for s in sorted(of_sides)}
        lookup = make_lookup(codes_of, self._spec.in_tables).to(self._device)
        vectors = self._model.content(lookup.ids)
        return {name: vectors[name][lookup.places[side]["anchor"]] for name in names}


@torch.no_grad()
def reduced_vectors(model: DLRREC, modality: str, vectors: np.ndarray, device: torch.device) -> Tensor:
    """What the modality's tower, in eval mode, makes of vectors [n, V]: f32 [n, R], zeros where missing."""
    tower = model.dense_arch.towers[modality]
    blocks = [
        tower(torch.from_numpy(vectors[start : start + BLOCK]).to(device)).float()
        for start in range(0, max(len(vectors), 1), BLOCK)
    ]
    return torch.cat(blocks)


def content_directions(model: DLRREC, vectors: Mapping[str, np.ndarray], device: torch.device) -> np.ndarray:
    """Reduced vectors of all these modalities side by side, at length 1: f32 [n, sum of R].

    What the contrastive terms compare (with contrastive.normalize); zeros where nothing is known.

    Args:
        vectors: modality -> [n, V], in the model's order; not empty.
    """
    reduced = [reduced_vectors(model, name, found, device) for name, found in vectors.items()]
    return F.normalize(torch.cat(reduced, dim=1), dim=1).cpu().numpy()


class Reranked:
    """List logits with the rating logits of each user's best items, to be added in any share.

    Rating logits are computed of each user's RERANKED best unseen items; the others get the least of the
    user's, so that they stay comparable.

    Args:
        scores: list logits f32 [n, items].
        rating: (rows i64 [m] of `scores`, items i64 [m]) -> rating logits [m].
        seen: bool [n, items].

    Example::

        >>> scores, seen = np.array([[2.0, 1.0, 0.0]]), np.zeros((1, 3), bool)
        >>> reranked = Reranked(scores, lambda rows, items: items.astype(float), seen)
        >>> reranked.at(0.0).tolist(), reranked.at(2.0).tolist()
        ([[2.0, 1.0, 0.0]], [[2.0, 3.0, 4.0]])
    """

    def __init__(
        self,
        scores: np.ndarray,
        rating: Callable[[np.ndarray, np.ndarray], np.ndarray],
        seen: np.ndarray,
    ) -> None:
        self._scores = scores
        number = min(RERANKED, scores.shape[1])
        unseen = np.where(seen, -np.inf, scores)
        self._best = np.argpartition(-unseen, number - 1, axis=1)[:, :number]
        rows = np.repeat(np.arange(len(scores)), number)
        self._rating = rating(rows, self._best.reshape(-1)).reshape(self._best.shape)

    def at(self, mix: float) -> np.ndarray:
        """f32 [n, items]: list logit + `mix` · rating logit."""
        mixed_scores = self._scores + mix * self._rating.min(axis=1, keepdims=True)
        chosen = np.take_along_axis(self._scores, self._best, 1) + mix * self._rating
        np.put_along_axis(mixed_scores, self._best, chosen, 1)
        return mixed_scores.astype(np.float32, copy=False)
