"""Compressed sparse rows (CSR): `ptr` i64[rows + 1] and `idx` i32[edges], sorted by counting.

A transposition reads the rows in order, so the rows of its result ascend: two of them sort any graph.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from swing.compiled import compiled, prefetch
from swing.machine import available_cores

BUCKET_BITS = (
    9  # a pass that writes to 512 places stays in the cache; one that writes to millions misses it each time
)
AHEAD = 32  # a rank is prefetched this many edges before it is used
LARGEST = 2**31 - 1  # ids of one side and users of an item: codes have 32 bits


@compiled
def _bucket_counts(codes, rank, shift, counts):
    for n in range(codes.size):
        prefetch(rank, codes[min(n + AHEAD, codes.size - 1)])
        counts[rank[codes[n]] >> shift] += 1


@compiled
def _fill_buckets(rows, columns, row_rank, column_rank, shift, cursor, edges):
    for n in range(rows.size):
        ahead = min(n + AHEAD, rows.size - 1)
        prefetch(row_rank, rows[ahead])
        prefetch(column_rank, columns[ahead])
        row = row_rank[rows[n]]
        bucket = row >> shift
        edges[cursor[bucket]] = np.int64(row) << 32 | np.int64(column_rank[columns[n]])
        cursor[bucket] += 1


@compiled
def _bucket_counts_of_rows(idx, shift, counts):
    for n in range(idx.size):
        counts[idx[n] >> shift] += 1


@compiled
def _fill_buckets_from_rows(ptr, idx, shift, cursor, edges):
    for row in range(ptr.size - 1):
        for n in range(ptr[row], ptr[row + 1]):
            bucket = idx[n] >> shift
            edges[cursor[bucket]] = np.int64(idx[n]) << 32 | np.int64(row)
            cursor[bucket] += 1


@compiled
def _spread_buckets(edges, bounds, shift, begin, end, ptr, idx):
    """Order the edges of the buckets begin..end-1 by row, each in its own small window of memory."""
    rows = ptr.size - 1
    cursor = np.empty((1 << shift) + 1, np.int64)
    for bucket in range(begin, end):
        first = bucket << shift
        cursor[:] = 0
        for n in range(bounds[bucket], bounds[bucket + 1]):
            cursor[(edges[n] >> 32) - first + 1] += 1
        cursor[0] = bounds[bucket]
        for row in range(first, min(first + (1 << shift), rows)):
            ptr[row] = cursor[row - first]
            cursor[row - first + 1] += cursor[row - first]
        for n in range(bounds[bucket], bounds[bucket + 1]):
            row = (edges[n] >> 32) - first
            idx[cursor[row]] = edges[n] & 0xFFFFFFFF
            cursor[row] += 1


def _by_row(edges: np.ndarray, bounds: np.ndarray, shift: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    ptr, idx = np.empty(rows + 1, np.int64), np.empty(len(edges), np.int32)
    ptr[-1] = len(edges)
    cuts = np.linspace(0, len(bounds) - 1, 4 * available_cores() + 1).astype(int)
    with ThreadPoolExecutor(available_cores()) as pool:
        work = [(edges, bounds, shift, a, b, ptr, idx) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        list(pool.map(lambda arguments: _spread_buckets(*arguments), work))
    return ptr, idx


def _buckets(rows: int) -> tuple[int, np.ndarray]:
    """The shift from a row to its bucket, and i64[buckets + 1] zeros for where the buckets begin."""
    shift = max(0, (rows - 1).bit_length() - BUCKET_BITS)
    return shift, np.zeros(((rows - 1) >> shift) + 2, np.int64)


def transpose(ptr: np.ndarray, idx: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The same edges by column: (i64[columns + 1], i32[edges]), rows ascending."""
    shift, bounds = _buckets(columns)
    _bucket_counts_of_rows(idx, shift, bounds[1:])
    np.cumsum(bounds, out=bounds)
    edges = np.empty(len(idx), np.int64)
    _fill_buckets_from_rows(ptr, idx, shift, bounds[:-1].copy(), edges)
    return _by_row(edges, bounds, shift, columns)


