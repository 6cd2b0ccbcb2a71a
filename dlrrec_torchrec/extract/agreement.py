"""Extracted price tags and categories against the source's own metadata, where it has them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.metrics import mean_ranks
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import ITEM_CONTENT, ITEMS, PRICE_TAGS, category_types

DEPTHS = (1, 3, 5)  # and as many types as are kept of an item


def agreement(
    content_dir: str | os.PathLike,
    items_dir: str | os.PathLike,
    slots: int,
    parts: tuple[str, ...] = ("price", "categories"),
) -> dict[str, Any]:
    """How far the content of fold -1 agrees with the metadata: {"price": ..., "categories": ...}.

    `slots`: types kept of an item, the last depth of `category_agreement`.

    A part that is not requested, or about which the metadata says nothing, is left out. For the numbers see
    `price_agreement` and `category_agreement`.
    """
    columns = ["id", "fold", "price_tag", "categories"]
    content = read_table(Path(content_dir) / "items", ITEM_CONTENT, columns).to_pylist()
    content_of = {row["id"]: row for row in content if row["fold"] == -1}
    metadata = read_table(items_dir, ITEMS, ["item_id", "categories", "price"]).to_pylist()
    metadata = [row for row in metadata if row["item_id"] in content_of]
    result: dict[str, Any] = {}
    priced = [row for row in metadata if row["price"] is not None and np.isfinite(row["price"])]
    if "price" in parts and priced:
        tags = [content_of[row["item_id"]]["price_tag"] for row in priced]
        result["price"] = price_agreement(tags, np.asarray([row["price"] for row in priced], np.float64))
    typed = [row for row in metadata if row["categories"]]
    if "categories" in parts and typed:
        extracted = [content_of[row["item_id"]]["categories"] or [] for row in typed]
        result["categories"] = category_agreement(extracted, [row["categories"] for row in typed], slots)
    return result


def tercile_tags(prices: np.ndarray) -> list[str]:
    """The tag of each price f64 [N] by the terciles of them all; NaN gives "none"."""
    known_prices = prices[~np.isnan(prices)]
    if not len(known_prices):
        return ["none"] * len(prices)
    third = np.digitize(prices, np.quantile(known_prices, [1 / 3, 2 / 3]), right=True)
    return ["none" if np.isnan(p) else PRICE_TAGS[1 + t] for p, t in zip(prices, third, strict=True)]


def price_agreement(tags: list[str], prices: np.ndarray) -> dict[str, Any]:
    """Tags of N items against their prices f64 [N].

    tagged: items with a tag other than none; the other numbers are over these. spearman: rank correlation of
    cheap < fair < overpriced with the price (None where either is constant). equal: share whose tag is that
    of the price's tercile; majority: the same for the most common tercile tag given to all.

    Over all N items: macro_f1, the mean over the terciles' tags of each one's F1, where an item without a tag
    is a miss; macro_f1_majority: the same for the most common tercile tag given to all.
    """
    tercile_of = tercile_tags(prices)
    rows = [i for i, tag in enumerate(tags) if tag != "none"]
    result: dict[str, Any] = {"items": len(tags), "tagged": len(rows)}
    truth = [{tag} for tag in tercile_of]
    common = Counter(tercile_of).most_common(1)[0][0]
    result["macro_f1"] = macro_f1([{tag} for tag in tags], truth)
    result["macro_f1_majority"] = macro_f1([{common}] * len(tags), truth)
    if rows:
        order = np.asarray([PRICE_TAGS.index(tags[i]) for i in rows])
        result["spearman"] = _spearman(order, prices[rows])
        result["equal"] = round(float(np.mean([tags[i] == tercile_of[i] for i in rows])), 4)
        result["majority"] = round(Counter(tercile_of[i] for i in rows).most_common(1)[0][1] / len(rows), 4)
    return result


def category_agreement(extracted: list[list[str]], truth: list[list[str]], slots: int) -> dict[str, Any]:
    """Ranked types of N items against the metadata's types.

    The metadata's names are matched to the vocabulary without regard to case; `uncovered` counts those that
    are not in it, and `items` the items with at least one that is. For each depth k (DEPTHS and `slots`),
    micro-averaged [precision, recall, F1] of
      extracted: the first k types of each item;
      in_use: the same after types that the metadata never uses are dropped (it may have no "Buffet" at all);
      baseline: the k types that are most common in the metadata, for every item;
    and, as macro_f1_at_k, the mean over the types that the metadata uses of each one's F1, for each of these.
    """
    vocabulary = {t.casefold(): t for t in category_types()}
    uncovered = Counter(name for names in truth for name in set(names) if name.casefold() not in vocabulary)
    known_types = [{vocabulary[n.casefold()] for n in names if n.casefold() in vocabulary} for names in truth]
    comparable = [(list(e), k) for e, k in zip(extracted, known_types, strict=True) if k]
    used = Counter(name for _, names in comparable for name in names)
    common = sorted(used, key=lambda name: (-used[name], name))
    rows = {
        "extracted": [e for e, _ in comparable],
        "in_use": [[name for name in e if name in used] for e, _ in comparable],
        "baseline": [common for _ in comparable],
    }
    true_types = [names for _, names in comparable]
    result: dict[str, Any] = {"items": len(comparable), "uncovered": dict(uncovered.most_common())}
    for k in sorted({*DEPTHS, slots}):
        result[f"at_{k}"] = {name: micro_scores(ranked, true_types, k) for name, ranked in rows.items()}
        result[f"macro_f1_at_{k}"] = {
            name: macro_f1([set(r[:k]) for r in ranked], true_types) for name, ranked in rows.items()
        }
    return result


def micro_scores(ranked: list[list[str]], true_types: list[set[str]], k: int) -> list[float]:
    """[precision, recall, F1] of the first k of each list, all decisions counted together; 0 if undefined."""
    hits = sum(len(set(r[:k]) & w) for r, w in zip(ranked, true_types, strict=True))
    predicted, actual = sum(len(set(r[:k])) for r in ranked), sum(map(len, true_types))
    scores = hits / max(predicted, 1), hits / max(actual, 1), 2 * hits / max(predicted + actual, 1)
    return [round(score, 4) for score in scores]


def macro_f1(given: list[set[str]], truth: list[set[str]]) -> float:
    """The mean F1 of the classes that occur in the truth, of N items' classes against it."""
    hits, offered, actual = (
        Counter(name for names in sets for name in names)
        for sets in ([g & t for g, t in zip(given, truth, strict=True)], given, truth)
    )
    scores = [2 * hits[name] / (offered[name] + actual[name]) for name in actual]
    return round(sum(scores) / max(len(scores), 1), 4)


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation of ranks, ties sharing their mean rank; None where either is constant."""
    ranks = mean_ranks(a), mean_ranks(b)
    if min(np.ptp(r) for r in ranks) == 0:
        return None
    return round(float(np.corrcoef(*ranks)[0, 1]), 4)
