"""Shards -> batches: the same global batches for every number of ranks and workers.

The n rows of the split, in the epoch's order (see `order`), are cut into K = ceil(n / global batch size)
global batches of equal size, give or take one row: there is no ragged last batch, and no row is dropped.
Rank r of R takes rows [m·r/R, m·(r+1)/R) of a global batch of m rows, filled up with a row of padding where
others have one row more: all ranks have the same number of batches, and of one size, so that no collective
waits for a rank that has finished or differs from it.
"""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.order import WINDOW_ROWS, EpochOrder
from dlrrec_torchrec.data.shard_reader import ShardReader
from dlrrec_torchrec.store.errors import DataError


class ShardDataset(Dataset):
    """`dataset[epoch, g]` is this rank's share of global batch g of an epoch."""

    def __init__(
        self,
        reader: ShardReader,
        batch_size: int,
        spec: BatchSpec,
        rank: int,
        world_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        window_rows: int,
    ) -> None:
        self.reader, self._spec = reader, spec
        self._rank, self._world, self._seed, self._shuffle = rank, world_size, seed, shuffle
        self._window_rows = window_rows
        self._sizes = [chunk.rows for chunk in reader.chunks]
        global_size = batch_size * world_size
        rows = sum(self._sizes)
        self.batches = rows // global_size if drop_last else -(-rows // global_size)
        self.rows = self.batches * global_size if drop_last else rows
        self._order: tuple[int, EpochOrder] | None = None
        self._cache: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._cached_rows = 0

    def __len__(self) -> int:
        return self.batches

    def check(self) -> None:
        """Check this rank's share of the files (see `ShardReader.check`)."""
        self.reader.check(self._rank, self._world)

    def forget(self) -> None:
        """Keep no chunks, as if nothing had been read yet (workers have chunks of their own)."""
        self._cache.clear()
        self._cached_rows = 0

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, number = key
        if self._order is None or self._order[0] != epoch:
            order = EpochOrder(self._sizes, self._seed, epoch, self._shuffle, self._window_rows)
            self._order = (epoch, order)
        low, high = (self.rows * g // self.batches for g in (number, number + 1))
        places = self._order[1].places(low, high)
        share = slice(*((high - low) * r // self._world for r in (self._rank, self._rank + 1)))
        size = -(-(high - low) // self._world)
        batch = self._batch(self._order[1].pieces(places[share]), size)
        return self._spec.complete(batch, (epoch - 1) * self.batches + number)

    def _batch(self, chunks: list[tuple[int, np.ndarray]], size: int) -> Batch:
        """These rows of chunks, and as much padding as makes them `size`."""
        # Of padding alone: it needs the columns' types.
        chunks = chunks or [(0, np.empty(0, np.int64))]
        pieces = [(self._columns(chunk), rows) for chunk, rows in chunks]
        vectors = {name: _gather(pieces, name, size, 0) for name in self.reader.modalities}
        fields = self.reader.fields
        rows = fields.split(_gather(pieces, "fields", size, fields.padding))
        columns = {name: torch.from_numpy(values) for name, values in rows.items()}
        category, padding = columns.pop("category"), self._spec.facts.category_types
        return Batch(
            sparse=make_sparse(category, columns["user"], columns["item"], self._spec.sparse, padding),
            vectors={name: torch.from_numpy(values) for name, values in vectors.items()},
            **columns,
        )

    def _columns(self, chunk: int) -> dict[str, np.ndarray]:
        """A chunk's columns, read or from the cache (the least recently used chunks make room)."""
        if chunk in self._cache:
            self._cache.move_to_end(chunk)
        else:
            self._cache[chunk] = self.reader.read(chunk)
            self._cached_rows += self._sizes[chunk]
            while self._cached_rows > 2 * self._window_rows and len(self._cache) > 1:
                oldest, _ = self._cache.popitem(last=False)
                self._cached_rows -= self._sizes[oldest]
        return self._cache[chunk]


def _gather(
    pieces: list[tuple[dict[str, np.ndarray], np.ndarray]], name: str, size: int, padding: np.ndarray | int
) -> np.ndarray:
    """`size` rows, those of all pieces and then padding: a view of one run of one chunk, else one copy."""
    columns, rows = pieces[0]
    first = columns[name]
    if len(rows) == size and rows[-1] - rows[0] == size - 1:
        return first[rows[0] : rows[-1] + 1]
    out, start = np.empty((size, first.shape[1]), first.dtype), 0
    for columns, rows in pieces:
        end = start + len(rows)
        columns[name].take(rows, 0, out[start:end], "clip")  # otherwise numpy would copy once more
        start = end
    out[start:] = padding
    return out


class _Epoch:
    """Sampler: the keys of one epoch's batches. Workers learn the epoch from the keys."""

    def __init__(self, batches: int) -> None:
        self.epoch, self.batches = 0, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, number) for number in range(self.batches)])

    def __len__(self) -> int:
        return self.batches


class ShardLoader:
    """Iterating yields this rank's batches of one epoch; `len` is their number, the same on every rank."""

    def __init__(self, dataset: ShardDataset, workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        self._epoch = _Epoch(len(dataset))
        self._loader = DataLoader(
            dataset,
            batch_size=None,  # the data set makes whole batches
            sampler=self._epoch,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which with the seed decides the order, for the iterations that follow."""
        self._epoch.epoch = epoch

    def check(self) -> None:
        """Check every value of this rank's share of the files, all except the vectors, before training.

        Raises DataError naming file, column and row (see `ShardReader.check`).
        """
        self.dataset.check()

    @property
    def rows(self) -> int:
        """Rows of an epoch over all ranks."""
        return self.dataset.rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        if not self._loader.num_workers:
            return iter(self._loader)
        # A worker must not collect garbage that it has inherited: a process group of a training that is over
        # would wait for threads that only this process has.
        gc.freeze()
        try:
            return iter(self._loader)
        finally:
            gc.unfreeze()


def make_loader(
    shards_dir: str | os.PathLike,
    split: str,
    batch_size: int,
    spec: BatchSpec,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    shuffle: bool = False,
    workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
    window_rows: int = WINDOW_ROWS,
) -> ShardLoader:
    """A loader of one split's batches for one rank.

    Args:
        shards_dir: what the prepare stage wrote.
        split: train, val or test.
        batch_size: rows of a batch on each rank, at most: batches of equal size fill the epoch. With
            `drop_last` every batch has exactly this many, and the rest of the epoch's order is left out.
        spec: what batches hold. They are completed for their step; step 0 is the first of epoch 1.
        rank, world_size: which share of each global batch.
        seed, shuffle: what decides the order of each epoch; without `shuffle`, the order of the files.
        workers: processes that make batches (batch g by worker g mod workers); 0: this process. The order is
            the same. Each keeps its own two windows of rows.
        pin_memory: put batches into page-locked memory, for a GPU.
        window_rows: rows shuffled together.

    Raises:
        DataError: a missing split or modality, or no shards; a part of the wrong schema; while
            iterating, a value that is out of range.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size}: must be at least 1 for each rank")
    reader = ShardReader(shards_dir, split, spec.in_rows, spec.positives)
    dataset = ShardDataset(reader, batch_size, spec, rank, world_size, seed, shuffle, drop_last, window_rows)
    return ShardLoader(dataset, workers, pin_memory)
