"""Who reviewed what with which residual: lists by user and by item, bounded, and who is similar by them."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlrrec_torchrec.features.neighbour_kernels import similar_lists

SEED = 0  # of the sample of long lists


@dataclasses.dataclass(frozen=True)
class Lists:
    """For each row of a sparse matrix its entries, ascending.

    Attributes:
        offsets: int64 [R + 1]; columns: int32 [E]; values: float32 [E].
    """

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.offsets, self.columns, self.values


def make_lists(row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int, most: int) -> Lists:
    """The entries (row, column, value), each [N], by row; of a longer list a random sample of `most`."""
    order = np.lexsort((column, row))
    sizes = np.bincount(row, minlength=rows)
    if len(sizes) and sizes.max(initial=0) > most:
        key = np.random.default_rng(SEED).random(len(row))
        by_key = np.lexsort((key, row))
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = np.zeros(len(row), bool)
        kept[by_key[place < most]] = True
        order = order[kept[order]]
        sizes = np.minimum(sizes, most)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Lists(offsets, column[order].astype(np.int32), value[order].astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Similar:
    """For each entity those that share most with it, ascending by code: see `similar_lists`.

    Attributes:
        number: int32 [E]; who: int32 [E, most]; cosine, correlation: float32 [E, most].
    """

    number: np.ndarray
    who: np.ndarray
    cosine: np.ndarray
    correlation: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.number, self.who, self.cosine, self.correlation


def make_similar(of_entity: Lists, of_others: Lists, degree: np.ndarray, most: int) -> Similar:
    """Who is similar among the entities with the lists `of_entity`; `of_others`: the same by the other side.

    Args:
        degree: int [E], true numbers of entries, of which the lists may hold a sample.
    """
    found = similar_lists(
        *of_others.arrays,
        *of_entity.arrays,
        np.maximum(degree, 1).astype(np.float32),
        most,
    )
    width = max(int(found[0].max(initial=0)), 1)
    return Similar(found[0], *(np.ascontiguousarray(table[:, :width]) for table in found[1:]))
