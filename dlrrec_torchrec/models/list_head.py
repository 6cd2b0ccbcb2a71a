"""The list head: a user and all items in one space, for lists of the best items.

A softmax over the catalogue, as in YouTube's two towers (Yi et al. 2019): the cosine of the user's side and
the item's, divided by a temperature, is the logit of the item. A side is an id embedding plus linear maps of
the reduced content vectors and, of items, the sum of their categories' embeddings. A user's side may also
have the items that the user reviewed last, pooled (Covington et al. 2016, "Deep Neural Networks for YouTube
Recommendations"): what comes next often goes with them (Rendle et al. 2010, FPMC). The item's popularity adds
to its logit, so that training begins at the list of the most reviewed items and has to improve on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from dlrrec_torchrec.data.listing import LIST_KEYS, Listed
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality

RECENT_WEIGHT = 0.5  # of each range of a user's latest items, at first
LIST_INIT = 0.1  # standard deviation of the tables' first values: with it the rates do not depend on the rows


class ListHead(nn.Module):
    """Users' and items' sides: unit vectors and one more number, [n, E + 1].

    The dot product of the two, divided by tau, is the list logit cosine / tau + s log(1 + n_i), where n_i is
    the item's number of training rows and s is learned, 1 at first: a user's last number is tau, an item's
    s log(1 + n_i). The linear maps begin at zero: at first the ids alone decide.

    Args:
        tables: t_list_user, t_list_item and, where there is one, t_list_category, each of the feature of
            its name and of one dimension E.
        reduced: modality -> size R of its reduced vectors; none: by ids alone.
        temperature: tau.
        items: how many there are; `set_popularity` tells of each how often it was reviewed.
        recent: ranges of a user's latest items, as of `data.listing.recent_ranges`; each adds the sum of its
            items' id and category embeddings, divided by the range's length, to the user's side, by a weight
            of its own and one linear map that begins as the identity. A user with fewer items has less of it.

    Attributes:
        by_category: whether items have an embedding of their categories.

    Example::

        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> tables = EmbeddingBagCollection(
        ...     tables=[
        ...         EmbeddingBagConfig(
        ...             name=f"t_{key}", embedding_dim=8, num_embeddings=5, feature_names=[key]
        ...         )
        ...         for key in ("list_user", "list_item")
        ...     ]
        ... )
        >>> head = ListHead(tables, modalities=(), reduced={}, temperature=0.2, items=5)
        >>> head.set_popularity(torch.tensor([9, 0, 0, 0, 3]))
        >>> ids = torch.zeros(1, 8)
        >>> users, items = head.user_side(ids, {}), head.item_side(torch.tensor([4]), ids, {})
        >>> round(float(users @ items.T) / 0.2, 3)  # nothing but the popularity, ln(1 + 3)
        1.386
    """

    def __init__(
        self,
        tables: EmbeddingBagCollection,
        modalities: tuple[Modality, ...],
        reduced: Mapping[str, int],
        temperature: float,
        items: int,
        recent: tuple[tuple[int, int], ...] = (),
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise DataError(f"list.tau: {temperature} must be above 0")
        self.popularity = nn.Parameter(torch.ones((), device=device))
        self.register_buffer("log_count", torch.zeros(items, device=device))
        self.tables = tables
        self.temperature = temperature
        configs = tables.embedding_bag_configs()
        dim, self.by_category = configs[0].embedding_dim, len(configs) == len(LIST_KEYS)
        self.sides = {
            side: [m.name for m in modalities if m.side == side and m.name in reduced]
            for side in ("user", "item")
        }
        self.maps = nn.ModuleDict()
        for names in self.sides.values():
            for name in names:
                self.maps[name] = nn.Linear(reduced[name], dim, bias=False, device=device)
                nn.init.zeros_(self.maps[name].weight)
        self.recent = recent
        if recent:
            self.recent_map = nn.Linear(dim, dim, bias=False, device=device)
            nn.init.eye_(self.recent_map.weight)
            self.recent_weight = nn.Parameter(torch.full((len(recent),), RECENT_WEIGHT, device=device))
            widths = torch.tensor([last - first for first, last in recent], device=device)
            self.register_buffer("recent_share", 1.0 / widths, persistent=False)

    @torch.no_grad()
    def set_popularity(self, counts: Tensor) -> None:
        """Take in the items' numbers of training rows, [items]."""
        self.log_count.copy_(torch.log1p(counts.float()))

    def forward(
        self,
        listed: Listed,
        item: Tensor,
        reduced: Mapping[str, Tensor],
        compared: Mapping[str, Tensor],
        kept: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sides of a batch's users and items, [B, E + 1] each, and of the candidates [N, E + 1].

        Args:
            item: codes of the rows' items, i64 [B].
            reduced: modality -> [B, R], as the prediction has them.
            compared: modality of items -> [N, R], of the candidates.
            kept: of the three, whose ids count, bool [n] each; None: all.
        """
        found = self.tables(listed.ids)
        number, groups = listed.candidates, 1 + len(self.recent)

        def of_items(part: str) -> tuple[Tensor, Tensor | None]:
            keys = ("list_item", "list_category") if self.by_category else ("list_item",)
            rows = [take_part(found, key, number, part, groups) for key in keys]
            return rows[0], rows[1] if self.by_category else None

        recent = self.recent_side(*of_items("recent")) if self.recent else None
        ids = take_part(found, "list_user", number, "users", groups)
        users = self.user_side(ids, reduced, kept[0], recent)
        items = []
        for part, codes, content, ids in (
            ("own", item, reduced, kept[1]),
            ("candidates", number, compared, kept[2]),
        ):
            own, category = of_items(part)
            items.append(self.item_side(codes, own, content, category, ids))
        return users, items[0], items[1]

    def recent_side(self, ids: Tensor, category: Tensor | None) -> Tensor:
        """What their latest items add to n users' sides, f32 [n, E].

        Args:
            ids, category: [K n, E], of all users' items in the first of K ranges, in the second, ...
        """
        bags = ids if category is None else ids + category
        bags = bags.float().reshape(len(self.recent), -1, bags.shape[1])
        weights = (self.recent_weight * self.recent_share).reshape(-1, 1, 1)
        return self.recent_map((bags * weights).sum(0))

    def user_side(
        self,
        ids: Tensor,
        reduced: Mapping[str, Tensor],
        kept: Tensor | None = None,
        recent: Tensor | None = None,
    ) -> Tensor:
        """f32 [n, E + 1] of users; arguments as in `item_side`, `recent` as of `recent_side`."""
        parts = self._content("user", reduced)
        unit = unit_side(ids, parts + ([] if recent is None else [recent]), kept)
        return torch.cat([unit, torch.full_like(unit[:, :1], self.temperature)], dim=1)

    def item_side(
        self,
        codes: Tensor,
        ids: Tensor,
        reduced: Mapping[str, Tensor],
        category: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """f32 [n, E + 1] of items.

        Args:
            codes: i64 [n], -1 for padding.
            ids, category: [n, E], from the tables.
            reduced: modality -> [n, R].
            kept: bool [n]; where False and there is content, it stands in for the id. None: every id counts.
        """
        parts = self._content("item", reduced)
        unit = unit_side(ids, parts + ([] if category is None else [category]), kept)
        counts = self.log_count.index_select(0, codes.clamp(min=0))
        return torch.cat([unit, (self.popularity * counts).unsqueeze(1)], dim=1)

    def content_side(
        self, number: int, reduced: Mapping[str, Tensor], category: Tensor | None = None
    ) -> Tensor:
        """f32 [number, E + 1] of items by their content alone, without an id or a training row."""
        none = torch.zeros(number, self.tables.embedding_bag_configs()[0].embedding_dim)
        none = none.to(self.log_count.device)
        parts = self._content("item", reduced)
        unit = unit_side(none, parts + ([] if category is None else [category]), None)
        return torch.cat([unit, none[:, :1]], dim=1)

    def _content(self, side: str, reduced: Mapping[str, Tensor]) -> list[Tensor]:
        return [self.maps[name](reduced[name]) for name in self.sides[side] if name in reduced]


@torch.fx.wrap
def take_part(found: KeyedTensor, key: str, candidates: Tensor, part: str, groups: int) -> Tensor:
    """The rows of a feature for the batch's "users", the "candidates", the batch's "own" items or the users'
    "recent" ones; `groups` of equally many rows follow the candidates, own items and then recent ones."""
    rows, number = found.to_dict()[key], len(candidates)
    size = (len(rows) - number) // groups
    first, last = {
        "users": (0, size),
        "candidates": (0, number),
        "own": (number, number + size),
        "recent": (number + size, len(rows)),
    }[part]
    return rows[first:last]


@torch.fx.wrap
def unit_side(ids: Tensor, content: list[Tensor], kept: Tensor | None) -> Tensor:
    """Unit vectors f32 [n, E] of ids [n, E] and what content adds to them, [n, E] each."""
    with torch.autocast(ids.device.type, enabled=False):
        vectors = ids.float()
        if content:
            added = sum(part.float() for part in content)
            if kept is not None:
                vectors = vectors * (kept | ~added.detach().ne(0).any(1)).unsqueeze(1)
            vectors = vectors + added
        return F.normalize(vectors, dim=1)
