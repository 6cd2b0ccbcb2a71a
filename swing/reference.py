"""The similarities in plain Python, directly from their formulas: slow, and the oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations

from swing.config import SwingConfig
from swing.csr import edge_hash


def scores(
    pairs: Iterable[tuple[str, str]], config: SwingConfig, side: str = "items"
) -> dict[str, dict[str, float]]:
    """All scores {id: {other id: score}} of distinct (user, item) pairs, before top-k and normalisation.

    Two items, both taken by users a and b, and c takes only the first; |I_a ∩ I_b| = 2, so 1 / (1 + 2):

    >>> scores([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")], SwingConfig())
    {'x': {'y': 0.3333333333333333}, 'y': {'x': 0.3333333333333333}}

    Of the three users of x or y, two have both:

    >>> config = SwingConfig(similarity="jaccard", min_user_items=1)
    >>> scores([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")], config)
    {'x': {'y': 0.6666666666666666}, 'y': {'x': 0.6666666666666666}}
    """
    edges = {(u, i) if side == "items" else (i, u) for u, i in pairs}  # (linking id, compared id)
    compared_ids = sorted({i for _, i in edges})
    edges = _limited(edges, config)
    items_of: dict[str, set[str]] = {}
    users_of: dict[str, set[str]] = {}
    for u, i in edges:
        items_of.setdefault(u, set()).add(i)
        users_of.setdefault(i, set()).add(u)
    weight = {u: (config.user_alpha + len(items)) ** -config.user_beta for u, items in items_of.items()}

    def score(i: str, j: str) -> float:
        users_i, users_j = users_of.get(i, set()), users_of.get(j, set())
        shared = sorted(users_i & users_j)
        if config.similarity == "swing":
            return math.fsum(
                weight[u]
                * weight[v]
                / (config.alpha + len(items_of[u] & items_of[v]) - (not config.count_anchor))
                for u, v in combinations(shared, 2)
            )
        if config.similarity == "adamic_adar":
            return math.fsum(1 / math.log(len(items_of[u])) for u in shared)
        size = {
            "common": 1.0,
            "cosine": math.sqrt(len(users_i) * len(users_j)),
            "jaccard": len(users_i | users_j),
        }
        return len(shared) / (size[config.similarity] or 1)

    result: dict[str, dict[str, float]] = {i: {} for i in compared_ids}
    for i, j in combinations(compared_ids, 2):
        if value := score(i, j):
            result[i][j] = result[j][i] = value
    return result


def _limited(edges: set[tuple[str, str]], config: SwingConfig) -> set[tuple[str, str]]:
    user_code = {u: code for code, u in enumerate(sorted({u for u, _ in edges}))}
    item_code = {i: code for code, i in enumerate(sorted({i for _, i in edges}))}

    def rows(position: int) -> dict[str, list[tuple[str, str]]]:
        grouped: dict[str, list[tuple[str, str]]] = {}
        for edge in edges:
            grouped.setdefault(edge[position], []).append(edge)
        return grouped

    limit = config.max_user_items or math.inf
    edges = {e for row in rows(0).values() if config.min_user_items <= len(row) <= limit for e in row}
    if config.sample_user_items:
        key = lambda e: int(edge_hash(user_code[e[0]], item_code[e[1]], config.seed))  # noqa: E731
        edges = {e for row in rows(0).values() for e in sorted(row, key=key)[: config.sample_user_items]}
    if config.max_item_users:
        key = lambda e: int(edge_hash(item_code[e[1]], user_code[e[0]], config.seed))  # noqa: E731
        edges = {e for row in rows(1).values() for e in sorted(row, key=key)[: config.max_item_users]}
    return edges
