"""What the list head looks up for a batch: its users, its items, and the items that these compete with."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.draws import draw_negatives
from dlrrec_torchrec.data.lookup import Parts

CANDIDATES = ("catalogue", "sampled", "batch")
LIST_KEYS = ("list_user", "list_item", "list_category")
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
    """

    ids: KeyedJaggedTensor
    candidates: Tensor

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
        return Listed(_jagged(parts, number + rows.stop - rows.start), self.candidates)


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
    """

    candidates: str
    items: int
    number: int = 0
    seed: int = 0
    category: np.ndarray | None = None
    padding: int = 0
    content: bool = False

    def of_batch(self, user: Tensor, item: Tensor, step: int) -> Listed:
        """The lookup of rows with these users and items, i64 [B] codes, -1 for none."""
        if self.candidates == "catalogue":
            codes = torch.arange(self.items)
        elif self.candidates == "sampled":
            codes = draw_negatives(self.number, self.items, 2 * self.seed + _STREAM, step)
        else:
            codes = item[:0]
        return Listed(self.lookup(user, torch.cat([codes, item])), codes)

    def lookup(self, user: Tensor, item: Tensor) -> KeyedJaggedTensor:
        """The ids of LIST_KEYS for these users i64 [m] and items i64 [n] (-1 for none): max(m, n) rows."""
        parts = {
            key: [(codes[codes >= 0], (codes >= 0).int())]
            for key, codes in zip(LIST_KEYS, (user, item), strict=False)
        }
        if self.category is not None:
            types = self.category[item.numpy()]
            present = (types != self.padding) & (item.numpy() >= 0)[:, None]
            values = torch.from_numpy(types[present].astype(np.int64))
            parts["list_category"] = [(values, torch.from_numpy(present.sum(1, dtype=np.int32)))]
        return _jagged(parts, max(len(user), len(item)))


def _jagged(parts: dict[str, list[Jagged]], rows: int) -> KeyedJaggedTensor:
    """Each feature's parts one after the other, filled up with empty rows."""
    values = [value for jagged in parts.values() for value, _ in jagged]
    lengths = []
    for jagged in parts.values():
        lengths += [length for _, length in jagged]
        lengths.append(torch.zeros(rows - sum(len(length) for _, length in jagged), dtype=torch.int32))
    return KeyedJaggedTensor(list(parts), torch.cat(values), lengths=torch.cat(lengths))
