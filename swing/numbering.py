"""Ids to codes while they are read: 0, 1, ... in order of appearance, ranked by id at the end."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from swing.compiled import compiled, prefetch
from swing.config import SwingError
from swing.csr import LARGEST

AHEAD = 16  # memory is prefetched this many ids before it is used


@compiled
def _slot(value, bits):
    """Fibonacci hashing: the upper bits of the product with 2^64 / golden ratio."""
    return np.int64(np.uint64(value) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - bits))


@compiled
def _number(values, table, bits, count, out):
    """Write the codes of `values` to `out`, until the table is half full. Returns (done, count)."""
    last = (1 << bits) - 1
    for n in range(values.size):
        prefetch(table, 2 * _slot(values[min(n + AHEAD, values.size - 1)], bits))
        at = _slot(values[n], bits)
        while table[2 * at + 1] >= 0 and table[2 * at] != values[n]:
            at = (at + 1) & last
        if table[2 * at + 1] < 0:
            if 2 * count > last:
                return n, count
            table[2 * at] = values[n]
            table[2 * at + 1] = count
            count += 1
        out[n] = table[2 * at + 1]
    return values.size, count


def _empty(bits: int) -> np.ndarray:
    """An empty table: i64[2 * slots], value (or hash) and code alternate; code -1 marks a free slot."""
    return np.full(2 << bits, -1, np.int64)


class Integers:
    """Numbers integers by a hash table with open addressing: 32 to 64 bytes an id."""

    def __init__(self, kind: pl.DataType):
        self.kind, self.count, self.bits = kind, 0, 16
        self._table = _empty(self.bits)

    def expression(self, column: pl.Expr) -> pl.Expr:
        """The expression that the query must select."""
        return column

    def __call__(self, values: pl.Series) -> np.ndarray:
        numbers = values.to_numpy().astype(np.int64, copy=False)
        out = np.empty(len(numbers), np.uint32)
        numbered = 0
        while True:
            step, self.count = _number(numbers[numbered:], self._table, self.bits, self.count, out[numbered:])
            numbered += step
            if numbered == len(numbers):
                return out
            known = self._values()
            self.bits += 2
            self._table = _empty(self.bits)
            _number(known, self._table, self.bits, 0, np.empty(len(known), np.uint32))

    def ids(self) -> pl.Series:
        """All ids by code."""
        values = self._values()
        return pl.Series(values.astype(np.uint64)) if self.kind == pl.UInt64 else pl.Series(values)

    def _values(self) -> np.ndarray:
        slots = self._table.reshape(-1, 2)
        used = slots[slots[:, 1] >= 0]
        values = np.empty(self.count, np.int64)
        values[used[:, 1]] = used[:, 0]
        return values


@compiled
def _hash_strings(offsets, data, out):
    """FNV-1a (Fowler, Noll, Vo) of each string, its bits mixed once more."""
    for n in range(out.size):
        value = np.uint64(0xCBF29CE484222325)
        for at in range(offsets[n], offsets[n + 1]):
            value = (value ^ np.uint64(data[at])) * np.uint64(0x100000001B3)
        out[n] = np.int64(value ^ (value >> np.uint64(32)))


@compiled
def _same(a, a_begin, a_end, b, b_begin, b_end):
    if a_end - a_begin != b_end - b_begin:
        return False
    for n in range(a_end - a_begin):
        if a[a_begin + n] != b[b_begin + n]:
            return False
    return True


@compiled
def _number_strings(hashes, offsets, data, begin, table, bits, count, known_offsets, known, out):
    """As `_number` from string `begin` on, until the table or the room for known strings is full."""
    last = (1 << bits) - 1
    for n in range(begin, hashes.size):
        # Each place in memory leads to the next: the slot, where its string begins, the string.
        prefetch(table, 2 * _slot(hashes[min(n + 3 * AHEAD, hashes.size - 1)], bits))
        code = table[2 * _slot(hashes[min(n + 2 * AHEAD, hashes.size - 1)], bits) + 1]
        prefetch(known_offsets, max(code, 0))
        code = table[2 * _slot(hashes[min(n + AHEAD, hashes.size - 1)], bits) + 1]
        prefetch(known, known_offsets[max(code, 0)])
        at = _slot(hashes[n], bits)
        while table[2 * at + 1] >= 0:
            code = table[2 * at + 1]
            if table[2 * at] == hashes[n] and _same(
                data, offsets[n], offsets[n + 1], known, known_offsets[code], known_offsets[code + 1]
            ):
                break
            at = (at + 1) & last
        if table[2 * at + 1] < 0:
            end = known_offsets[count] + offsets[n + 1] - offsets[n]
            if 2 * count > last or end > known.size:
                return n, count
            known[known_offsets[count] : end] = data[offsets[n] : offsets[n + 1]]
            table[2 * at] = hashes[n]
            table[2 * at + 1] = count
            count += 1
            known_offsets[count] = end
        out[n] = table[2 * at + 1]
    return hashes.size, count


@compiled
def _rehash(table, larger, bits):
    last = (1 << bits) - 1
    for slot in range(table.size // 2):
        if table[2 * slot + 1] >= 0:
            at = _slot(table[2 * slot], bits)
            while larger[2 * at + 1] >= 0:
                at = (at + 1) & last
            larger[2 * at] = table[2 * slot]
            larger[2 * at + 1] = table[2 * slot + 1]


class Strings:
    """Numbers strings by a hash table with open addressing: each string's bytes and 40 to 160 more."""

    def __init__(self, kind: pl.DataType):
        self.kind, self.count, self.bits = pl.String, 0, 16
        self._table = _empty(self.bits)
        self._offsets, self._known = np.zeros((1 << self.bits) + 2, np.int64), np.empty(1 << 20, np.uint8)

    def expression(self, column: pl.Expr) -> pl.Expr:
        return column.cast(pl.String)

    def __call__(self, values: pl.Series) -> np.ndarray:
        out = np.empty(len(values), np.uint32)
        array = values.to_arrow(compat_level=pl.CompatLevel.oldest())  # large_string: offsets and bytes
        _, offsets, data = array.buffers()
        offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(data or b"", np.uint8)
        hashes = np.empty(len(values), np.int64)
        _hash_strings(offsets, data, hashes)
        numbered = 0
        while True:
            numbered, self.count = _number_strings(
                hashes,
                offsets,
                data,
                numbered,
                self._table,
                self.bits,
                self.count,
                self._offsets,
                self._known,
                out,
            )
            if numbered == len(values):
                return out
            self._grow(int(offsets[numbered + 1] - offsets[numbered]))

    def ids(self) -> pl.Series:
        end = self._offsets[self.count]
        buffers = [None, pa.py_buffer(self._offsets[: self.count + 1]), pa.py_buffer(self._known[:end])]
        return pl.Series(pa.Array.from_buffers(pa.large_string(), self.count, buffers))

    def _grow(self, room: int) -> None:
        if 2 * self.count > (1 << self.bits) - 1:
            self.bits += 2
            larger = _empty(self.bits)
            _rehash(self._table, larger, self.bits)
            self._table = larger
            self._offsets.resize((1 << self.bits) + 2, refcheck=False)
        else:
            self._known.resize(2 * len(self._known) + room, refcheck=False)


def numbering(kind: pl.DataType) -> Integers | Strings | None:
    """A new numbering for ids of type `kind`; None for a type that cannot be an id."""
    if kind in (pl.Categorical, pl.Enum, pl.String, pl.Null):
        return Strings(kind)
    return Integers(kind) if kind.is_integer() and kind not in (pl.Int128, pl.UInt128) else None


def ranked(numbers: Integers | Strings, name: str) -> tuple[pl.Series, np.ndarray]:
    """The ids, sorted, and the rank of each code among them, i32[ids].

    Raises SwingError for more ids than 32-bit codes can hold.
    """
    ids = numbers.ids().cast(numbers.kind).alias(name)
    if len(ids) > LARGEST:
        raise SwingError(f"column '{name}' has more than {LARGEST} distinct ids: codes have 32 bits")
    order = ids.arg_sort().to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return ids.gather(order), rank
