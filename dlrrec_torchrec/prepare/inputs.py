"""The outputs of the stages before, as arrays over codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrrec_torchrec.features.left_out import CHUNK_ROWS
from dlrrec_torchrec.prepare.vocabulary import encode, encode_lists, sorted_names
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files, read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.mapped import mapped_zeros
from dlrrec_torchrec.store.schema import (
    ITEMS,
    METADATA_CONTENT,
    NEIGHBORS,
    REVIEW_CONTENT,
    SPLIT,
    with_vectors,
)


@dataclass(frozen=True)
class SplitRows:
    """Rows of one split in their order, each [N]: codes int32, rating and label float32, time int64 (None
    where it is unknown of any row)."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    label: np.ndarray
    time: np.ndarray | None = None


def training_ids(train_dir: Path) -> tuple[pa.Array, pa.Array]:
    """The ids of the training rows' users and items in sorted order: position = code."""
    table = read_table(train_dir, SPLIT, ["user_id", "item_id"])
    if table.num_rows == 0:
        raise DataError(f"{train_dir}: no training rows; relax the filters, by `dlrrec split --min-reviews`")
    return sorted_names(table["user_id"]), sorted_names(table["item_id"])


def rating_range(setting: list | None, split_dir: Path) -> tuple[float, float]:
    """Lowest and highest rating: those of prepare.rating_range, else the scale that `split` found.

    Raises DataError where it found none.
    """
    facts = Manifest.read(split_dir).facts
    bounds = facts.get("rating_range") if setting is None else setting
    if bounds is None:
        lowest, highest = facts["ratings"]
        raise DataError(
            f"{split_dir}: its ratings, {lowest:g} to {highest:g}, are on no common scale; say how far they "
            f"can reach, as --rating-range {lowest:g} {highest:g}"
        )
    return float(bounds[0]), float(bounds[1])


def check_ratings(folder: Path, rating: np.ndarray, rating_range: tuple[float, float]) -> None:
    """Raises DataError, with the range that would do, for a rating f32 [rows] outside the range."""
    low, high = rating_range
    if len(rating) and not ((rating >= low) & (rating <= high)).all():  # NaN and null fail too
        lowest, highest = float(np.nanmin(rating)), float(np.nanmax(rating))
        raise DataError(
            f"{folder}: column 'rating' holds {lowest:g} to {highest:g} (or nothing), outside the range "
            f"{low:g} to {high:g}; give the source's own with --rating-range LOWEST HIGHEST, as "
            f"--rating-range {min(lowest, low):g} {max(highest, high):g}, and by split.positive_rating from "
            "where on a rating is a positive label (counts, as of plays or hours, are not ratings: take "
            "their logarithm first)"
        )


def read_split(
    folder: Path, users: pa.Array, items: pa.Array, rating_range: tuple[float, float]
) -> SplitRows:
    """Read one split. Raises DataError for an id that has no code and for a rating outside the range."""
    table = read_table(folder, SPLIT, ["user_id", "item_id", "rating", "label", "timestamp"])
    codes = {}
    for column, known in (("user_id", users), ("item_id", items)):
        codes[column] = encode(table[column], known)
        if len(unknown := np.flatnonzero(codes[column] < 0)):
            raise DataError(
                f"{folder}: row {unknown[0]}: {column} '{table[column][unknown[0]]}' has no training row "
                f"({len(unknown)} such rows); every tested id needs one: run split again"
            )
    values = {c: table[c].to_numpy().astype(np.float32) for c in ("rating", "label")}
    check_ratings(folder, values["rating"], rating_range)
    time = None if table["timestamp"].null_count else table["timestamp"].to_numpy()
    return SplitRows(codes["user_id"], codes["item_id"], values["rating"], values["label"], time)


@dataclass(frozen=True)
class ReviewIndex:
    """Where the content of each training row is: for each content row its training row, and the folds [N]."""

    row: np.ndarray  # int64, in the order of content/reviews
    fold: np.ndarray  # int64 [N]


def index_reviews(folder: Path, train: SplitRows, users: pa.Array, items: pa.Array) -> ReviewIndex:
    """Match content/reviews with the training rows by (user, item); of a pair that comes more than once,
    which `split` refuses, the first with the first, and so on.

    Raises DataError unless both hold the same pairs, each as often.
    """
    table = read_table(folder, REVIEW_CONTENT, ["user_id", "item_id", "fold"])
    key = train.user.astype(np.int64) * len(items) + train.item
    user, item = encode(table["user_id"], users), encode(table["item_id"], items)
    content_key = np.where((user < 0) | (item < 0), -1, user.astype(np.int64) * len(items) + item)
    order, content_order = (np.argsort(keys, kind="stable") for keys in (key, content_key))
    if not np.array_equal(key[order], content_key[content_order]):
        _refuse_pairs(folder, table, content_key, key, users, items)
    row, fold = np.empty(len(key), np.int64), np.empty(len(key), np.int64)
    row[content_order] = order
    fold[row] = table["fold"].to_numpy()
    return ReviewIndex(row, fold)


