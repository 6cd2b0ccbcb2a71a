"""What remains of an entity when reviews that a training row must not know are taken away, exactly.

Subtraction of floats is not exact: (a + b) - b may miss a by an amount that depends on b, so a row's own
rating and text would leave a trace in its features. Here every summand is a multiple of a power of two (a
finite float16 is a multiple of 2**-24; ratings are rounded to 2**-20), and float64 adds and subtracts such
numbers without rounding while sums stay below 2**53 steps. What remains is then the same bits whatever was
taken away, and exactly zero where nothing remains.

For the same reason nothing else that a row's own label has gone into may enter its features, however weakly:
the mean rating of all other rows differs from row to row in its last digits alone, which spell the label.

`left_out` says what a training row leaves out: None is its own review; `Groups` are all reviews of its entity
in the row's fold or, where folds are blocks of time, in that and all later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.mapped import mapped_zeros

VECTOR_STEP = 2.0**-24  # every finite float16 is a multiple of it
RATING_STEP = 2.0**-20
EXACT_STEPS = 2.0**53  # float64 counts every step up to here
CHUNK_ROWS = 8192


class Groups:
    """The reviews of an entity that a training row leaves out, by the row's fold.

    Attributes:
        number: int64 [N], of each row's group; groups are (entity, fold) pairs in ascending order.
        entity, fold: int64 [G], of each group.
        later: a row leaves out its entity's reviews of later folds too.
    """

    def __init__(self, entity: np.ndarray, fold: np.ndarray, later: bool = False):
        """
        Args:
            entity: int [N] codes of the training rows' entities; fold: int [N], 0 and more.
            later: a row leaves out its entity's reviews of later folds too.
        """
        self._span, self.later = int(fold.max(initial=0)) + 1, later
        self._keys, self.number = np.unique(entity.astype(np.int64) * self._span + fold, return_inverse=True)
        self.entity, self.fold = np.divmod(self._keys, self._span)

    def __len__(self) -> int:
        return len(self._keys)

    def left_out(self, sums: np.ndarray) -> np.ndarray:
        """From sums over each group's own reviews [G, ...] to those over all that its rows leave out.

        In place. Sums are added, never subtracted, so exact ones stay exact.
        """
        if not self.later:
            return sums
        starts = np.flatnonzero(np.diff(self.entity, prepend=-1))
        sizes = np.diff(np.append(starts, len(self)))
        place = np.arange(len(self)) - np.repeat(starts, sizes)
        for k in range(int(sizes.max(initial=1)) - 2, -1, -1):
            groups = np.flatnonzero((place == k) & (k + 1 < np.repeat(sizes, sizes)))
            sums[groups] += sums[groups + 1]
        return sums

    def of_fold(self, codes: np.ndarray, fold: int) -> np.ndarray:
        """The group int64 [n] that a row of `fold` would leave out of each entity; -1 for nothing."""
        key = codes.astype(np.int64) * self._span + fold
        at = np.minimum(np.searchsorted(self._keys, key), len(self) - 1)
        same = self.entity[at] == codes if self.later else self._keys[at] == key
        return np.where(same & (self._keys[at] >= key), at, -1)


@dataclass(frozen=True)
class RatingStatistics:
    """Number of reviews and mean rating; a mean is NaN where there is no review and no smoothing."""

    count: np.ndarray  # int64 [E], of each entity, from all its training reviews
    mean: np.ndarray  # float32 [E]: what the entity tables hold, so that serving makes the same features
    row_count: np.ndarray  # int64 [N], of each training row's entity, without what the row leaves out
    row_mean: np.ndarray  # float32 [N]


def rating_statistics(
    rating: np.ndarray,
    entity: np.ndarray,
    num_entities: int,
    left_out: Groups | None,
    smoothing: float = 0.0,
    prior: float = 0.0,
) -> RatingStatistics:
    """Counts and mean ratings of one side (users or items), whole and without what each row leaves out.

    A mean is (S + m g) / (n + m) with S and n the entity's sum and number of ratings, m the smoothing and g
    the prior. What a row leaves out is missing from S and n; so rows with equal S and n have the same bits,
    whatever their own ratings, which holds only if no rating has gone into g.

    Args:
        rating: float [N], ratings of the training rows.
        entity: int [N], codes of their entities, below `num_entities`.
        left_out: see the module.
        smoothing: m, pseudo-reviews of the prior.
        prior: g, a constant of the settings, not of the ratings.

    Raises DataError where ratings are too large to be summed exactly.
    """
    rating = np.round(np.asarray(rating, np.float64) / RATING_STEP) * RATING_STEP
    if np.abs(rating).max(initial=0.0) * len(rating) >= EXACT_STEPS * RATING_STEP:
        raise DataError(
            f"column 'rating': values up to {np.abs(rating).max():g} are too large to sum exactly"
        )
    total = np.bincount(entity, rating, num_entities)
    count = np.bincount(entity, minlength=num_entities)
    if left_out is None:
        own_total, own_count = rating, np.ones(len(rating), np.int64)
    else:
        own_total = left_out.left_out(np.bincount(left_out.number, rating))[left_out.number]
        own_count = left_out.left_out(np.bincount(left_out.number))[left_out.number]

    def smoothed(total: np.ndarray, count: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return ((total + smoothing * prior) / (count + smoothing)).astype(np.float32)

    row_total, row_count = total[entity] - own_total, count[entity] - own_count
    return RatingStatistics(
        count=count,
        mean=smoothed(total, count),
        row_count=row_count,
        row_mean=smoothed(row_total, row_count),
    )


class Vectors(Protocol):
    """The vectors of one modality, of V numbers each."""

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """float16 [n, V] of training rows, without what each leaves out; zeros where there is none."""

    def of_entities(self, codes: np.ndarray) -> np.ndarray:
        """float16 [n, V] of entities, from all their training reviews; zeros where there is none."""

    def as_seen_by(self, fold: int, codes: np.ndarray) -> np.ndarray:
        """float16 [n, V] of entities, without what a training row of `fold` leaves out."""

    def number(self) -> int:
        """How many entities have one."""


class PooledVectors:
    """Mean-pooled review vectors of unit length: the direction of the sum, zeros where nothing remains.

    What an entity's metadata says counts as one more review that no row leaves out.

    Sums take 8 V bytes for each entity, and as much for each group of `left_out` with more than one review;
    with `scratch` they are in files, as the reviews' vectors are.
    """

    def __init__(
        self,
        reviews: np.ndarray,
        entity: np.ndarray,
        num_entities: int,
        left_out: Groups | None,
        metadata: np.ndarray | None = None,
        scratch: Path | None = None,
    ):
        """Sum up the vectors of each entity.

        Args:
            reviews: float16 [N, V], the training rows' own vectors (a memory map), zeros for none.
            entity: int [N], codes of the rows' entities, below `num_entities`.
            left_out: see the module.
            metadata: float16 [E, V], the entities' own vectors, zeros for none.
            scratch: what the names of the files with the sums begin with; they must live as long.

        Raises DataError where vectors are too large to be summed exactly.
        """
        self._reviews, self._entity, self._left_out = reviews, entity, left_out
        dim = reviews.shape[1]
        self._sums = _zeros(num_entities, dim, scratch, "sums")
        bound = _add_by_group(self._sums, reviews, entity)
        if metadata is not None:
            bound += _add_by_group(self._sums, metadata, np.arange(num_entities))
        if bound >= EXACT_STEPS * VECTOR_STEP:
            raise DataError(f"content: vectors whose sums may reach {bound:g} are too large to sum exactly")
        if left_out is not None:
            # The sum of a group of one is the review itself: most users have such groups alone.
            several = np.bincount(left_out.number, minlength=len(left_out)) > 1
            if left_out.later:
                several[:] = True
            self._place = np.where(several, np.cumsum(several) - 1, -1)  # of each group among the sums
            self._single = np.empty(len(left_out), np.int64)  # row of a group of one
            self._single[left_out.number] = np.arange(len(entity))
            self._left_out_sums = _zeros(int(several.sum()), dim, scratch, "left-out")
            _add_by_group(self._left_out_sums, reviews, self._place[left_out.number])
            left_out.left_out(self._left_out_sums)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        total = np.asarray(self._sums[self._entity[rows]])
        if self._left_out is None:
            total -= self._reviews[rows]
        else:
            self._subtract(total, self._left_out.number[rows])
        return _unit(total)

    def _subtract(self, total: np.ndarray, group: np.ndarray) -> None:
        """Take a group i64 [n] (-1: none) from each of the sums float64 [n, V]."""
        place = np.where(group < 0, -1, self._place[group])
        summed, single = place >= 0, (group >= 0) & (place < 0)
        total[summed] -= self._left_out_sums[place[summed]]
        total[single] -= self._reviews[self._single[group[single]]]

    def of_entities(self, codes: np.ndarray) -> np.ndarray:
        return _unit(np.asarray(self._sums[codes]))

    def as_seen_by(self, fold: int, codes: np.ndarray) -> np.ndarray:
        if self._left_out is None:
            raise ValueError("rows that leave out their own review alone see no entity alike")
        total = np.asarray(self._sums[codes])
        self._subtract(total, self._left_out.of_fold(codes, fold))
        return _unit(total)

    def number(self) -> int:
        chunks = range(0, len(self._sums), CHUNK_ROWS)
        return sum(int(self._sums[k : k + CHUNK_ROWS].any(axis=1).sum()) for k in chunks)


class StoredVectors:
    """Vectors of (entity, fold) pairs: a training row reads that of its entity without its fold."""

    def __init__(
        self,
        stored: np.ndarray,
        by_row: np.ndarray,
        by_entity: np.ndarray,
        by_fold: Callable[[int], np.ndarray] | None = None,
    ):
        """`stored`: float16 [C, V]; `by_row` [N] and `by_entity` [E]: rows of it, -1 for none.

        `by_fold`: fold -> rows [E] of it that a training row of that fold may see (default: `by_entity`).
        """
        self._stored, self._by_row, self._by_entity = stored, by_row, by_entity
        self._by_fold = by_fold or (lambda fold: by_entity)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        return self._take(self._by_row[rows])

    def of_entities(self, codes: np.ndarray) -> np.ndarray:
        return self._take(self._by_entity[codes])

    def as_seen_by(self, fold: int, codes: np.ndarray) -> np.ndarray:
        return self._take(self._by_fold(fold)[codes])

    def number(self) -> int:
        chunks = range(0, len(self._by_entity), CHUNK_ROWS)
        return sum(int(self._take(self._by_entity[k : k + CHUNK_ROWS]).any(axis=1).sum()) for k in chunks)

    def _take(self, index: np.ndarray) -> np.ndarray:
        vectors = np.asarray(self._stored[index])  # a copy; -1 reads the last row, wiped below
        vectors[index < 0] = 0
        return vectors


def _add_by_group(sums: np.ndarray, vectors: np.ndarray, group: np.ndarray) -> float:
    """Add float16 `vectors` to float64 `sums` [groups, V]; return what no sum can have exceeded.

    `group`: int [N], of each vector; -1: none.
    """
    largest = 0.0
    for start in range(0, len(group), CHUNK_ROWS):
        numbers = group[start : start + CHUNK_ROWS]
        order = np.argsort(numbers, kind="stable")
        order = order[np.searchsorted(numbers[order], 0) :]
        if not len(order):
            continue
        chunk = vectors[start : start + CHUNK_ROWS][order].astype(np.float64)
        groups, first = np.unique(numbers[order], return_index=True)
        sums[groups] += np.add.reduceat(chunk, first, axis=0)
        largest = max(largest, float(np.abs(chunk).max()))
    return largest * int(np.bincount(group[group >= 0]).max(initial=0))


def _zeros(rows: int, dim: int, scratch: Path | None, name: str) -> np.ndarray:
    """float64 [rows, dim], in a file if there is a name for it."""
    if scratch is None:
        return np.zeros((rows, dim))
    return mapped_zeros(f"{scratch}-{name}", np.float64, (rows, dim))


def _unit(total: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.square(total).sum(axis=1, keepdims=True))
    return np.divide(total, norm, out=np.zeros_like(total), where=norm > 0).astype(np.float16)
