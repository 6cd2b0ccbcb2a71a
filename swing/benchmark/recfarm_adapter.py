"""LibRecommender's `recfarm` 0.2.1 (Rust), run on the same graph: the second implementation of SWING."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import recfarm

from swing.csr import transpose

HEAD = np.dtype(
    "<u8, <f4, <u8, <u8, <u8, <u8"
)  # top_k, alpha, max_cache_num, n_users, n_items, items with scores
ROW = np.dtype([("item", "<i4"), ("size", "<u8")])
NEIGHBOR = np.dtype([("item", "<i4"), ("score", "<f4")])


class Matrix(NamedTuple):
    """CSR as recfarm takes it: lists, a row for each id from 0."""

    sparse_indptr: list[int]
    sparse_indices: list[int]
    sparse_data: list[float]


def neighbors(
    user_codes: np.ndarray, item_codes: np.ndarray, users: int, items: int, alpha: float, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """All SWING scores of distinct (user, item) pairs, by recfarm.

    `user_codes`, `item_codes`: integers [edges] below `users` and `items`. Returns ptr i64[items + 1], the
    neighbours' codes i32 and scores f32, best first (recfarm keeps all and ignores its top_k), and the
    seconds spent in `compute_swing`. Its cache of intersections has no bound, which is its fastest setting.
    `threads` has effect at the first call of a process only: the pool stays.
    """
    edges = np.unique(np.asarray(user_codes, np.int64) << 32 | np.asarray(item_codes, np.int64))
    user_ptr = np.searchsorted(edges, np.arange(users + 1, dtype=np.int64) << 32)
    user_idx = (edges & 0xFFFFFFFF).astype(np.int32)
    by_user, by_item = (
        Matrix(ptr.tolist(), idx.tolist(), [1.0] * len(idx))
        for ptr, idx in ((user_ptr, user_idx), transpose(user_ptr, user_idx, items))
    )
    model = recfarm.Swing(1, alpha, 2**62, users, items, by_user, by_item, {0: [0]}, 0.0)
    started = time.perf_counter()
    model.compute_swing(threads)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        with _stdout_to_stderr():
            recfarm.save_swing(model, folder, "model")
        content = gzip.decompress((Path(folder) / "model.gz").read_bytes())
    return *_decode(content, items), seconds


def _decode(content: bytes, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores in a saved model, bincode 1: HEAD, then for every item, in no order, ROW and NEIGHBORs."""
    at = HEAD.itemsize
    rows: list[np.ndarray] = [np.empty(0, NEIGHBOR)] * items
    for _ in range(int(np.frombuffer(content, HEAD, 1)[0][-1])):
        item, size = np.frombuffer(content, ROW, 1, at)[0]
        at += ROW.itemsize
        rows[item] = np.frombuffer(content, NEIGHBOR, int(size), at)
        at += NEIGHBOR.itemsize * int(size)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    neighbors = np.concatenate(rows)
    return ptr, neighbors["item"].copy(), neighbors["score"].copy()


@contextlib.contextmanager
def _stdout_to_stderr():
    """recfarm prints where it saved to standard output."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
