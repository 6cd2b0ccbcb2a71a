"""Reading and checking the Parquet parts of one split.

The unit of reading is a *chunk*: one Parquet row group (one part, as the prepare stage writes them). Its
columns become tensors over Arrow's own memory, without a copy; only the ragged positives are laid out anew.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dlrrec_torchrec import schema
from dlrrec_torchrec.schema import DataError


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One row group: `rows` rows of `path` from row `first` on."""

    path: Path
    group: int
    first: int
    rows: int


class ShardReader:
    """The chunks of `shards_dir`/`split`.

    Args:
        shards_dir: what the prepare stage wrote.
        split: train, val or test.
        modalities: vector columns to read.
        positives: columns of the padded positives.

    Raises:
        DataError: no shards, an unknown split or modality, a part with a column missing or of another type.
    """

    def __init__(
        self, shards_dir: str | os.PathLike, split: str, modalities: list[str], positives: int
    ) -> None:
        if split not in schema.SPLITS:
            raise DataError(f"unknown split '{split}' (known: {', '.join(schema.SPLITS)})")
        facts = schema.Manifest.read(shards_dir).facts
        for name in modalities:
            if name not in facts["modalities"]:
                raise DataError(
                    f"{shards_dir}: modality '{name}' is not in these shards (they hold: "
                    f"{', '.join(facts['modalities'])}); change model.modalities or run prepare again with it"
                )
        self.modalities = list(modalities)
        self.positives = positives
        self.users, self.items = facts["users"], facts["items"]
        self.schema = schema.shard_schema(facts["dense_width"], modalities)
        self.chunks: list[Chunk] = []
        for path in schema.part_files(Path(shards_dir) / split):
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: not a readable Parquet file ({error}); run prepare again") from None
            schema.check_schema(metadata.schema.to_arrow_schema(), self.schema, path)
            first = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if rows:
                    self.chunks.append(Chunk(path, group, first, rows))
                first += rows

    def check(self, rank: int = 0, world_size: int = 1) -> None:
        """Read every column but the vectors and check each value: for use before training.

        Each of `world_size` ranks reads its share of the chunks.

        Raises DataError naming file, column and row of the first label that is not 0 or 1, dense value that
        is not finite, or code outside of its table.
        """
        names = [name for name in self.schema.names if name not in schema.MODALITIES]
        for chunk in self.chunks[rank::world_size]:
            self._columns(chunk, names)

    def read(self, index: int) -> dict[str, Tensor]:
        """The columns of chunk `index`, one row of each tensor for a row of the chunk.

        Returns:
            label f32 [n]; dense f32 [n, D]; category i32 [n, 11]; user, item i32 [n]; user_positives,
            item_positives i32 [n, P] padded with -1; each modality f16 [n, 384].

        Raises:
            DataError: as `check`, and for a vector that is not finite.
        """
        return self._columns(self.chunks[index], [name for name in self.schema.names if name != "rating"])

    def _columns(self, chunk: Chunk, names: list[str]) -> dict[str, Tensor]:
        try:
            table = pq.ParquetFile(chunk.path).read_row_group(
                chunk.group, columns=names, use_threads=get_worker_info() is None
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{chunk.path}: damaged Parquet file ({error}); run prepare again") from None
        columns = {}
        for name in names:
            array = table[name].cast(self.schema.field(name).type).combine_chunks()
            if isinstance(array, pa.ChunkedArray):  # no chunk at all, or one that combine_chunks left wrapped
                array = array.chunk(0)
            if array.null_count:
                self._refuse(chunk, name, array.is_null().to_numpy(zero_copy_only=False), "is null")
            if pa.types.is_list(array.type):
                columns[name] = self._positives(chunk, name, array)
            else:
                columns[name] = self._values(chunk, name, array)
        return columns

    def _values(self, chunk: Chunk, name: str, array: pa.Array) -> Tensor:
        width = array.type.list_size if pa.types.is_fixed_size_list(array.type) else 0
        flat = array.flatten() if width else array
        if flat.null_count:
            rows = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, width).any(1)
            self._refuse(chunk, name, rows, "holds a null")
        values = flat.to_numpy()  # a view
        limits: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
            "label": (lambda x: (x != 0) & (x != 1), "is neither 0 nor 1"),
            "category": (
                lambda x: (x < 0) | (x > schema.PAD_CATEGORY),
                f"is outside 0..{schema.PAD_CATEGORY}",
            ),
            "user": (lambda x: (x < 0) | (x >= self.users), f"is outside 0..{self.users - 1} (entity table)"),
            "item": (lambda x: (x < 0) | (x >= self.items), f"is outside 0..{self.items - 1} (entity table)"),
        }
        wrong, why = limits.get(name, (_not_finite, "is not a finite number"))
        bad = wrong(values)
        if bad.any():
            self._refuse(chunk, name, bad.reshape(-1, max(width, 1)).any(1), why)
        tensor = torch.from_dlpack(flat)  # Arrow's memory, kept alive by the tensor
        return tensor.view(-1, width) if width else tensor

    def _positives(self, chunk: Chunk, name: str, array: pa.ListArray) -> Tensor:
        """i32 [n, P]: the first P codes of each list, padded with -1."""
        offsets = array.offsets.to_numpy()
        codes = array.values
        if codes.null_count:
            codes = codes.fill_null(-1)
        codes = codes.to_numpy()
        limit = self.users if name == "user_positives" else self.items
        bad = np.flatnonzero((codes < 0) | (codes >= limit))
        bad = bad[(bad >= offsets[0]) & (bad < offsets[-1])]
        if len(bad):
            rows = np.zeros(len(array), bool)
            rows[np.searchsorted(offsets, bad[0], side="right") - 1] = True
            self._refuse(chunk, name, rows, f"holds a code outside 0..{limit - 1} (entity table)")
        slots = np.arange(self.positives)
        used = slots < np.diff(offsets)[:, None]
        padded = np.full(used.shape, -1, np.int32)
        padded[used] = codes[(offsets[:-1, None] + slots)[used]]
        return torch.from_numpy(padded)

    def _refuse(self, chunk: Chunk, name: str, bad_rows: np.ndarray, why: str) -> None:
        row = chunk.first + int(np.flatnonzero(bad_rows)[0])
        raise DataError(f"{chunk.path}: column '{name}', row {row}: value {why}; run prepare again")


def _not_finite(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float16:  # by the bits: numpy's isfinite is slow on half precision
        return (values.view(np.uint16) & 0x7C00) == 0x7C00
    return ~np.isfinite(values)
