"""Names of categories: answers merged into one name each, and into a vocabulary of limited size.

A vocabulary is a statistic of all items, so each fold has its own, made of that fold's versions alone: none
of them was shown a review of the fold. Names on the project's list of types are known beforehand; others must
be named of two items, so that no single review can add one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable

from dlrrec_torchrec.store.schema import category_types

MOST_TYPES = 179  # as in the papers
_SUPPORT = 2  # items that must have a name which is not on the list
_TAILS = frozenset("restaurant cuisine food place eatery joint type style".split())


def merged(names: Iterable[str]) -> tuple[str, ...]:
    """The names in one spelling each ("italian restaurants" is "Italian"), each once, in order."""
    return tuple(dict.fromkeys(_spelled(name) for name in names if name.strip()))


def vocabularies(
    named: Iterable[tuple[int, tuple[str, ...]]], most: int = MOST_TYPES
) -> dict[int, frozenset[str]]:
    """The vocabulary of each fold.

    Args:
        named: (fold, merged names) of each version of an item.
        most: names of a vocabulary; those of most items first, of equal ones those on the list, then by name.
    """
    counts: dict[int, Counter[str]] = {}
    for fold, names in named:
        counts.setdefault(fold, Counter()).update(names)
    known = set(_known().values())
    kept = {}
    for fold, count in counts.items():
        allowed = [name for name, items in count.items() if name in known or items >= _SUPPORT]
        allowed.sort(key=lambda name: (-count[name], name not in known, name))
        kept[fold] = frozenset(allowed[:most])
    return kept


@functools.cache
def _known() -> dict[str, str]:
    return {_key(name): name for name in category_types()}


@functools.cache
def _spelled(name: str) -> str:
    words = name.split()
    while True:
        if (known := _known().get(_key(" ".join(words)))) is not None:
            return known
        if len(words) < 2 or _key(words[-1]) not in _TAILS:
            return " ".join(word if word.isupper() and len(word) < 4 else word.capitalize() for word in words)
        words = words[:-1]


def _key(name: str) -> str:
    """Without case, hyphens, accents of quotes and a plural's s."""
    key = " ".join(name.casefold().replace("-", " ").replace("\u2019", "'").split())
    return key[:-1] if len(key) > 3 and key.endswith("s") and not key.endswith("ss") else key
