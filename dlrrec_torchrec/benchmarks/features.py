"""`dlrrec bench features`: what the affinity of a user and an item costs, and how that grows with the rows.

Random reviews: users and items drawn by Zipf's law, so that a few histories are long, ratings with true
deviations, vectors of 64 numbers (as `prepare` projects them), five category types an item. Each size runs in
a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from dlrrec_torchrec.benchmarks.cases import FeaturesCase
from dlrrec_torchrec.features.affinity import History, fit_affinity

DIM, TYPES, SLOTS, PRICES = 64, 179, 5, 4
WARM_ROWS = 2_000  # compiles the loops before anything is timed
CHUNK = 1 << 18


def run(case: FeaturesCase, say: Callable[[str], Any] = lambda line: None) -> dict[str, Any]:
    """Measure.

    Returns:
        case: its settings; threads: of the compiled loops.
        results: for each number of rows `rows`, `users`, `items`, `columns`; `fit_seconds` (one fit on all of
            them), `column_seconds` (the features of as many pairs), `rows_per_second` of the latter,
            `prepare_seconds` (an estimate: as many fits as folds and one more, and the columns once),
            `peak_mib`; `item_seconds`: one user against all items.
        slope: of log seconds (fit and columns) by log rows between the smallest and the largest size.
    """
    results = []
    for rows in sorted(case.rows):
        say(f"{rows:,} rows")
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            results.append(pool.apply(_measure, (rows, case.rows_a_user, case.items, case.folds, case.seed)))
    first, last = results[0], results[-1]
    slope = None
    if last["rows"] > first["rows"]:
        seconds = [r["fit_seconds"] + r["column_seconds"] for r in (first, last)]
        slope = float(np.log(seconds[1] / seconds[0]) / np.log(last["rows"] / first["rows"]))
    body = dataclasses.asdict(case)
    return {"case": body, "threads": numba.get_num_threads(), "results": results, "slope": slope}


def random_history(rows: int, rows_a_user: float, items: int, seed: int) -> History:
    """Reviews by Zipf's law, as in the module's description."""
    rng = np.random.default_rng(seed)
    users, items = max(int(rows / rows_a_user), 1), max(min(items, rows // 10), 2)

    def drawn(size: int, exponent: float) -> np.ndarray:
        weight = np.arange(1, size + 1, dtype=np.float64) ** -exponent
        return np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(rows)).clip(max=size - 1)

    user, item = drawn(users, 0.6), drawn(items, 0.8)
    key = np.unique(user * items + item)  # a user reviews an item once
    user, item = np.divmod(rng.permutation(key), items)
    liking = rng.normal(size=users)[user] + rng.normal(size=items)[item] + rng.normal(size=len(user))
    rating = np.clip(np.round(3.5 + 0.7 * liking), 1, 5).astype(np.float32)
    vectors = {
        "user_text": rng.standard_normal((users, DIM), np.float32),
        "item_text": rng.standard_normal((items, DIM), np.float32),
    }
    category = np.sort(rng.integers(0, TYPES, (items, SLOTS)))
    category[:, 1:][category[:, 1:] == category[:, :-1]] = TYPES
    label = (rating >= 4).astype(np.float32)
    price = rng.integers(0, PRICES, items)
    said = rng.random((2, users, 1)) < 0.2
    likes, avoids = np.where(said, rng.integers(0, TYPES, said.shape), TYPES)
    return History(user, item, rating, label, users, items, vectors, category, TYPES, price, likes, avoids)


def _measure(rows: int, rows_a_user: float, items: int, folds: int, seed: int) -> dict[str, Any]:
    fit_affinity(warm := random_history(WARM_ROWS, 20, 100, seed)).columns(warm.user, warm.item)
    history = random_history(rows, rows_a_user, items, seed)
    began = time.perf_counter()
    affinity = fit_affinity(history)
    fitted = time.perf_counter()
    for start in range(0, len(history.user), CHUNK):
        affinity.columns(history.user[start : start + CHUNK], history.item[start : start + CHUNK])
    done = time.perf_counter()
    affinity.columns(np.full(history.items, int(history.user[0])), np.arange(history.items))
    return {
        "rows": len(history.user),
        "users": history.users,
        "items": history.items,
        "columns": len(affinity.names),
        "fit_seconds": fitted - began,
        "column_seconds": done - fitted,
        "rows_per_second": len(history.user) / (done - fitted),
        "prepare_seconds": (folds + 1) * (fitted - began) + (done - fitted),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "item_seconds": time.perf_counter() - done,
    }


def format_features(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a table, the first its head."""
    lines = [["rows", "users", "items", "fit s", "columns s", "rows/s", "prepare s", "peak GiB", "1 user ms"]]
    for r in report["results"]:
        numbers = [r["rows"], r["users"], r["items"]]
        seconds = [f"{r[name]:.1f}" for name in ("fit_seconds", "column_seconds")]
        rest = [f"{r['rows_per_second']:,.0f}", f"{r['prepare_seconds']:.0f}", f"{r['peak_mib'] / 1024:.2f}"]
        lines.append([*(f"{n:,}" for n in numbers), *seconds, *rest, f"{1000 * r['item_seconds']:.1f}"])
    return lines