def from_pairs(
    pairs: list[tuple[np.ndarray, np.ndarray]], row_rank: np.ndarray, column_rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """CSR of distinct edges, rows ascending, from chunks of (row codes, column codes) u32.

    Row codes become row_rank[code], column codes column_rank[code] (i32). Empties `pairs`.
    """
    shift, bounds = _buckets(len(column_rank))
    for _, columns in pairs:
        _bucket_counts(columns, column_rank, shift, bounds[1:])
    np.cumsum(bounds, out=bounds)
    edges, cursor = np.empty(bounds[-1], np.int64), bounds[:-1].copy()
    while pairs:
        rows, columns = pairs.pop()
        _fill_buckets(columns, rows, column_rank, row_rank, shift, cursor, edges)
    by_column = _by_row(edges, bounds, shift, len(column_rank))
    del edges
    return _distinct(*transpose(*by_column, len(row_rank)))


@compiled
def _pack_distinct(ptr, idx):
    filled = 0
    for row in range(ptr.size - 1):
        begin, end = ptr[row], ptr[row + 1]
        ptr[row] = filled
        previous = -1
        for n in range(begin, end):
            if idx[n] != previous:
                previous = idx[n]
                idx[filled] = previous
                filled += 1
    ptr[-1] = filled
    return filled


def _distinct(ptr: np.ndarray, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending rows without their repeated columns, in place."""
    filled = _pack_distinct(ptr, idx)
    return ptr, idx if filled == len(idx) else idx[:filled].copy()


@compiled
def _pack_rows(ptr, idx, low, high, out_ptr, out):
    filled = 0
    for row in range(ptr.size - 1):
        size = ptr[row + 1] - ptr[row]
        if low <= size <= high:
            for n in range(ptr[row], ptr[row + 1]):
                out[filled] = idx[n]
                filled += 1
        out_ptr[row + 1] = filled
    return filled


def keep_rows(ptr: np.ndarray, idx: np.ndarray, low: int, high: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `low` to `high` edges; the others are emptied."""
    size = np.diff(ptr)
    high = LARGEST if high is None else high
    edges_kept = int(size[(size >= low) & (size <= high)].sum())
    if edges_kept == len(idx):
        return ptr, idx
    out_ptr, out = np.zeros_like(ptr), np.empty(edges_kept, np.int32)
    _pack_rows(ptr, idx, low, high, out_ptr, out)
    return out_ptr, out


@compiled
def edge_hash(row, column, seed):
    """u64 hash of (seed, row, column): two rounds of the finaliser of SplitMix64 (Steele et al. 2014).

    For one seed it is a bijection of (row, column): no two edges have the same hash.
    """
    value = np.uint64(row) << np.uint64(32) | np.uint64(column)
    for salt in (np.uint64(seed), np.uint64(0)):
        value = value + salt * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


@compiled
def _pack_sample(ptr, idx, limit, seed, out_ptr, out):
    filled = 0
    for row in range(ptr.size - 1):
        begin, end = ptr[row], ptr[row + 1]
        if end - begin <= limit:
            for n in range(begin, end):
                out[filled] = idx[n]
                filled += 1
        else:
            hashes = np.empty(end - begin, np.uint64)
            for n in range(begin, end):
                hashes[n - begin] = edge_hash(row, idx[n], seed)
            bound = np.partition(hashes, limit - 1)[limit - 1]
            for n in range(begin, end):
                if hashes[n - begin] <= bound:
                    out[filled] = idx[n]
                    filled += 1
        out_ptr[row + 1] = filled


def sample_rows(
    ptr: np.ndarray, idx: np.ndarray, limit: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`limit` edges, drawn evenly, of every row that has more; None: all.

    The edges with the smallest hash of (seed, row, column) stay, whatever the order of reading, the partition
    or the threads.
    """
    if limit is None or int(np.diff(ptr).max(initial=0)) <= limit:
        return ptr, idx
    out_ptr = np.zeros_like(ptr)
    out = np.empty(int(np.minimum(np.diff(ptr), limit).sum()), np.int32)
    _pack_sample(ptr, idx, limit, seed, out_ptr, out)
    return out_ptr, out


@compiled
def _pack_linked(ptr, idx, size, minimum, out_ptr, out):
    filled = 0
    for row in range(ptr.size - 1):
        begin = filled
        for n in range(ptr[row], ptr[row + 1]):
            if size[idx[n]] > 1:
                out[filled] = idx[n]
                filled += 1
        if filled - begin < minimum:
            filled = begin
        out_ptr[row + 1] = filled
    return filled


def prune(
    ptr: np.ndarray, idx: np.ndarray, size: np.ndarray, minimum: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Drop the columns of one edge, and the rows that are then below `minimum` edges.

    `size` i64[columns]: edges of each column. None where this would drop less than it costs.
    """
    rows = np.diff(ptr)
    droppable = np.count_nonzero(size == 1) + int(rows[rows < minimum].sum())
    if droppable * 50 <= len(idx):
        return None
    out_ptr, out = np.zeros_like(ptr), np.empty_like(idx)
    filled = _pack_linked(ptr, idx, size, minimum, out_ptr, out)
    return out_ptr, out[:filled].copy()
