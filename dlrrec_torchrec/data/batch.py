"""The one batch type of training, evaluation and serving."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.data.listing import Listed
from dlrrec_torchrec.data.lookup import Lookup, Parts

SPARSE_KEYS = ("category", "user", "item")


@dataclasses.dataclass
class Batch(Parts):
    """B rows, ready for the model.

    The last row may be padding, where this rank has one row fewer of a global batch than others: label -1,
    user and item -1, no ids, no positives, zero features and vectors. It counts in no loss, no statistic and
    no metric. All ranks have batches of one size because row-wise sharded tables need that.

    Attributes:
        dense: f32 [B, D].
        sparse: jagged ids of the chosen features: `category` (the codes of a row's types, padding
            removed), `user` and `item` (one code a row).
        vectors: modality -> f16 [B, V].
        label: f32 [B], 0 or 1, -1 for padding.
        user, item: i64 [B] codes, -1 for padding.
        user_positives, item_positives: i64 [B, P] codes, best first, padded with -1.
        managed: jagged ids of features whose tables are managed; None without such tables.
        lookup: the vectors to look up, where they are in tables instead of in `vectors`.
        listed: what a list head looks up; None without one, and where the model only predicts.
        rating: f32 [B], 0 for padding; None where only labels are known.
        user_hard, item_hard: i64 [B, H] codes of each row's hard negatives, padded with -1; None where the
            contrastive terms draw none.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    vectors: dict[str, Tensor]
    label: Tensor
    user: Tensor
    item: Tensor
    user_positives: Tensor
    item_positives: Tensor
    managed: KeyedJaggedTensor | None = None
    lookup: Lookup | None = None
    listed: Listed | None = None
    rating: Tensor | None = None
    user_hard: Tensor | None = None
    item_hard: Tensor | None = None

    def __len__(self) -> int:
        return self.label.shape[0]


def make_sparse(
    category: Tensor, user: Tensor, item: Tensor, keys: Sequence[str], padding: int
) -> KeyedJaggedTensor:
    """The jagged ids of B rows, in the order of `keys`.

    Args:
        category: i32 or i64 [B, slots] in host memory, padded anywhere.
        user, item: i32 or i64 [B] in host memory; -1 gives no id.
        keys: of SPARSE_KEYS.
        padding: the category code that is none.

    Returns:
        i64 values, i32 lengths. Padding is left out, so that a sum over the ids equals
        `torch.nn.EmbeddingBag(padding_idx=padding, mode="sum")`.
    """
    if not keys:
        return no_ids()
    codes = {"category": category, "user": user, "item": item}
    jagged = [_jagged(codes[key].numpy(), padding if key == "category" else -1) for key in keys]
    values = np.concatenate([values for values, _ in jagged], dtype=np.int64)
    lengths = np.concatenate([lengths for _, lengths in jagged])
    return KeyedJaggedTensor(list(keys), torch.from_numpy(values), lengths=torch.from_numpy(lengths))


def no_ids() -> KeyedJaggedTensor:
    """The jagged ids of a model without tables."""
    empty = torch.zeros(0, dtype=torch.int64)
    return KeyedJaggedTensor([], empty, lengths=empty.int())


def _jagged(codes: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes that are not padding, i32 [B] their number in each row) of integers [B] or [B, slots]."""
    present = codes != padding
    if present.all():
        width = codes.size // len(codes) if len(codes) else 0
        return codes.reshape(-1), np.full(len(codes), width, np.int32)
    rows = present.reshape(len(codes), -1).view(np.uint8)
    small = np.min_scalar_type(rows.shape[1])
    number = rows @ np.ones(rows.shape[1], small)  # several times as fast as a sum over the columns
    return codes[present], number.astype(np.int32)


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """The batch (on a CPU) cut into `parts` batches of consecutive rows, of equal size give or take one row.

    Tensors are views, except for the ids of several features.
    """
    if parts <= 1:
        return [batch]
    cuts = [len(batch) * part // parts for part in range(parts + 1)]
    return [_rows(batch, slice(low, high)) for low, high in itertools.pairwise(cuts)]


def _rows(batch: Batch, rows: slice) -> Batch:
    values = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, KeyedJaggedTensor):
            values[field.name] = _ids_of_rows(value, rows)
        elif isinstance(value, dict):
            values[field.name] = {name: tensor[rows] for name, tensor in value.items()}
        elif isinstance(value, Lookup | Listed):
            values[field.name] = value.of_rows(rows)
        elif value is not None:
            values[field.name] = value[rows]
    return Batch(**values)


def _ids_of_rows(ids: KeyedJaggedTensor, rows: slice) -> KeyedJaggedTensor:
    if not ids.keys():
        return no_ids()
    size, ends = ids.stride(), ids.offsets()
    lengths = ids.lengths().reshape(-1, size)[:, rows].reshape(-1)
    firsts = range(0, len(ids.keys()) * size, size)
    values = [ids.values()[int(ends[k + rows.start]) : int(ends[k + rows.stop])] for k in firsts]
    return KeyedJaggedTensor(ids.keys(), torch.cat(values), lengths=lengths)
