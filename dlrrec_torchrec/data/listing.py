"""What the list head looks up for a batch: its users, its items, and the items that these compete with."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.draws import draw_negatives
from dlrrec_torchrec.data.lookup import Parts
from dlrrec_torchrec.data.sequences import Sequences

CANDIDATES = ("catalogue", "sampled", "batch")
LIST_KEYS = ("list_user", "list_item", "list_category")
MOST_SEEN = 1000  # items of a user that are masked, at most
_STREAM = 5  # of the seed's draws, apart from those of the contrastive terms

Jagged = tuple[Tensor, Tensor]  # values, and how many of them each row has


@dataclasses.dataclass
class Listed(Parts):
    """The users and items of a batch's B rows, and N candidates, as one jagged lookup of N + (1 + K) B rows.

    Row i of `list_user` is the user of the batch's row i. Rows 0 … N - 1 of `list_item` are the candidates,
    row N + i is the item of the batch's row i, row N + (1 + k) B + i has the items of the user that lie
    `recent[k]` back from it in time; `list_category` holds their categories. All other rows are empty, so
    that all features have equally many.

    Attributes:
        ids: jagged, of LIST_KEYS.
        candidates: i64 [N] distinct codes, the same on all ranks. None (N = 0) where the candidates are the
            items of all ranks' rows.
        seen_row, seen_item: i64 [M], the items that the users of the rows have in other training rows; none
            where these stay among the candidates.
        recent: K ranges, as of `recent_ranges`.
    """

    ids: KeyedJaggedTensor
    candidates: Tensor
    seen_row: Tensor
    seen_item: Tensor
    recent: tuple[tuple[int, int], ...] = ()

    def of_rows(self, rows: slice) -> Listed:
        """What only the batch's `rows` look up, against the same candidates."""
        parts, number = {}, len(self.candidates)
        groups = 1 + len(self.recent)
        size, wanted = (self.ids.stride() - number) // groups, rows.stop - rows.start
        for key, feature in self.ids.to_dict().items():
            ends = torch.cat([torch.zeros(1, dtype=torch.int64), feature.lengths().long().cumsum(0)]).tolist()

            def part(first: int, last: int, feature=feature, ends=ends) -> Jagged:
                return feature.values()[ends[first] : ends[last]], feature.lengths()[first:last]

            if key == "list_user":
                parts[key] = [part(rows.start, rows.stop)]
            else:
                starts = [number + group * size + rows.start for group in range(groups)]
                parts[key] = [part(0, number), *(part(start, start + wanted) for start in starts)]
        ids = _jagged(parts, number + groups * wanted)
        kept = (self.seen_row >= rows.start) & (self.seen_row < rows.stop)
        return Listed(
            ids, self.candidates, self.seen_row[kept] - rows.start, self.seen_item[kept], self.recent
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ListRows:
    """How the lookups of the list head are made.

    Attributes:
        candidates: "catalogue" (all items), "sampled" (`number` of them in each step) or "batch" (those of
            the batch).
        items: how many there are.
        number: of sampled candidates, at most `items`.
        seed: of the sample.
        category: i32 [items, slots], the items' category types, padded with `padding`; None without.
        content: whether the candidates' content vectors are needed too.
        sequences: of the training rows; needed by the next two.
        mask_seen: leave a user's other items out of the candidates.
        recent: ranges of a user's items before a row's, as of `recent_ranges`.
    """

    candidates: str
    items: int
    number: int = 0
    seed: int = 0
    category: np.ndarray | None = None
    padding: int = 0
    content: bool = False
    sequences: Sequences | None = None
    mask_seen: bool = False
    recent: tuple[tuple[int, int], ...] = ()

    def of_batch(self, user: Tensor, item: Tensor, step: int) -> Listed:
        """The lookup of rows with these users and items, i64 [B] codes, -1 for none."""
        if self.candidates == "catalogue":
            codes = torch.arange(self.items)
        elif self.candidates == "sampled":
            codes = draw_negatives(self.number, self.items, 2 * self.seed + _STREAM, step)
        else:
            codes = item[:0]
        ids = self.lookup(user, torch.cat([codes, item]), item)
        return Listed(ids, codes, *self._seen(user, item), self.recent)

    def _seen(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and items of `Listed.seen_row`, `seen_item`; of a user MOST_SEEN items at most."""
        if not self.mask_seen:
            return user[:0], user[:0]
        rows, items = self.sequences.latest(user.numpy(), MOST_SEEN)
        others = items != item.numpy()[rows]
        return torch.from_numpy(rows[others]), torch.from_numpy(items[others])

    def lookup(self, user: Tensor, item: Tensor, own: Tensor | None = None) -> KeyedJaggedTensor:
        """The ids of LIST_KEYS for these users i64 [m] and items i64 [n] (-1 for none), and then for the
        users' `recent` items, before the item `own` i64 [m] of each (default: the latest of all)."""
        parts = {
            key: [(codes[codes >= 0], (codes >= 0).int())]
            for key, codes in zip(LIST_KEYS, (user, item), strict=False)
        }
        if self.category is not None:
            codes = item.numpy()
            types = np.where((codes >= 0)[:, None], self.category[codes], self.padding)
            parts["list_category"] = [_types(types, self.padding)]
        if not self.recent or not len(user):
            return _jagged(parts, max(len(user), len(item)))
        users = user.numpy()
        place = self.sequences.number(users) if own is None else self.sequences.place(users, own.numpy())
        for first, last in self.recent:
            rows, items, lengths = self.sequences.before(users, place, first, last)
            parts["list_item"].append((torch.from_numpy(items), torch.from_numpy(lengths.astype(np.int32))))
            if self.category is not None:
                values, of_item = _types(self.category[items], self.padding)
                number = np.bincount(rows, of_item.numpy(), len(users)).astype(np.int32)
                parts["list_category"].append((values, torch.from_numpy(number)))
        return _jagged(parts, len(item) + len(self.recent) * len(users))


def recent_ranges(number: int) -> tuple[tuple[int, int], ...]:
    """The latest `number` items in ranges [first, last), three times as far back each: 0 is the latest.

    Example::

        >>> recent_ranges(20)
        ((0, 1), (1, 3), (3, 9), (9, 20))
    """
    ends = [0]
    while ends[-1] < number:
        ends.append(min(max(3 * ends[-1], 1), number))
    return tuple(itertools.pairwise(ends))


def category_lookup(category: np.ndarray, padding: int) -> KeyedJaggedTensor:
    """The lookup of LIST_KEYS for n items that have these category types i32 [n, slots], and no ids."""
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    parts = dict(zip(LIST_KEYS, ([none], [none], [_types(category, padding)]), strict=True))
    return _jagged(parts, len(category))


def _types(category: np.ndarray, padding: int) -> Jagged:
    """The types [n, slots] that are not padding."""
    present = category != padding
    values = torch.from_numpy(category[present].astype(np.int64))
    return values, torch.from_numpy(present.sum(1, dtype=np.int32))


def _jagged(parts: dict[str, list[Jagged]], rows: int) -> KeyedJaggedTensor:
    """Each feature's parts one after the other, filled up with empty rows."""
    values = [value for jagged in parts.values() for value, _ in jagged]
    lengths = []
    for jagged in parts.values():
        lengths += [length for _, length in jagged]
        lengths.append(torch.zeros(rows - sum(len(length) for _, length in jagged), dtype=torch.int32))
    return KeyedJaggedTensor(list(parts), torch.cat(values), lengths=torch.cat(lengths))
