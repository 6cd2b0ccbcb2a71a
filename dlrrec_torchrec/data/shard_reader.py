"""Reading and checking the Parquet parts of one split.

The unit of reading is a *chunk*: one Parquet row group (one part, as the prepare stage writes them). Its
vectors stay in Arrow's own memory, without a copy; the other columns are joined to rows.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import get_worker_info

from dlrrec_torchrec.data.fields import Fields
from dlrrec_torchrec.store import packed, schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files
from dlrrec_torchrec.store.modality import Modality
from dlrrec_torchrec.store.shard_facts import ShardFacts


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
        modalities: whose vectors to read.
        positives: columns of the padded positives, at most; with 0 they are not read.

    Attributes:
        columns: that `read` reads.
        fields: how a row without its vectors is laid out; P positives are at most what the shards hold.

    Raises:
        DataError: no shards, an unknown split or modality, a part with a column missing or of another type.
    """

    def __init__(
        self, shards_dir: str | os.PathLike, split: str, modalities: Sequence[Modality], positives: int
    ) -> None:
        if split not in schema.SPLITS:
            raise DataError(f"unknown split '{split}' (known: {', '.join(schema.SPLITS)})")
        facts = ShardFacts.read(shards_dir)
        for modality in modalities:
            if modality.name not in facts.in_rows:
                raise DataError(
                    f"{shards_dir}: modality '{modality.name}' is not in these shards' rows (they hold: "
                    f"{', '.join(facts.in_rows) or 'none'}); set model.vectors=table or change "
                    "model.modalities, or run prepare again with it"
                )
        self.modalities = [modality.name for modality in modalities]
        self.users, self.items = facts.users, facts.items
        self.schema = facts.row_schema(modalities)
        self.positives = min(positives, facts.positives)
        unread = [] if self.positives else ["user_positives", "item_positives"]
        types = facts.category_types
        self.fields = Fields(facts.dense_width, facts.category_slots, types, self.positives)
        self.columns = [name for name in self.schema.names if name not in unread]
        stored = packed.stored_schema(self.schema)
        user, item = self.users - 1, self.items - 1
        self._limits = {
            "category": (0, types, f"is outside 0..{types}"),
            "user": (0, user, f"is outside 0..{user} (entity table)"),
            "item": (0, item, f"is outside 0..{item} (entity table)"),
            "user_positives": (-1, user, f"is outside -1..{user} (entity table; -1 is padding)"),
            "item_positives": (-1, item, f"is outside -1..{item} (entity table; -1 is padding)"),
        }
        self.chunks: list[Chunk] = []
        for path in part_files(Path(shards_dir) / split):
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{path}: not a readable Parquet file ({error}); run prepare again") from None
            check_schema(metadata.schema.to_arrow_schema(), stored, path)
            first = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if rows:
                    self.chunks.append(Chunk(path, group, first, rows))
                first += rows

    def check(self, rank: int = 0, world_size: int = 1) -> None:
        """Read every column except the vectors and check each value: for use before training.

        Each of `world_size` ranks reads its share of the chunks.

        Raises DataError naming file, column and row of the first label that is not 0 or 1, dense value that
        is not finite, or code outside its table.
        """
        names = [name for name in self.schema.names if name not in self.modalities]
        for chunk in self.chunks[rank::world_size]:
            self._columns(chunk, names)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Chunk `index`, one row of each array for a row of the chunk.

        Returns:
            "fields": everything except the vectors, i32 [n, W] (see `fields`); each modality: f16 [n, V], a
            view of Arrow's memory.

        Raises:
            DataError: as `check`, and for a vector that is not finite.
        """
        chunk = self.chunks[index]
        columns = self._columns(chunk, self.columns)
        vectors = {name: columns[name] for name in self.modalities}
        return {"fields": self.fields.join(columns, chunk.rows)} | vectors

    def _columns(self, chunk: Chunk, names: list[str]) -> dict[str, np.ndarray]:
        try:
            file = pq.ParquetFile(chunk.path)
            table = file.read_row_group(chunk.group, columns=names, use_threads=get_worker_info() is None)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{chunk.path}: damaged Parquet file ({error}); run prepare again") from None
        columns = {}
        for name in names:
            column = table[name]
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            if array.null_count:
                self._refuse(chunk, name, array.is_null().to_numpy(zero_copy_only=False), "is null")
            kind = self.schema.field(name).type
            width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            if width:
                array = _numbers(array, kind)
            # A view that keeps Arrow's memory alive. (Arrow's own is marked read-only, at which torch warns.)
            values = torch.from_dlpack(array).numpy()
            self._check(chunk, name, values, width)
            columns[name] = values.reshape(-1, width) if width else values
        return columns

    def _check(self, chunk: Chunk, name: str, values: np.ndarray, width: int) -> None:
        """Refuse values [n · width] that the column cannot hold; to see that all are fine is fast."""
        if name == "label":
            wrong, why = (values != 0) & (values != 1), "is neither 0 nor 1"
            if not wrong.any():
                return
        elif values.dtype == np.int32:
            least, most, why = self._limits[name]
            if not len(values) or (values.min() >= least and values.max() <= most):
                return
            wrong = (values < least) | (values > most)
        else:
            if packed.all_finite(values):
                return
            wrong, why = ~np.isfinite(values), "is not a finite number"
        self._refuse(chunk, name, wrong.reshape(-1, max(width, 1)).any(1), why)

    def _refuse(self, chunk: Chunk, name: str, bad_rows: np.ndarray, why: str) -> None:
        row = chunk.first + int(np.flatnonzero(bad_rows)[0])
        raise DataError(f"{chunk.path}: column '{name}', row {row}: value {why}; run prepare again")


def _numbers(rows: pa.FixedSizeBinaryArray, kind: pa.FixedSizeListType) -> pa.Array:
    """The numbers of packed rows one after the other, a view of them."""
    width = kind.list_size
    return pa.Array.from_buffers(
        kind.value_type, len(rows) * width, [None, rows.buffers()[1]], 0, rows.offset * width
    )
