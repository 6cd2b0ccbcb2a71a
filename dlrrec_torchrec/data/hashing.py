"""The integer hash of ids and random draws: stateless, the same on every machine and device."""

from __future__ import annotations

import torch
from torch import Tensor


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser (Steele, Lea, Flood 2014) of i64 values: a bijection of 64 bits.

    z = x + 0x9E3779B97F4A7C15
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB
    z ^ z >> 31                              all modulo 2^64; here in wrapping signed arithmetic
    """
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shift(x, 31)


def hash63(ids: Tensor) -> Tensor:
    """The low 63 bits of `mix64`, not negative."""
    return mix64(ids) & torch.iinfo(torch.int64).max


def hash_rows(ids: Tensor, rows: int) -> Tensor:
    """Where ids (i64 >= 0) are in a table of `rows` rows: hash63(id) modulo rows."""
    return hash63(ids) % rows


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
