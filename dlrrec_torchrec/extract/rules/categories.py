"""Category types from words: mentions of types and dishes, weighted by how strong a sign they are."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from dlrrec_torchrec.extract.rules import lexicon

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")


class TypeMatcher:
    """Finds the words of `types` in text: whole words, singular or plural, the longest term first."""

    def __init__(self, types: list[str]):
        self.types = types
        code = {t: i for i, t in enumerate(types)}
        terms: dict[tuple[str, ...], dict[int, float]] = {}

        def add(term: str, kinds: Iterable[str], weight: float) -> None:
            weights = terms.setdefault(_words(term), {})
            for kind in kinds:
                if kind in code:
                    weights[code[kind]] = max(weight, weights.get(code[kind], 0.0))

        for kind, dishes in lexicon.DISHES.items():
            for dish in dishes.split(","):
                add(dish, [kind], lexicon.DISH_WEIGHT)
        for kind in types:
            for name in [kind, *lexicon.NAMES.get(kind, "").split(",")]:
                add(name, [kind], 1.0)
        for phrase, kinds in lexicon.PHRASES.items():
            terms[_words(phrase)] = {}
            add(phrase, [k.strip() for k in kinds.split(",")], 1.0)
        terms.pop((), None)
        self._terms = terms
        self._lengths: dict[str, list[int]] = {}  # first word -> lengths of its terms, longest first
        for term in terms:
            lengths = self._lengths.setdefault(term[0], [])
            if len(term) not in lengths:
                lengths.append(len(term))
                lengths.sort(reverse=True)

    def evidence(self, texts: list[str | None]) -> np.ndarray:
        """How clearly each text mentions each type, f32 [D, types]: distinct terms add up, to at most 1."""
        evidence = np.zeros((len(texts), len(self.types)), np.float32)
        for row, text in enumerate(texts):
            for term in self._distinct(text or ""):
                for kind, weight in self._terms[term].items():
                    evidence[row, kind] += weight
        return np.minimum(evidence, 1.0, out=evidence)

    def _distinct(self, text: str) -> set[tuple[str, ...]]:
        words, terms, at = _words(text), set(), 0
        while at < len(words):
            for length in self._lengths.get(words[at], ()):
                term = words[at : at + length]
                if term in self._terms:
                    terms.add(term)
                    at += length
                    break
            else:
                at += 1
        return terms


def rank_types(mentions: np.ndarray, documents: float, prevalence: np.ndarray) -> np.ndarray:
    """Codes of the types that stand out, best first, i64 [n].

    A type's score is its part of the binomial log likelihood ratio, p log(p / q), of its share p of the
    entity's reviews against the share q that is common (`prevalence`): positive where it is mentioned more
    than usual, and larger for the type that is mentioned more. p is shrunk towards q by one review's worth.

    Args:
        mentions: f32 [types] summed evidence of the entity's reviews.
        documents: number of reviews with words.
        prevalence: f32 [types].
    """
    share = (mentions + prevalence) / (documents + 1)
    score = np.where(mentions > 0, share * np.log(share / prevalence), 0.0)
    order = np.argsort(-score, kind="stable")
    return order[score[order] > 0]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_singular(w) for w in _WORD.findall(text.lower()))


def _singular(word: str, memo: dict[str, str] = {}) -> str:  # noqa: B006 (a memo, on purpose)
    """A rough singular, the same for terms and texts; it need not be a real word."""
    singular = memo.get(word)
    if singular is None:
        singular = re.sub(r"['\u2019]s?\Z", "", word)
        if len(singular) > 4 and singular.endswith("ies"):
            singular = singular[:-3] + "y"
        elif len(singular) > 4 and re.search(r"(?:ches|shes|sses|xes|oes)\Z", singular):
            singular = singular[:-2]
        elif len(singular) > 3 and singular.endswith("s") and not singular.endswith(("ss", "us", "is")):
            singular = singular[:-1]
        if len(memo) < 1_000_000:
            memo[word] = singular
    return singular
