"""What extraction reads: training reviews, what is known of their items, folds, each entity's versions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.extract.corpus import Corpus
from dlrrec_torchrec.extract.crossfit import random_folds, row_hashes, time_folds, versions
from dlrrec_torchrec.extract.providers.base import NO_TIME, EntityReviews
from dlrrec_torchrec.extract.strings import BATCH, Strings, mapped
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_batches, read_table


@dataclasses.dataclass(frozen=True)
class TrainingReviews:
    """N reviews. Documents are the N reviews, then each item's own words.

    ids: of the users and of the items, in order of appearance; codes: each review's place among them, i32
    [N]. time: i64 seconds since 1970 or NO_TIME, [N]. texts: of all documents. metadata: of each item, {}
    where nothing is known. fold: of each review, i16 [N].
    """

    folder: Path  # of the training rows
    ids: dict[str, pa.Array]  # of the sides "user" and "item"
    codes: dict[str, np.ndarray]
    time: np.ndarray
    texts: Strings
    metadata: list[dict]
    fold: np.ndarray
    by_time: bool

    def __len__(self) -> int:
        """The number of reviews."""
        return len(self.fold)

    def pictured(self) -> Iterator[tuple[list, list]]:
        """The captions and the pictures of all documents, a batch at a time."""
        names = ["captions", "images"]
        for table in read_batches(self.folder, schema.SPLIT, names):
            yield tuple(table[name].to_pylist() for name in names)
        yield tuple([known.get(name) for known in self.metadata] for name in names)

    @property
    def times(self) -> np.ndarray | None:
        """Of all documents, i64 seconds since 1970 or NO_TIME; None where no time is known."""
        if not (self.time != NO_TIME).any():
            return None
        return np.r_[self.time, np.full(len(self.metadata), NO_TIME)]

    def versions(self, side: str) -> Iterator[tuple[int, int, np.ndarray]]:
        """(code, fold, documents) of each version of each user or item, fold -1 first."""
        for code, fold, rows in versions(self.codes[side], self.fold, len(self.ids[side]), self.by_time):
            yield code, fold, self.documents(side, code, rows)

    def version_count(self, side: str) -> int:
        """How many versions there are."""
        folds = int(self.fold.max(initial=0)) + 1
        return len(self.ids[side]) + len(np.unique(self.codes[side].astype(np.int64) * folds + self.fold))

    def documents(self, side: str, code: int, rows: np.ndarray) -> np.ndarray:
        """These reviews and, of an item, its own words."""
        return rows if side == "user" else np.concatenate((rows, [len(self) + code]))


def read_training_reviews(
    config: ExtractConfig,
    train_dir: str | os.PathLike,
    items_dir: str | os.PathLike | None,
    scratch: Path | None = None,
) -> TrainingReviews:
    """Read the folder of training rows and, where there is one, that of the items' metadata.

    Args:
        scratch: a folder for the texts, which are then mapped from a file instead of held in memory.

    Raises DataError for missing or damaged tables, and folds by time of reviews without times.
    """
    train_dir = Path(train_dir)
    table = read_table(train_dir, schema.SPLIT, ["user_id", "item_id", "timestamp"])
    users, user_code = _codes(table["user_id"])
    items, item_code = _codes(table["item_id"])
    metadata = item_metadata(Path(items_dir) if items_dir else None, items.to_pylist())
    own = pa.array([known.get("text") for known in metadata], pa.large_string())
    texts = (batch["text"].combine_chunks() for batch in read_batches(train_dir, schema.SPLIT, ["text"]))
    return TrainingReviews(
        train_dir,
        {"user": users, "item": items},
        {"user": user_code, "item": item_code},
        table["timestamp"].fill_null(NO_TIME).to_numpy(),
        Strings([*texts, own]) if scratch is None else mapped(chain(texts, [own]), scratch / "texts.arrow"),
        metadata,
        _folds(table, config, train_dir),
        config.fold_by == "time",
    )


def entities_of(given: TrainingReviews) -> Iterator[EntityReviews]:
    """Every version that the stage describes, without vectors."""
    corpus, times = bare_corpus(given.texts), given.times
    for side in ("user", "item"):
        for code, fold, documents in given.versions(side):
            known = None if times is None else times[documents]
            yield EntityReviews(given.ids[side][code].as_py(), side, fold, documents, corpus, known)


def bare_corpus(texts: Sequence[str | None]) -> Corpus:
    """Documents without pieces: for what needs no vectors."""
    return Corpus(texts, np.zeros(len(texts) + 1, np.int64), np.zeros(0, np.int64), [], np.zeros((0, 0)))


def _folds(table: pa.Table, config: ExtractConfig, train_dir: Path) -> np.ndarray:
    """The fold of each review, i16 [N]."""
    if config.fold_by != "time":
        parts = [np.zeros(0, np.int16)]
        for batch in table.select(["user_id", "item_id"]).to_batches(BATCH):
            hashes = row_hashes(*(column.to_pylist() for column in batch.columns), config.seed)
            parts.append(random_folds(hashes, config.folds))
        return np.concatenate(parts)
    if missing := table["timestamp"].null_count:
        raise DataError(
            f"{train_dir}: column 'timestamp': {missing:,} of {table.num_rows:,} rows have no time, hence "
            "no order; use --fold-by random"
        )
    return time_folds(table["timestamp"].to_numpy(), config.folds)


def _codes(ids: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Distinct ids in order of appearance, and each row's position among them, i32 [N]."""
    encoded = ids.combine_chunks().dictionary_encode()
    if encoded.null_count:
        raise DataError("split/train: a user_id or item_id is null; run the stages before this one again")
    return encoded.dictionary, encoded.indices.to_numpy()


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