def _refuse_pairs(
    folder: Path, table: pa.Table, content: np.ndarray, train: np.ndarray, users: pa.Array, items: pa.Array
) -> NoReturn:
    """Raise DataError with a pair that the content (keys, i64) and the training rows do not have as often."""
    keys, first = np.unique(np.concatenate([train, content]), return_index=True)
    often = [np.bincount(np.searchsorted(keys, of), minlength=len(keys)) for of in (train, content)]
    at = int(first[np.argmax(often[0] != often[1])])
    if at < len(train):
        example = users[int(train[at]) // len(items)], items[int(train[at]) % len(items)]
    else:
        example = tuple(table[name][at - len(train)] for name in ("user_id", "item_id"))
    raise DataError(
        f"{folder}: user '{example[0]}', item '{example[1]}' must be here once if a training row "
        "and not at all if none; run split and extract again"
    )


class FoldIndex:
    """Rows of a content table by entity and fold."""

    def __init__(self, table: pa.Table, ids: pa.Array):
        """`table`: columns id and fold; `ids`: the entities in code order."""
        code, fold = encode(table["id"], ids), table["fold"].to_numpy().astype(np.int64)
        self._code = code
        self._span = int(fold.max(initial=0)) + 2
        key = np.where(code < 0, -1, code.astype(np.int64) * self._span + fold + 1)  # -1 is never looked up
        self._order = np.argsort(key, kind="stable")
        self._key = key[self._order]

    def find(self, code: np.ndarray, fold: np.ndarray | int) -> np.ndarray:
        """int64 rows of the table for pairs of entity and fold (-1: the whole); -1 where it has none."""
        fold = np.broadcast_to(fold, code.shape)
        key = np.where(fold + 1 < self._span, code.astype(np.int64) * self._span + fold + 1, -2)
        if not len(self._key):
            return np.full(len(code), -1)
        at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        return np.where(self._key[at] == key, self._order[at], -1)

    def seen_by(self, code: np.ndarray, fold: int, earlier: bool) -> np.ndarray:
        """int64 rows of the table for what a training row of `fold` may see of each entity.

        Without a review in the fold that is the whole, or, where only `earlier` folds count, what the
        entity's next fold sees.
        """
        row, whole = self.find(code, fold), self.find(code, -1)
        if earlier and len(self._key):
            key = code.astype(np.int64) * self._span + fold + 1
            at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
            row = np.where(
                (self._code[self._order[at]] == code) & (self._key[at] >= key), self._order[at], -1
            )
        return np.where(row < 0, whole, row)


def map_vectors(
    folder: Path, column: str, dim: int, scratch: Path, row: np.ndarray | None = None, size: int = 0
) -> np.ndarray:
    """Copy a vector column to the file `scratch` and map it: float16 [M, dim], zeros for null.

    On disk, not in memory, so that rows can be gathered in any order at any size. `row` gives each table row
    its place among `size` (default: its own number among all). Raises DataError for a value that is not
    finite.
    """
    parts = part_files(folder)
    size = size or sum(pq.read_metadata(part).num_rows for part in parts)
    vectors = mapped_zeros(scratch, np.float16, (max(size, 1), dim))
    start = 0
    for part in parts:
        check_schema(pq.read_schema(part), with_vectors(pa.schema([]), {column: dim}), part)
        for batch in pq.ParquetFile(part).iter_batches(CHUNK_ROWS, columns=[column]):
            chunk = batch.column(0)
            present = chunk.is_valid().to_numpy(zero_copy_only=False)
            values = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{part}: column '{column}' holds a value that is not finite; run extract again"
                )
            place = np.arange(start, start + len(chunk)) if row is None else row[start : start + len(chunk)]
            vectors[place[present]] = values
            start += len(chunk)
    return vectors


def map_metadata(folder: Path, ids: pa.Array, column: str, dim: int, scratch: Path) -> np.ndarray:
    """The vectors of the items' own metadata in code order, mapped as by `map_vectors`: float16 [E, dim]."""
    code = encode(read_table(folder, METADATA_CONTENT, ["id"])["id"], ids)
    if (code < 0).any():
        raise DataError(f"{folder}: row {int(np.argmin(code))} is of no training item; run extract again")
    return map_vectors(folder, column, dim, scratch, code, len(ids))


def read_positives(folder: Path, ids: pa.Array, limit: int) -> pa.ListArray:
    """The codes (int32 lists) of each entity's first `limit` neighbours with a positive score."""
    table = read_table(folder, NEIGHBORS).combine_chunks()
    scores = pc.list_flatten(table["scores"]).to_numpy()
    if not pc.list_value_length(table["scores"]).equals(pc.list_value_length(table["neighbors"])):
        raise DataError(f"{folder}: columns 'neighbors' and 'scores' differ in length; run neighbors again")
    owner = encode(table["id"], ids)
    parent, _, code = encode_lists(table["neighbors"], ids, limit, scores > 0)
    parent, code = owner[parent][owner[parent] >= 0], code[owner[parent] >= 0]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(parent, minlength=len(ids)))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(code[np.argsort(parent, kind="stable")], pa.int32())
    )


def read_titles(items_dir: Path, ids: pa.Array) -> pa.Array:
    """Titles of the items in code order, null where there is none."""
    if not (items_dir / "manifest.json").exists():
        return pa.nulls(len(ids), pa.string())
    table = read_table(items_dir, ITEMS, ["item_id", "title"])
    where = pc.index_in(ids, value_set=table["item_id"].combine_chunks())
    return table["title"].combine_chunks().take(where)
