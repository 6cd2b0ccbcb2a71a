"""The offline provider: content from word lists and sentence vectors, without network or language model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from dlrrec_torchrec.extract.corpus import Corpus
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews
from dlrrec_torchrec.extract.rules import lexicon, price, summarize, taste
from dlrrec_torchrec.extract.rules.categories import TypeMatcher, rank_types
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
        of_whom = np.asarray([taste.of_whom(piece) for piece in corpus.pieces], np.int8)
        self._mentions = matcher.evidence(self._texts(of_whom == taste.PLACE))
        self._likes, self._avoids = (
            _Sparse(matcher, self._texts(of_whom == whom)) for whom in (taste.LIKED, taste.AVOIDED)
        )
        self._price = price.price_evidence(corpus.texts)
        self._has_words = np.diff(corpus.offsets) > 0
        self._prevalence = prevalence()
        words = np.asarray([piece.count(" ") + 1 for piece in corpus.pieces], np.float32)
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
                    price.price_tag(self._price[documents].sum(axis=0)),
                    self._categories(documents, own[self._has_words[own]]),
                )

    def _summary(self, documents: np.ndarray) -> tuple[str, ...]:
        pieces = self.corpus.pieces_of(documents)
        chosen = summarize.summary_pieces(pieces, self.corpus.vectors, self._weights, self.summary_sentences)
        return tuple(self.corpus.pieces[p] for p in chosen)

    def _categories(self, documents: np.ndarray, own: np.ndarray) -> tuple[str, ...]:
        """Of an item by documents, of which `own` (one or none) is its own words."""
        more = _OWN_WORDS - 1
        mentions = self._mentions[documents].sum(axis=0) + more * self._mentions[own].sum(axis=0)
        number = len(documents) + more * len(own)
        return tuple(self.types[t] for t in rank_types(mentions, number, self._prevalence))

    def _names(self, total: np.ndarray) -> tuple[str, ...]:
        """Types with evidence, most first."""
        order = np.argsort(-total, kind="stable")
        return tuple(self.types[t] for t in order[total[order] > 0])

    def _texts(self, chosen: np.ndarray) -> list[str]:
        """What the chosen pieces, bool [P], say in each document."""
        pieces, corpus = self.corpus.pieces, self.corpus
        return [
            "\n".join(pieces[p] for p in corpus.piece[start:stop] if chosen[p])
            for start, stop in itertools.pairwise(corpus.offsets)
        ]


class _Sparse:
    """Evidence of documents of which few have any."""

    def __init__(self, matcher: TypeMatcher, texts: list[str]):
        filled = [d for d, text in enumerate(texts) if text]
        self._row = np.full(len(texts), -1)
        self._row[filled] = np.arange(len(filled))
        self._evidence = matcher.evidence([texts[d] for d in filled])

    def total(self, documents: np.ndarray) -> np.ndarray:
        """Summed evidence of documents i64 [n], f32 [types]."""
        rows = self._row[documents]
        return self._evidence[rows[rows >= 0]].sum(axis=0)


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
