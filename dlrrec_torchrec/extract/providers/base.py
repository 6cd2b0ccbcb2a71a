"""The interface of those who write content: an entity's reviews in; summary, price tag and categories out.

A provider says who it is before it sees a text: its `name`, `model` and `fingerprint` are part of the stage's
manifest, and content is made again when any of them changes. Given the corpus, it hands out a writer, which
sees one `EntityReviews` at a time, already without the reviews that the content must not know (see
`crossfit`), and answers in order. How to bring one's own: `registry`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from dlrrec_torchrec.extract.corpus import Corpus

NO_TIME = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class EntityReviews:
    """What a provider may know of one user or item.

    fold is -1 for all training reviews, else the fold that is left out. `documents` are positions in the
    corpus, i64 [n], the reviews in the table's order and then, of an item, its own metadata text. `times` has
    their seconds since 1970, i64 [n], NO_TIME where a time is not known; None: no time is known.
    """

    id: str
    side: str  # "user" or "item"
    fold: int
    documents: np.ndarray
    corpus: Corpus
    times: np.ndarray | None = None

    @property
    def texts(self) -> list[str]:
        """The texts that have words."""
        texts = (self.corpus.texts[d] for d in self.documents)
        return [text for text in texts if text]


@dataclasses.dataclass(frozen=True)
class Content:
    """What a writer answers: price tag and categories of an item, likes and avoids of a user.

    Names of categories are distinct, best first; the stage keeps extract.category_slots of each.
    """

    summary: tuple[str, ...] = ()  # its sentences
    price_tag: str = "none"  # one of schema.PRICE_TAGS
    categories: tuple[str, ...] = ()
    likes: tuple[str, ...] = ()  # categories that the user says to like anywhere, not of a place alone
    avoids: tuple[str, ...] = ()


class Writer(Protocol):
    """A provider that knows the corpus."""

    def describe(self, entities: Iterable[EntityReviews]) -> Iterator[Content]:
        """One Content for each of `entities`, in their order. An entity without a text gets Content()."""
        ...


class Provider(Protocol):
    """`fingerprint` hashes what shapes the content besides the model: prompts, word lists, limits.

    Two more methods are called where they exist: `begin()` before anything is read, to raise DataError where
    the provider cannot work; `record(folder: Path) -> dict` when all is described, to write tables of its own
    beside the content, and to return what the manifest says under its name.
    """

    name: str
    model: str
    fingerprint: str

    def read(self, corpus: Corpus) -> Writer:
        """The writer of content about entities whose `documents` point into the corpus."""
        ...
