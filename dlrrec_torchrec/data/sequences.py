"""Every user's training items in the order of time."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.shard_facts import ShardFacts

WINDOW = 1000  # a user's latest items, in which a row's item is looked for first


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """The items of all users' training rows.

    Attributes:
        offsets: int64 [users + 1]; user u's items are items[offsets[u] : offsets[u + 1]].
        items: int32 [training rows] codes, each user's latest last.
    """

    offsets: np.ndarray
    items: np.ndarray

    @staticmethod
    def read(shards_dir: str | os.PathLike) -> Sequences:
        """From the entity tables. Raises DataError for damaged ones."""
        kind = ShardFacts.read(shards_dir).entity_schema("user")
        table = read_table(Path(shards_dir) / "entities" / "users", kind, ["history"])
        lists = table["history"].combine_chunks()
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return Sequences(
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), lists.flatten().to_numpy()
        )

    def latest(self, user: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The last items of these users, at most so many of each.

        Args:
            user: int64 [B] codes, -1 for none.

        Returns:
            (rows int64 [M] of `user`, ascending; items int64 [M], each user's latest last).
        """
        last = np.where(user >= 0, self.offsets[user + 1], 0)
        length = np.where(user >= 0, np.minimum(last - self.offsets[user], most), 0)
        rows, within = ragged(length)
        return rows, self.items[(last - length)[rows] + within].astype(np.int64)

    def number(self, user: np.ndarray) -> np.ndarray:
        """How many items these users have, int64 [B]; 0 for the code -1."""
        return np.where(user >= 0, self.offsets[user + 1] - self.offsets[user], 0)

    def place(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """How many of a user's items come before this one: int64 [B]; all of them where it is not there.

        Args:
            user, item: int64 [B] codes, -1 for none.
        """
        place = self.number(user)
        rows, items = self.latest(user, WINDOW)
        same = np.flatnonzero(items == item[rows])
        begin = np.searchsorted(rows, rows[same])
        skipped = np.maximum(place - WINDOW, 0)
        found = rows[same]
        place[found], looked_at = same - begin + skipped[found], np.ones(len(user), bool)
        looked_at[skipped > 0] = False
        looked_at[found] = True
        for row in np.flatnonzero(~looked_at):  # far back in a long sequence
            first = self.offsets[user[row]]
            where = np.flatnonzero(self.items[first : first + skipped[row]] == item[row])
            place[row] = where[0] if len(where) else place[row]
        return place

    def before(self, user: np.ndarray, place: np.ndarray, first: int, last: int) -> tuple[np.ndarray, ...]:
        """The items `first` to `last` - 1 back from a place in a user's sequence (0: the one just before).

        Args:
            user: int64 [B] codes, -1 for none; place: int64 [B], as of `place`.

        Returns:
            (rows int64 [M], ascending; items int64 [M]; lengths int64 [B], how many each row has).
        """
        length = np.clip(place - first, 0, last - first)
        rows, within = ragged(length)
        start = self.offsets[user] + place - first - length
        return rows, self.items[start[rows] + within].astype(np.int64), length


def ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row, and place within the row, of every element of rows with these lengths [B]."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)
