"""Features to Parquet, chunk by chunk: rows of the splits and the entity tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.features.dense import dense_matrix
from dlrrec_torchrec.features.left_out import CHUNK_ROWS
from dlrrec_torchrec.prepare.sides import Features, Side
from dlrrec_torchrec.store import packed
from dlrrec_torchrec.store.files import parquet_options
from dlrrec_torchrec.store.packed import lists

SHUFFLE_SEED = 0  # of the training rows' order, which is the same for every run over the same number of rows


def write_parts(
    folder: Path,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make: Callable[[int, int], pa.Table],
    advance: Callable[[int], None],
) -> None:
    """Write rows 0..num_rows as part-00000.parquet, ... of `rows_per_part` rows; one empty part for no rows.

    Args:
        make: (start, stop) -> a table of these rows; called for at most CHUNK_ROWS at a time, in order.
        advance: told the number of rows after each chunk.
    """
    folder.mkdir(parents=True)
    stored = packed.stored_schema(schema)
    for number, first in enumerate(range(0, max(num_rows, 1), rows_per_part)):
        last = min(first + rows_per_part, num_rows)
        path = folder / f"part-{number:05d}.parquet"
        with pq.ParquetWriter(path, stored, **parquet_options(stored)) as writer:
            for start in range(first, last, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, last)
                writer.write_table(packed.pack(make(start, stop)))
                advance(stop - start)


class Coverage:
    """Shares of a split's rows that have each of the `names`' vectors and a positive on each side."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._rows = 0
        self._present: dict[str, int] = {}

    def add(self, user: Features, item: Features) -> None:
        vectors = user.vectors | item.vectors
        present = {name: vectors[name].any(axis=1) for name in self._names}
        present["user_positives"] = user.positives.value_lengths().to_numpy() > 0
        present["item_positives"] = item.positives.value_lengths().to_numpy() > 0
        self._rows += len(user.code)
        for name, has in present.items():
            self._present[name] = self._present.get(name, 0) + int(has.sum())

    def shares(self) -> dict[str, float]:
        return {name: round(count / max(self._rows, 1), 4) for name, count in self._present.items()}


def rows_table(
    schema: pa.Schema,
    label: np.ndarray,
    rating: np.ndarray,
    user: Features,
    item: Features,
    dense: list[str],
    rating_range: tuple[float, float],
    affinity: np.ndarray,
) -> pa.Table:
    """Rows of a shard (schema.shard_schema) from the features of their users and items.

    `affinity`: float32 [n, F], the columns after the dense features.
    """
    features = dense_matrix(dense, user.count, item.count, user.mean, item.mean, item.price_tag, rating_range)
    columns = {
        "label": label,
        "rating": rating,
        "dense": lists(np.concatenate([features, affinity], axis=1)),
        "category": lists(item.category),
        "user": user.code,
        "item": item.code,
    }
    for name, side in (("user_positives", user), ("item_positives", item)):
        if name in schema.names:
            columns[name] = lists(_padded(side.positives, schema.field(name).type.list_size))
    vectors = user.vectors | item.vectors
    columns |= {name: lists(vectors[name]) for name in schema.names if name in vectors}
    return pa.table([pa.array(columns[name]) for name in schema.names], schema=schema)


def entity_rows(
    side: Side, ids: pa.Array, schema: pa.Schema, **others: pa.Array
) -> Callable[[int, int], pa.Table]:
    """What `write_parts` calls for rows of an entity table with the columns of `schema`.

    `others`: further columns, of all entities.
    """

    def make(start: int, stop: int) -> pa.Table:
        features = side.of_entities(np.arange(start, stop, dtype=np.int32))
        columns = {
            "code": features.code,
            "id": ids.slice(start, stop - start),
            "count": features.count.astype(np.int32),
            "mean_rating": features.mean,
            "positives": features.positives,
            **{m: lists(v) for m, v in features.vectors.items()},
        }
        columns |= {name: column.slice(start, stop - start) for name, column in others.items()}
        if side.labels is not None:
            columns |= {
                "price_tag": pa.array(features.price_tag, pa.string()),
                "category": lists(features.category),
            }
        return pa.table([pa.array(columns[name]) for name in schema.names], schema=schema)

    return make


def training_order(num_rows: int) -> np.ndarray:
    """int64 [N] pseudo-random order of the training rows; depends on their number alone."""
    return np.random.default_rng(SHUFFLE_SEED).permutation(num_rows)


def _padded(codes: pa.ListArray, width: int) -> np.ndarray:
    """int32 [N, width] of lists of at most `width` codes, padded with -1."""
    out = np.full((len(codes), width), -1, np.int32)
    out[np.arange(width) < codes.value_lengths().to_numpy()[:, None]] = codes.flatten().to_numpy()
    return out
