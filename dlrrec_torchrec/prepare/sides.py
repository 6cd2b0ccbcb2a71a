"""One side of the rows, users or items: everything known of its entities, whole and left-one-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.features.left_out import RatingStatistics, Vectors
from dlrrec_torchrec.store.schema import PRICE_TAGS


@dataclass(frozen=True, kw_only=True)
class ContentRows:
    """Where the content of entities is."""

    by_entity: np.ndarray  # int64 [E], content row of each, from all its reviews
    by_fold: Callable[[int], np.ndarray]  # fold -> int64 [E], content rows that a row of the fold may see

    def content(self, fold: int) -> np.ndarray:
        """int64 [E], the content rows that rows of `fold` see; -1: that validation, test and serving do."""
        return self.by_entity if fold < 0 else self.by_fold(fold)


@dataclass(frozen=True, kw_only=True)
class ItemLabels(ContentRows):
    """Price tags and categories by content row (an item without one fold), and where to look them up."""

    price: np.ndarray  # uint8 [C], position in PRICE_TAGS
    category: np.ndarray  # unsigned [C, slots]
    padding: int  # the code of no category
    by_row: np.ndarray  # int64 [N], content row of each training row, -1 for none

    def seen_by(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Category codes int64 [E, slots] and price tags' positions int64 [E], as of `content`."""
        content = self.content(fold)
        return self.category[content].astype(np.int64), self.price[content].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Tastes(ContentRows):
    """Categories that users say to like or avoid, by content row, and where to look them up."""

    likes: np.ndarray  # unsigned [C, slots]
    avoids: np.ndarray  # unsigned [C, slots]

    def seen_by(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes of likes and avoids, int64 [E, slots] each, as of `content`."""
        content = self.content(fold)
        return self.likes[content].astype(np.int64), self.avoids[content].astype(np.int64)


@dataclass(frozen=True)
class Features:
    """What n rows see of one side."""

    code: np.ndarray  # int32 [n]
    count: np.ndarray  # int64 [n]
    mean: np.ndarray  # float32 [n], NaN for none
    vectors: dict[str, np.ndarray]  # modality -> float16 [n, V]
    positives: pa.ListArray  # int32 lists
    price_tag: np.ndarray | None = None  # str objects [n]
    category: np.ndarray | None = None  # int32 [n, slots]


@dataclass(frozen=True)
class Side:
    """The tables behind `Features`."""

    entity: np.ndarray  # int32 [N], code of each training row's entity
    ratings: RatingStatistics
    vectors: dict[str, Vectors]
    positives: pa.ListArray  # in code order
    labels: ItemLabels | None = None  # of items
    tastes: Tastes | None = None  # of users

    def __len__(self) -> int:
        """How many entities there are."""
        return len(self.ratings.count)

    def of_rows(self, rows: np.ndarray) -> Features:
        """Features of training rows (int [n]), without what each leaves out."""
        return self._features(
            self.entity[rows],
            self.ratings.row_count[rows],
            self.ratings.row_mean[rows],
            {m: vectors.of_rows(rows) for m, vectors in self.vectors.items()},
            self.labels and self.labels.by_row[rows],
        )

    def of_entities(self, codes: np.ndarray) -> Features:
        """Features of entities (int32 [n]) from all training rows: what validation, test and serving see."""
        return self._features(
            codes,
            self.ratings.count[codes],
            self.ratings.mean[codes],
            {m: vectors.of_entities(codes) for m, vectors in self.vectors.items()},
            self.labels and self.labels.by_entity[codes],
        )

    def _features(self, code, count, mean, vectors, content) -> Features:
        labels = {}
        if self.labels:
            price, category = self.labels.price[content], self.labels.category[content].astype(np.int32)
            price[content < 0], category[content < 0] = 0, self.labels.padding
            labels = {"price_tag": np.array(PRICE_TAGS, object)[price], "category": category}
        return Features(code, count, mean, vectors, self.positives.take(pa.array(code)), **labels)
