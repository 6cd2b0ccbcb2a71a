"""Cross-fitting: which reviews each version of an entity's content may use.

A training row must not see its own review in its features. Content that cannot be corrected by subtraction (a
summary, a tag) is therefore computed K + 1 times: from all of an entity's training reviews (fold -1: for
validation, test and serving) and, for each fold, from all except that fold's. One assignment of the rows
serves users and items, and `prepare` takes the same for everything else that a training row must not know.
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


def random_folds(hashes: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each row, i16 [N], by its hash alone: the same for its user and its item.

    Args:
        hashes: u64 [N] from `row_hashes`.
        folds: K >= 2.
    """
    return (hashes % np.uint64(folds)).astype(np.int16)


def time_folds(timestamps: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each row, i16 [N]: up to K blocks of about N / K rows, in order of time.

    Rows of one moment are in one block, so whatever is in an earlier block happened before.
    """
    before = np.searchsorted(np.sort(timestamps), timestamps, side="left")
    return (before * folds // max(len(timestamps), 1)).astype(np.int16)


def versions(
    entity: np.ndarray, fold: np.ndarray, entities: int, earlier: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (entity code, fold, rows i64 it may use, in table order), fold -1 first, for all codes.

    Args:
        earlier: a fold's version may use the rows of earlier folds only, instead of all other folds.
    """
    order = np.argsort(entity, kind="stable")
    bounds = np.searchsorted(entity[order], np.arange(entities + 1))
    for code in range(entities):
        rows = order[bounds[code] : bounds[code + 1]]
        yield code, -1, rows
        row_folds = fold[rows]
        for k in np.unique(row_folds):
            yield code, int(k), rows[row_folds < k if earlier else row_folds != k]
