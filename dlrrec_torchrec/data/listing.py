"""What the list head looks up for a batch: its users, its items, and the items that these compete with."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.draws import draw_negatives
from dlrrec_torchrec.data.lookup import Parts

CANDIDATES = ("catalogue", "sampled", "batch")
LIST_KEYS = ("list_user", "list_item", "list_category")
MOST_SEEN = 1000  # items of a user that are masked, at most
_STREAM = 5  # of the seed's draws, apart from those of the contrastive terms

Jagged = tuple[Tensor, Tensor]  # values, and how many of them each row has


@dataclasses.dataclass
class Listed(Parts):
    """The users and items of a batch's B rows, and N candidates, as one jagged lookup of N + B rows.

    Row i of `list_user` is the user of the batch's row i. Rows 0 … N - 1 of `list_item` are the candidates,
    row N + i is the item of the batch's row i; `list_category` holds their categories. All other rows are
    empty, so that all features have equally many.

    Attributes:
        ids: jagged, of LIST_KEYS.
        candidates: i64 [N] distinct codes, the same on all ranks. None (N = 0) where the candidates are the
            items of all ranks' rows.
        seen_row, seen_item: i64 [M], the items that the users of the rows have in other training rows; none
            where these stay among the candidates.
    """

    ids: KeyedJaggedTensor
    candidates: Tensor
    seen_row: Tensor
    seen_item: Tensor

    def of_rows(self, rows: slice) -> Listed:
        """What only the batch's `rows` look up, against the same candidates."""
        parts, number = {}, len(self.candidates)
        for key, feature in self.ids.to_dict().items():
            ends = torch.cat([torch.zeros(1, dtype=torch.int64), feature.lengths().long().cumsum(0)]).tolist()

            def part(first: int, last: int, feature=feature, ends=ends) -> Jagged:
                return feature.values()[ends[first] : ends[last]], feature.lengths()[first:last]

            if key == "list_user":
                parts[key] = [part(rows.start, rows.stop)]
            else:
                parts[key] = [part(0, number), part(number + rows.start, number + rows.stop)]
        ids = _jagged(parts, number + rows.stop - rows.start)
        kept = (self.seen_row >= rows.start) & (self.seen_row < rows.stop)
        return Listed(ids, self.candidates, self.seen_row[kept] - rows.start, self.seen_item[kept])


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
        seen: [users, items], the pairs of the training rows; None: a user's other items stay among the
            candidates.
    """

    candidates: str
    items: int
    number: int = 0
    seed: int = 0
    category: np.ndarray | None = None
    padding: int = 0
    content: bool = False
    seen: sparse.csr_matrix | None = None

    def of_batch(self, user: Tensor, item: Tensor, step: int) -> Listed:
        """The lookup of rows with these users and items, i64 [B] codes, -1 for none."""
        if self.candidates == "catalogue":
            codes = torch.arange(self.items)
        elif self.candidates == "sampled":
            codes = draw_negatives(self.number, self.items, 2 * self.seed + _STREAM, step)
        else:
            codes = item[:0]
        return Listed(self.lookup(user, torch.cat([codes, item])), codes, *self._seen(user, item))

    def _seen(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and items of `Listed.seen_row`, `seen_item`; of a user MOST_SEEN items at most."""
        if self.seen is None:
            return user[:0], user[:0]
        users = user.numpy()
        first, last = self.seen.indptr[users].astype(np.int64), self.seen.indptr[users + 1].astype(np.int64)
        lengths = np.where(users >= 0, np.minimum(last - first, MOST_SEEN), 0)
        rows = np.repeat(np.arange(len(users)), lengths)
        within = np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)
        items = self.seen.indices[first[rows] + within].astype(np.int64)
        others = items != item.numpy()[rows]
        return torch.from_numpy(rows[others]), torch.from_numpy(items[others])

    def lookup(self, user: Tensor, item: Tensor) -> KeyedJaggedTensor:
        """The ids of LIST_KEYS for these users i64 [m] and items i64 [n] (-1 for none): max(m, n) rows."""
        parts = {
            key: [(codes[codes >= 0], (codes >= 0).int())]
            for key, codes in zip(LIST_KEYS, (user, item), strict=False)
        }
        if self.category is not None:
            codes = item.numpy()
            types = np.where((codes >= 0)[:, None], self.category[codes], self.padding)
            parts["list_category"] = [_types(types, self.padding)]
        return _jagged(parts, max(len(user), len(item)))


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
