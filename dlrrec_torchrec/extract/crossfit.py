"""Cross-fitting: which reviews each version of an entity's content may use.

A training row must not see its own review in its features. Content that cannot be corrected by subtraction (a
summary, a tag) is therefore computed K + 1 times: from all of an entity's training reviews (fold -1: for
validation, test and serving) and, for each fold, from all except that fold's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np


def row_hashes(user_ids: list[str], item_ids: list[str], seed: int) -> np.ndarray:
    """A stable u64 for each (seed, user, item): neither text nor rating moves a review to another fold."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
    return np.fromiter(
        (
            int.from_bytes(
                hashlib.blake2b(
                    f"{len(u)}:{u}{i}".encode("utf-8", "surrogatepass"), digest_size=8, key=key
                ).digest(),
                "little",
            )
            for u, i in zip(user_ids, item_ids, strict=True)
        ),
        np.uint64,
        len(user_ids),
    )


def assign_folds(entity: np.ndarray, hashes: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each row, i16 [N]: an entity's rows in order of hash take 0, 1, ... K - 1, 0, 1, ...

    An entity with at most K rows has one in each fold: exact leave-one-out.

    Args:
        entity: i64 [N] codes of the rows' users (or items).
        hashes: u64 [N] from `row_hashes`.
        folds: K >= 2.
    """
    order = np.lexsort((hashes, entity))
    grouped = entity[order]
    first = (
        np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]]) if len(grouped) else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.r_[first, len(grouped)])
    rank = np.arange(len(grouped)) - np.repeat(first, sizes)
    fold = np.empty(len(entity), np.int16)
    fold[order] = rank % folds
    return fold


def versions(entity: np.ndarray, fold: np.ndarray, entities: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (entity code, fold, rows i64 it may use, in table order), fold -1 first, for all codes."""
    order = np.argsort(entity, kind="stable")
    bounds = np.searchsorted(entity[order], np.arange(entities + 1))
    for code in range(entities):
        rows = order[bounds[code] : bounds[code + 1]]
        yield code, -1, rows
        row_folds = fold[rows]
        for k in np.unique(row_folds):
            yield code, int(k), rows[row_folds != k]
