"""How good a run's lists are: coverage, scores, thresholds, popularity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from swing import csr
from swing.audit.lists import Lists
from swing.compiled import compiled
from swing.config import SwingError

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
THRESHOLDS = (10, 25, 50, 75, 90, 95, 99)  # percentiles of the scores, where none is given
SCORE_BINS = 40
TOP_PERCENT = (1, 10)


def coverage(counts: np.ndarray) -> dict[str, Any]:
    """Ids, those with a list, and their share, from the lengths of the lists i64[ids]."""
    covered = int(np.count_nonzero(counts))
    return {"ids": len(counts), "covered": covered, "share": covered / len(counts)}


def lengths(counts: np.ndarray, top_k: int | None) -> dict[str, Any]:
    """How long the lists are, from their lengths i64[ids]; `full`: how many have `top_k` neighbours."""
    covered = counts[counts > 0]
    return {
        "neighbors": int(counts.sum()),
        "mean": float(counts.mean()),
        "mean_of_covered": float(covered.mean()) if len(covered) else None,
        "median_of_covered": float(np.median(covered)) if len(covered) else None,
        "max": int(counts.max()),
        "full": int(np.count_nonzero(counts >= top_k)) if top_k else None,
        "histogram": np.bincount(counts).tolist(),  # ids with 0, 1, 2, ... neighbours
    }


def scores(lists: Lists, threshold: float | Sequence[float] | None) -> dict[str, Any]:
    """The entries `scores` and `thresholds` of the report, without scores that are not positive and finite.

    Raises SwingError for a threshold that is not finite.
    """
    usable = (lists.scores > 0) & np.isfinite(lists.scores)
    values = lists.scores if usable.all() else np.where(usable, lists.scores, np.float32(0))
    best = np.zeros(len(lists.ids), np.float32)
    covered = lists.counts > 0
    if covered.any():
        best[covered] = np.maximum.reduceat(values, lists.ptr[:-1][covered])
    values_sorted, best = (np.sort(x[x > 0]) for x in (values, best))
    edges = _bin_edges(values_sorted)
    histograms = {name: _counts_in(edges, x) for name, x in (("all", values_sorted), ("best", best))}
    return {
        "scores": {
            "all": _summary(values_sorted),
            "best": _summary(best),
            "histogram": {"edges": edges.tolist(), **histograms},
        },
        "thresholds": _thresholds(values_sorted, best, len(lists.ids), threshold),
    }


def _percentile(ascending: np.ndarray, percent: int) -> np.float32:
    """The least value that `percent` % of the values do not exceed (type 1 of Hyndman & Fan 1996)."""
    return ascending[_rounded_up(percent, len(ascending)) - 1]


def _rounded_up(percent: int, total: int) -> int:
    return -(-percent * total // 100)


def _summary(ascending: np.ndarray) -> dict[str, Any]:
    if not len(ascending):
        return {"count": 0, "min": None, "mean": None, "max": None, "quantiles": {}}
    return {
        "count": len(ascending),
        "min": float(ascending[0]),
        "mean": float(ascending.mean(dtype=np.float64)),
        "max": float(ascending[-1]),
        "quantiles": {str(percent / 100): float(_percentile(ascending, percent)) for percent in PERCENTILES},
    }


def _bin_edges(ascending: np.ndarray) -> np.ndarray:
    """f32[bins + 1] from the least to the greatest score in equal ratios; one bin where all are equal."""
    if not len(ascending):
        return np.empty(0, np.float32)
    low, high = ascending[0], ascending[-1]
    edges = np.geomspace(float(low), float(high), SCORE_BINS + 1).astype(np.float32)
    inner = np.unique(edges[(low < edges) & (edges < high)])
    return np.concatenate([[low], inner, [high]])


def _counts_in(edges: np.ndarray, ascending: np.ndarray) -> list[int]:
    """Values in each bin; a value on an edge belongs above it, the greatest to the last bin."""
    if not len(edges):
        return []
    cuts = np.searchsorted(ascending, edges[1:-1], side="left")
    return np.diff(np.concatenate([[0], cuts, [len(ascending)]])).tolist()


def _thresholds(
    values: np.ndarray, best: np.ndarray, ids: int, threshold: float | Sequence[float] | None
) -> list[dict[str, Any]]:
    if threshold is None:
        cuts = [(percent / 100, _percentile(values, percent)) for percent in THRESHOLDS if len(values)]
        cuts = [cut for n, cut in enumerate(cuts) if n == 0 or cut[1] != cuts[n - 1][1]]
    else:
        cuts = [(None, np.float32(value)) for value in np.atleast_1d(threshold)]  # rounded as the scores are
    rows = []
    for share, cut in cuts:
        if not np.isfinite(cut):
            raise SwingError(f"a threshold must be a finite number, not {cut}")
        positives = len(values) - int(np.searchsorted(values, cut, side="right"))
        keeping = len(best) - int(np.searchsorted(best, cut, side="right"))
        rows.append(
            {
                "threshold": float(cut),
                "quantile": share,
                "neighbors": positives,
                "neighbors_share": positives / len(values) if len(values) else None,
                "ids": keeping,
                "ids_share": keeping / ids,
            }
        )
    return rows


def popularity(lists: Lists, appearances: np.ndarray, degree: np.ndarray | None) -> dict[str, Any]:
    """How the neighbours spread over the ids: `appearances` i64[ids] in the lists, beside `degree` i32[ids].

    - `appearing`: ids that are a neighbour at all (aggregate diversity); `gini` of the appearances over all
      ids, 0 where all appear equally often, near 1 where few have nearly all; beside it `gini_of_degrees`;
    - `top`: share of the appearances that goes to the ids of the highest degree, beside their share of the
      edges (of ids of equal degree at the boundary, the same part of each);
    - `spearman`: rank correlation of degree and appearances;
    - `arp`: average recommendation popularity, the mean over ids with a list of their neighbours' mean degree
      (Yin et al., "Challenging the long tail recommendation", VLDB 2012). Beside it the mean degree of all
      ids, and of an id at the end of a random edge: what lists that ignore all except edges would have;
    - `reciprocity`: share of the neighbours j of i that have i as a neighbour.
    """
    total = int(appearances.sum())
    result = {
        "appearing": int(np.count_nonzero(appearances)),
        "appearing_share": float(np.mean(appearances > 0)),
        "max": int(appearances.max()),
        "gini": _gini(appearances),
        "reciprocity": _count_mutual(lists) / total if total else None,
    }
    if degree is None:
        return result
    degree = degree.astype(np.int64)
    edges = int(degree.sum())
    covered = lists.counts > 0
    per_list = np.empty(0)
    if total:
        sums = np.add.reduceat(degree[lists.codes], lists.ptr[:-1][covered])
        per_list = sums / lists.counts[covered]
    top = []
    for percent in TOP_PERCENT:
        count = _rounded_up(percent, len(degree))
        shares = {
            name: _share_of_top(values, degree, count)
            for name, values in (("appearances_share", appearances), ("edges_share", degree))
        }
        top.append({"of_ids": percent / 100, "ids": count, **shares})
    return result | {
        "gini_of_degrees": _gini(degree),
        "top": top,
        "spearman": _spearman(degree, appearances),
        "arp": float(per_list.mean()) if total else None,
        "mean_degree": float(degree.mean()),
        "mean_degree_of_covered": float(degree[covered].mean()) if covered.any() else None,
        "mean_degree_by_edge": float((degree.astype(float) ** 2).sum() / edges) if edges else None,
    }


def _gini(values: np.ndarray) -> float | None:
    """Gini coefficient of values >= 0: half their mean difference over all pairs, divided by their mean."""
    total, n = int(values.sum()), len(values)
    if not total:
        return None
    return float((np.arange(1 - n, n, 2) * np.sort(values).astype(float)).sum() / (n * total))


def _share_of_top(values: np.ndarray, degree: np.ndarray, count: int) -> float | None:
    if not (total := int(values.sum())):
        return None
    bound = np.partition(degree, len(degree) - count)[len(degree) - count]
    above, tied = degree > bound, degree == bound
    part = (count - np.count_nonzero(above)) / np.count_nonzero(tied)
    return float((values[above].sum() + part * values[tied].sum()) / total)


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if (a == a[0]).all() or (b == b[0]).all():
        return None
    ranks = [pl.Series(x).rank("average").to_numpy() for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _count_mutual(lists: Lists) -> int:
    back_ptr, back = csr.transpose(lists.ptr, lists.codes, len(lists.ids))
    return _mutual(lists.ptr, lists.codes, back_ptr, back, np.full(len(lists.ids), -1, np.int32))


@compiled
def _mutual(ptr, codes, back_ptr, back, last_row):
    """Neighbours j of i, over all i, that have i as a neighbour."""
    count = 0
    for row in range(ptr.size - 1):
        for n in range(back_ptr[row], back_ptr[row + 1]):
            last_row[back[n]] = row
        for n in range(ptr[row], ptr[row + 1]):
            count += last_row[codes[n]] == row
    return count


def by_degree(degree: np.ndarray, counts: np.ndarray, appearances: np.ndarray) -> list[dict[str, Any]]:
    """Sums over the ids of degree 0, 1, 2 to 3, 4 to 7, ...; bins without ids are left out."""
    bins = np.frexp(degree)[1]
    columns = {
        "ids": np.ones(len(bins), np.int64),
        "covered": counts > 0,
        "edges": degree,
        "neighbors": counts,
        "appearances": appearances,
    }
    rows = []
    for number in np.unique(bins).tolist():
        inside = bins == number
        bounds = {"from": 2**number // 2, "to": max(0, 2**number - 1)}
        rows.append(bounds | {name: int(values[inside].sum()) for name, values in columns.items()})
        rows[-1]["coverage"] = rows[-1]["covered"] / rows[-1]["ids"]
    return rows
