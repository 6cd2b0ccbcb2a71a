"""How far two outputs agree on the lists of the ids they share."""

from __future__ import annotations

from typing import Any

import numpy as np

from swing.audit.lists import Lists
from swing.compiled import compiled
from swing.config import SwingError

RBO_P = 0.9  # persistence of rank-biased overlap: the first ten ranks then weigh 86 % (Webber et al. 2010)
CELLS = 1 << 21  # ids times ranks, compared in one step


def compare(this: Lists, other: Lists, k: int = 10) -> dict[str, Any]:
    """Agreement of two outputs over the ids with a list in both. `other.codes` are rows of `this.ids`.

    With A_d and B_d the first d neighbours of an id (all, where a list is shorter), X_d = |A_d ∩ B_d| and
    m the length of the longer list:

        overlap@d  X_d / min(d, m)               1 where both begin with the same d ids, in any order
        jaccard@k  X_k / |A_k ∪ B_k|
        rbo        rank-biased overlap, extrapolated, p = 0.9
        identical  share of ids whose first k neighbours are the same in the same order

    overlap@d is the agreement at depth d of Webber, Moffat & Zobel, "A similarity measure for indefinite
    rankings" (ACM TOIS 28, 2010), as far as the lists reach; rbo is their equation 32, on whole lists.
    Raises SwingError where the two are of different sides or have no id in common.
    """
    if this.manifest["side"] != other.manifest["side"]:
        raise SwingError(
            f"{this.directory} has neighbours of {this.manifest['side']}, {other.directory} of "
            f"{other.manifest['side']}: nothing to compare"
        )
    row_here = this.rows(other.ids.to_arrow())
    rows_there = np.flatnonzero(row_here >= 0)
    rows_here = row_here[rows_there]
    if not len(rows_here):
        raise SwingError(f"{this.directory} and {other.directory} have no id in common")
    listed = (this.counts[rows_here] > 0, other.counts[rows_there] > 0)
    listed_in_both = listed[0] & listed[1]
    return {
        "other": str(other.directory),
        "parameters": _differences(this.manifest["parameters"], other.manifest["parameters"]),
        "filters": _differences(this.manifest.get("filters") or {}, other.manifest.get("filters") or {}),
        "input": _differences(this.manifest.get("input", {}), other.manifest.get("input", {})),
        "ids": {"this": len(this.ids), "other": len(other.ids), "both": len(rows_here)},
        "coverage": {
            "this": float(np.mean(this.counts > 0)),
            "other": float(np.mean(other.counts > 0)),
            "this_on_shared_ids": float(listed[0].mean()),
            "other_on_shared_ids": float(listed[1].mean()),
        },
        "lists_in_both": int(listed_in_both.sum()),
        "k": k,
        **_measures(this, other, rows_here[listed_in_both], rows_there[listed_in_both], k),
    }


def _measures(
    this: Lists, other: Lists, rows_here: np.ndarray, rows_there: np.ndarray, k: int
) -> dict[str, Any]:
    if not len(rows_here):
        return {"overlap": None, "jaccard": None, "rbo": None, "identical": None, "overlap_by_rank": []}
    depth = int(max(this.counts[rows_here].max(), other.counts[rows_there].max()))
    totals = {"overlap": 0.0, "jaccard": 0.0, "rbo": 0.0, "identical": 0.0}
    by_rank = np.zeros(depth)
    stamps = np.full((2, len(this.ids)), -1, np.int32)
    step = max(1, CELLS // depth)
    for begin in range(0, len(rows_here), step):
        a, b = rows_here[begin : begin + step], rows_there[begin : begin + step]
        shared = np.empty((len(a), depth), np.int32)
        _count_shared(this.ptr, this.codes, a, other.ptr, other.codes, b, begin, *stamps, shared)
        lengths = np.stack([this.counts[a], other.counts[b]])
        reached = np.minimum(np.arange(1, depth + 1), lengths.max(0)[:, None])  # min(d, m)
        overlap = shared / reached
        by_rank += overlap.sum(0)
        at = min(k, depth)
        totals["overlap"] += overlap[:, at - 1].sum()
        union = np.minimum(lengths, k).sum(0) - shared[:, at - 1]
        totals["jaccard"] += (shared[:, at - 1] / union).sum()
        totals["rbo"] += rank_biased_overlap(shared, lengths.min(0), lengths.max(0)).sum()
        totals["identical"] += np.count_nonzero((shared == reached)[:, :at].all(1))
    means = {name: float(total) / len(rows_here) for name, total in totals.items()}
    return means | {"overlap_by_rank": (by_rank / len(rows_here)).tolist()}


def rank_biased_overlap(
    shared: np.ndarray, short: np.ndarray, long: np.ndarray, p: float = RBO_P
) -> np.ndarray:
    """RBO_ext of N pairs of lists of lengths `short` <= `long` i64[N], at least 1; f64[N].

    `shared` i32[N, D]: X_d of d = 1..D, where D reaches the longest list. Webber et al. 2010, equation 32:
    (1-p)/p (Σ_{d<=l} X_d p^d / d + Σ_{s<d<=l} X_s (d-s) p^d / (s d)) + ((X_l - X_s) / l + X_s / s) p^l
    """
    d = np.arange(1, shared.shape[1] + 1)
    rows = np.arange(len(shared))
    at_short, at_long = shared[rows, short - 1], shared[rows, long - 1]
    s, length = short[:, None], long[:, None]
    beyond = np.where(d > s, at_short[:, None] * (d - s) / s, 0.0)
    series = np.where(d <= length, (shared + beyond) * (p**d / d), 0.0).sum(1)
    return (1 - p) / p * series + ((at_long - at_short) / long + at_short / short) * p**long


def _differences(this: dict[str, Any], other: dict[str, Any]) -> dict[str, list]:
    """The entries that differ: name -> [value of this, value of the other], None where one has none."""
    names = list(dict.fromkeys([*this, *other]))
    return {name: [this.get(name), other.get(name)] for name in names if this.get(name) != other.get(name)}


@compiled
def _count_shared(a_ptr, a_codes, a_rows, b_ptr, b_codes, b_rows, base, in_a, in_b, shared):
    """Fill shared[n, d]: ids among the first d + 1 of both list a_rows[n] and list b_rows[n]."""
    for n in range(a_rows.size):
        a, b, stamp, count = a_rows[n], b_rows[n], base + n, 0
        for d in range(shared.shape[1]):
            at = a_ptr[a] + d
            if at < a_ptr[a + 1] and a_codes[at] >= 0 and in_a[a_codes[at]] != stamp:
                in_a[a_codes[at]] = stamp
                count += in_b[a_codes[at]] == stamp
            at = b_ptr[b] + d
            if at < b_ptr[b + 1] and b_codes[at] >= 0 and in_b[b_codes[at]] != stamp:
                in_b[b_codes[at]] = stamp
                count += in_a[b_codes[at]] == stamp
            shared[n, d] = count
