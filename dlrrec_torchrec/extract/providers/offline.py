"""The offline provider: content from word lists and sentence vectors, without network or language model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dlrrec_torchrec.extract.corpus import BLOCK, Corpus, offsets_of, spans
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews
from dlrrec_torchrec.extract.rules import lexicon, price, summarize, taste
from dlrrec_torchrec.extract.rules.categories import TypeMatcher, rank_types
from dlrrec_torchrec.extract.strings import batched
from dlrrec_torchrec.store.manifest import digest
from dlrrec_torchrec.store.schema import category_types

_RULES = 2  # raise when the rules change and the word lists do not
_OWN_WORDS = 2.0  # reviews that an item's own title and text count for, in its categories
_TELLING_WORDS = 6  # a sentence of fewer words says less ("Good food."): its relevance shrinks


class OfflineProvider:
    """Extractive summaries by MMR; prices, category types, and types that users like or avoid, by mention.

    Args:
        summary_sentences: most sentences of a summary.
    """

    name = "offline"
    model = "lexicon+mmr"

    def __init__(self, summary_sentences: int = 5):
        self.summary_sentences = summary_sentences
        self.fingerprint = _fingerprint(summary_sentences)

    def read(self, corpus: Corpus) -> OfflineWriter:
        return OfflineWriter(corpus, self.summary_sentences)


class OfflineWriter:
    """Everything a document says is counted once, in the constructor; an entity's content is a sum over the
    documents it may know, with weights that are fixed, so no left-out review leaves a trace."""

    def __init__(self, corpus: Corpus, summary_sentences: int):
        types = category_types()
        self.corpus, self.summary_sentences, self.types = corpus, summary_sentences, types
        matcher = TypeMatcher(types)
        of_whom = _of_pieces(corpus, taste.of_whom, np.int8)
        self._mentions, self._likes, self._avoids = (
            SparseEvidence(matcher.evidence(texts) for texts in _texts(corpus, of_whom == whom))
            for whom in (taste.PLACE, taste.LIKED, taste.AVOIDED)
        )
        self._price = SparseEvidence(price.price_evidence(texts) for texts in batched(corpus.texts, BLOCK))
        self._has_words = np.diff(corpus.offsets) > 0
        self._prevalence = prevalence()
        words = _of_pieces(corpus, lambda piece: piece.count(" ") + 1, np.float32)
        self._weights = np.minimum(words / _TELLING_WORDS, 1.0) ** 0.5

    def describe(self, entities: Iterable[EntityReviews]) -> Iterator[Content]:
        """One Content for each entity; Content() where no document has words."""
        for entity in entities:
            documents = entity.documents[self._has_words[entity.documents]]
            if not len(documents):
                yield Content()
            elif entity.side == "user":
                yield Content(
                    self._summary(documents),
                    likes=self._names(self._likes.total(documents)),
                    avoids=self._names(self._avoids.total(documents)),
                )
            else:
                own = entity.documents[-1:]
                yield Content(
                    self._summary(documents),
                    price.price_tag(self._price.total(documents)),
                    self._categories(documents, own[self._has_words[own]]),
                )

    def _summary(self, documents: np.ndarray) -> tuple[str, ...]:
        pieces = self.corpus.pieces_of(documents)
        chosen = summarize.summary_pieces(pieces, self.corpus.vectors, self._weights, self.summary_sentences)
        return tuple(self.corpus.pieces[p] for p in chosen)

    def _categories(self, documents: np.ndarray, own: np.ndarray) -> tuple[str, ...]:
        """Of an item by documents, of which `own` (one or none) is its own words."""
        more = _OWN_WORDS - 1
        mentions = self._mentions.total(documents) + more * self._mentions.total(own)
        number = len(documents) + more * len(own)
        return tuple(self.types[t] for t in rank_types(mentions, number, self._prevalence))

    def _names(self, total: np.ndarray) -> tuple[str, ...]:
        """Types with evidence, most first."""
        order = np.argsort(-total, kind="stable")
        return tuple(self.types[t] for t in order[total[order] > 0])


class SparseEvidence:
    """What documents say of T things, of which each mentions few."""

    def __init__(self, batches: Iterable[np.ndarray]):
        """`batches`: f32 [n, T], of the documents in order."""
        counts, things, values, self._things = [np.zeros(0, np.int64)], [], [], 0
        for evidence in batches:
            row, thing = np.nonzero(evidence)
            counts.append(np.bincount(row, minlength=len(evidence)))
            things.append(thing.astype(np.uint8 if evidence.shape[1] < 256 else np.int32))
            values.append(evidence[row, thing])
            self._things = evidence.shape[1]
        self._offsets = offsets_of(np.concatenate(counts))
        self._thing = np.concatenate(things or [np.zeros(0, np.uint8)])
        self._value = np.concatenate(values or [np.zeros(0, np.float32)])

    def total(self, documents: np.ndarray) -> np.ndarray:
        """Summed evidence of documents i64 [n], f32 [T]; added in their order."""
        total, place = np.zeros(self._things, np.float32), spans(self._offsets, documents)
        np.add.at(total, self._thing[place], self._value[place])
        return total


def _texts(corpus: Corpus, chosen: np.ndarray) -> Iterator[list[str]]:
    """What the chosen pieces, bool [P], say in each document, in batches of documents."""
    for start in range(0, len(corpus), BLOCK):
        texts = []
        for first, last in itertools.pairwise(corpus.offsets[start : start + BLOCK + 1].tolist()):
            piece = corpus.piece[first:last]
            texts.append("\n".join(corpus.pieces[p] for p in piece[chosen[piece]]))
        yield texts


def _of_pieces(corpus: Corpus, value: Callable[[str], int], kind: type) -> np.ndarray:
    """A number of each piece, [P]."""
    return np.fromiter(map(value, corpus.pieces), kind, len(corpus.pieces))


def prevalence() -> np.ndarray:
    """The fixed share of reviews that mention each type, f32 [types] in code order."""
    shares = [lexicon.PREVALENCE.get(t, lexicon.PREVALENCE_DEFAULT) for t in category_types()]
    return np.asarray(shares, np.float32)


def _fingerprint(summary_sentences: int) -> str:
    """A hash of the word lists, rules and limits behind the offline provider's content."""
    words = {k: v for k, v in vars(lexicon).items() if k.isupper()}
    patterns = [(column, pattern.pattern) for column, pattern in price.PATTERNS]
    patterns += [(name, getattr(taste, name).pattern) for name in ("LIKES", "AVOIDS", "OF_PLACE")]
    limits = [summary_sentences, summarize.RELEVANCE, summarize.CANDIDATES, _TELLING_WORDS, price.CLEAR]
    limits.append(_OWN_WORDS)
    return digest([_RULES, category_types(), words, patterns, limits])
