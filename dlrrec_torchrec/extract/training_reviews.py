"""What extraction reads: training reviews, what is known of their items, folds, each entity's versions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.extract.corpus import Corpus
from dlrrec_torchrec.extract.crossfit import random_folds, row_hashes, time_folds, versions
from dlrrec_torchrec.extract.providers.base import NO_TIME, EntityReviews
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table


@dataclasses.dataclass(frozen=True)
class TrainingReviews:
    """N reviews. Documents are the N reviews, then each item's own words.

    ids: of the users and of the items, in order of appearance; codes: each review's place among them, i64
    [N]. metadata: of each item, {} where nothing is known. fold: of each review, i16 [N].
    """

    table: pa.Table
    ids: dict[str, list[str]]  # of the sides "user" and "item"
    codes: dict[str, np.ndarray]
    metadata: list[dict]
    fold: np.ndarray
    by_time: bool

    @property
    def texts(self) -> list[str | None]:
        """Of all documents."""
        return self.column("text")

    def column(self, name: str) -> list[Any]:
        """What rows and metadata have under this name, of all documents."""
        return self.table[name].to_pylist() + [known.get(name) for known in self.metadata]

    @property
    def times(self) -> np.ndarray | None:
        """Of all documents, i64 seconds since 1970 or NO_TIME; None where no time is known."""
        times = self.table["timestamp"].fill_null(NO_TIME).to_numpy()
        if not (times != NO_TIME).any():
            return None
        return np.r_[times, np.full(len(self.metadata), NO_TIME)]

    def versions(self, side: str) -> Iterator[tuple[int, int, np.ndarray]]:
        """(code, fold, documents) of each version of each user or item, fold -1 first."""
        for code, fold, rows in versions(self.codes[side], self.fold, len(self.ids[side]), self.by_time):
            yield code, fold, self.documents(side, code, rows)

    def documents(self, side: str, code: int, rows: np.ndarray) -> np.ndarray:
        """These reviews and, of an item, its own words."""
        return rows if side == "user" else np.concatenate((rows, [self.table.num_rows + code]))


def read_training_reviews(
    config: ExtractConfig, train_dir: str | os.PathLike, items_dir: str | os.PathLike | None
) -> TrainingReviews:
    """Read the folder of training rows and, where there is one, that of the items' metadata.

    Raises DataError for missing or damaged tables, and folds by time of reviews without times.
    """
    names = ["user_id", "item_id", "text", "images", "captions", "timestamp"]
    table = read_table(train_dir, schema.SPLIT, names)
    users, user_code = _codes(table["user_id"])
    items, item_code = _codes(table["item_id"])
    return TrainingReviews(
        table,
        {"user": users, "item": items},
        {"user": user_code, "item": item_code},
        item_metadata(Path(items_dir) if items_dir else None, items),
        _folds(table, config, Path(train_dir)),
        config.fold_by == "time",
    )


def entities_of(given: TrainingReviews) -> Iterator[EntityReviews]:
    """Every version that the stage describes, without vectors."""
    corpus, times = bare_corpus(given.texts), given.times
    for side in ("user", "item"):
        for code, fold, documents in given.versions(side):
            known = None if times is None else times[documents]
            yield EntityReviews(given.ids[side][code], side, fold, documents, corpus, known)


def bare_corpus(texts: list[str | None]) -> Corpus:
    """Documents without pieces: for what needs no vectors."""
    return Corpus(texts, np.zeros(len(texts) + 1, np.int64), np.zeros(0, np.int64), [], np.zeros((0, 0)))


def _folds(table: pa.Table, config: ExtractConfig, train_dir: Path) -> np.ndarray:
    """The fold of each review, i16 [N]."""
    if config.fold_by != "time":
        hashes = row_hashes(table["user_id"].to_pylist(), table["item_id"].to_pylist(), config.seed)
        return random_folds(hashes, config.folds)
    if missing := table["timestamp"].null_count:
        raise DataError(
            f"{train_dir}: column 'timestamp': {missing:,} of {table.num_rows:,} rows have no time, hence "
            "no order; use --fold-by random"
        )
    return time_folds(table["timestamp"].to_numpy(), config.folds)


def _codes(ids: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct ids in order of appearance, and each row's position among them, i64 [N]."""
    encoded = ids.combine_chunks().dictionary_encode()
    if encoded.null_count:
        raise DataError("split/train: a user_id or item_id is null; run the stages before this one again")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def item_metadata(items_dir: Path | None, items: list[str]) -> list[dict]:
    """What is known of each of `items`, {} where nothing is; its text begins with the title."""
    if items_dir is None:
        return [{} for _ in items]
    names = ["item_id", "title", "text", "categories", "price", "images", "captions"]
    table = read_table(items_dir, schema.ITEMS, names)
    rows = table.filter(pa.compute.is_in(table["item_id"], value_set=pa.array(items, pa.string())))
    known = {
        row["item_id"]: row | {"text": _own_words(row["title"], row["text"])} for row in rows.to_pylist()
    }
    return [known.get(item, {}) for item in items]


def _own_words(title: str | None, text: str | None) -> str | None:
    """An item's title and text as one text; sources often begin the text with the title."""
    if not title or (text or "").startswith(title):
        return text or None
    return f"{title}\n{text}" if text else title
