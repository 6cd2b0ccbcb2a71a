"""Many strings without an object for each: columns of Arrow, in memory or mapped from a file."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

T = TypeVar("T")
BATCH = 1 << 15  # strings that are Python's at a time


def batched(values: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """The values in order, `size` at a time; the last list may be shorter."""
    values = iter(values)
    while batch := list(itertools.islice(values, size)):
        yield batch


class Strings(Sequence):
    """A sequence of strings or None.

    A string is made when it is asked for; to go through all of them, `batches` is the quick way.
    """

    def __init__(self, arrays: Iterable[pa.Array]):
        """`arrays`: of strings, one after the other."""
        self._arrays = [array for array in arrays if len(array)]
        self._ends = list(itertools.accumulate(len(array) for array in self._arrays))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: int) -> str | None:
        place = int(place)
        if not 0 <= place < len(self):
            raise IndexError(place)
        part = bisect.bisect_right(self._ends, place)
        array = self._arrays[part]
        return array[place - self._ends[part] + len(array)].as_py()

    def __iter__(self) -> Iterator[str | None]:
        for batch in self.batches():
            yield from batch

    def batches(self, size: int = BATCH) -> Iterator[list[str | None]]:
        """All of them in order, at most `size` at a time."""
        for array in self._arrays:
            for start in range(0, len(array), size):
                yield array.slice(start, size).to_pylist()

    @property
    def column(self) -> pa.ChunkedArray:
        """large_string, without a copy where the arrays are of that type."""
        return pa.chunked_array([array.cast(pa.large_string()) for array in self._arrays], pa.large_string())


class StringFile:
    """Strings that are written to a file batch by batch, then mapped."""

    def __init__(self, path: Path):
        self._path, self._schema = path, pa.schema([("value", pa.large_string())])
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def write(self, values: list[str | None] | pa.Array) -> None:
        """Append them."""
        array = pa.array(values, pa.large_string()) if isinstance(values, list) else values
        self._writer.write_batch(pa.record_batch([array.cast(pa.large_string())], schema=self._schema))

    def close(self) -> Strings:
        """All of them, mapped; the file must live as long."""
        self._writer.close()
        with pa.memory_map(str(self._path)) as source:
            reader = pa.ipc.open_file(source)
            return Strings(reader.get_batch(k).column(0) for k in range(reader.num_record_batches))


def mapped(arrays: Iterable[pa.Array], path: Path) -> Strings:
    """Strings of arrays that are made one by one, mapped from the file `path`."""
    file = StringFile(path)
    for array in arrays:
        file.write(array)
    return file.close()


def distinct(strings: Strings, path: Path) -> tuple[Strings, np.ndarray]:
    """The distinct ones in order of appearance, mapped from the file `path`, and each one's place among them,
    i32 [N]. None does not occur."""
    encoded = strings.column.dictionary_encode()
    codes = np.concatenate([np.zeros(0, np.int32), *(c.indices.to_numpy() for c in encoded.chunks)])
    file = StringFile(path)
    if encoded.num_chunks:
        dictionary = encoded.chunks[-1].dictionary
        for start in range(0, len(dictionary), BATCH):
            file.write(dictionary.slice(start, BATCH))
    return file.close(), codes
