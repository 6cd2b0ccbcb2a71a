"""The offline provider: content from word lists and sentence vectors, without network or language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dlrrec_torchrec.extract.corpus import Corpus
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews
from dlrrec_torchrec.extract.rules import lexicon, price, summarize
from dlrrec_torchrec.extract.rules.categories import TypeMatcher, rank_types
from dlrrec_torchrec.store.manifest import digest
from dlrrec_torchrec.store.schema import category_types

_RULES = 1  # raise when the rules change and the word lists do not
_TELLING_WORDS = 6  # a sentence of fewer words says less ("Good food."): its relevance shrinks


class OfflineProvider:
    """Extractive summaries by MMR, price tags and category types by mention.

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
        self._mentions = TypeMatcher(types).evidence(corpus.texts)
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
                yield Content(self._summary(documents))
            else:
                yield Content(
                    self._summary(documents),
                    price.price_tag(self._price[documents].sum(axis=0)),
                    self._categories(documents),
                )

    def _summary(self, documents: np.ndarray) -> tuple[str, ...]:
        pieces = self.corpus.pieces_of(documents)
        chosen = summarize.summary_pieces(pieces, self.corpus.vectors, self._weights, self.summary_sentences)
        return tuple(self.corpus.pieces[p] for p in chosen)

    def _categories(self, documents: np.ndarray) -> tuple[str, ...]:
        mentions = self._mentions[documents].sum(axis=0)
        return tuple(self.types[t] for t in rank_types(mentions, len(documents), self._prevalence))


def prevalence() -> np.ndarray:
    """The fixed share of reviews that mention each type, f32 [types] in code order."""
    shares = [lexicon.PREVALENCE.get(t, lexicon.PREVALENCE_DEFAULT) for t in category_types()]
    return np.asarray(shares, np.float32)


def _fingerprint(summary_sentences: int) -> str:
    """A hash of the word lists, rules and limits behind the offline provider's content."""
    words = {k: v for k, v in vars(lexicon).items() if k.isupper()}
    patterns = [(column, pattern.pattern) for column, pattern in price.PATTERNS]
    limits = [summary_sentences, summarize.RELEVANCE, summarize.CANDIDATES, _TELLING_WORDS, price.CLEAR]
    return digest([_RULES, category_types(), words, patterns, limits])
