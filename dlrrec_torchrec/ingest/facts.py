"""Facts about the accepted rows for the manifests, gathered chunk by chunk in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.store.schema import ITEMS


class SeenHashes:
    """A growing set of 64-bit hashes at 8 bytes each: sorted runs, merged when they are of similar size.

    Two different keys share a hash with a probability below 1e-3 among 100 million keys.
    """

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add i64 [N]; returns bool [N], true at the first occurrence of each hash that is new."""
        values, first = np.unique(hashes, return_index=True)
        in_set = np.zeros(len(values), bool)
        for run in self.runs:
            in_set |= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] == values
        new = np.zeros(len(hashes), bool)
        new[first[~in_set]] = True
        fresh = values[~in_set]
        while self.runs and len(self.runs[-1]) <= len(fresh):
            fresh = np.sort(np.concatenate([self.runs.pop(), fresh]), kind="stable")
        if len(fresh):
            self.runs.append(fresh)
        return new


def hashes(keys: Iterable[Any], count: int) -> np.ndarray:
    """Python's 64-bit hashes of `count` keys, i64 [count]; valid within one process."""
    return np.fromiter(map(hash, keys), np.int64, count)


class ReviewFacts:
    """Facts about the accepted reviews for the manifest, gathered chunk by chunk."""

    def __init__(self) -> None:
        self.users, self.items = SeenHashes(), SeenHashes()
        self.ratings: Counter[float] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        for distinct, name in ((self.users, "user_id"), (self.items, "item_id")):
            ids = table[name].unique().to_pylist()
            distinct.add(hashes(ids, len(ids)))
        values, counts = np.unique(np.round(table["rating"].to_numpy() * 2) / 2, return_counts=True)
        self.ratings.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self.counts["rows"] += table.num_rows
        for name, column in (
            ("text", "text"),
            ("images", "images"),
            ("captions", "captions"),
            ("time", "timestamp"),
        ):
            self.counts[name] += table.num_rows - table[column].null_count
        for part in ("train", "test"):
            self.counts[part] += pc.sum(pc.equal(table["split"], part)).as_py() or 0

    def facts(self) -> dict[str, Any]:
        """JSON-like: `users`, `items`, `ratings` (by halves), counts."""
        return {
            "users": len(self.users),
            "items": len(self.items),
            "ratings": {f"{rating:g}": count for rating, count in sorted(self.ratings.items())},
            **{f"with_{name}": self.counts[name] for name in ("text", "images", "captions", "time")},
            **{f"published_{part}": self.counts[part] for part in ("train", "test") if self.counts[part]},
        }


class ItemFacts:
    """Facts about the accepted items for the manifest, gathered chunk by chunk."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        for name in table.column_names[1:]:
            self.counts[name] += table.num_rows - table[name].null_count

    def facts(self) -> dict[str, Any]:
        return {f"with_{name}": self.counts[name] for name in ITEMS.names[1:]}
