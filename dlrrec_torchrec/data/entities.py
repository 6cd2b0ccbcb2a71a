"""The entity tables beside the shards: what serving and the contrastive corpus know of users and items."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.features.affinity import Affinity
from dlrrec_torchrec.features.dense import dense_matrix
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files, read_table
from dlrrec_torchrec.store.modality import SIDES, Modality
from dlrrec_torchrec.store.schema import AFFINITY, with_vectors
from dlrrec_torchrec.store.shard_facts import ShardFacts


@dataclasses.dataclass
class Users:
    """Entity i has code i.

    Attributes:
        ids: the source's ids, [N].
        count: i32 [N], training reviews.
        mean_rating: f32 [N], NaN without a review.
        positives: i64 [N, P] codes of the SWING neighbours, best first, padded with -1.
    """

    ids: list[str]
    count: np.ndarray
    mean_rating: np.ndarray
    positives: np.ndarray

    @functools.cached_property
    def codes(self) -> dict[str, int]:
        """id -> code."""
        return {name: code for code, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass
class Items(Users):
    """Items, further described.

    Attributes:
        titles: [N], None where the source has none.
        price_tag: str [N], from PRICE_TAGS.
        category: i32 [N, slots], padded with the number of types.
    """

    titles: list[str | None]
    price_tag: np.ndarray
    category: np.ndarray


@dataclasses.dataclass
class Entities:
    """All users, all items and their vectors.

    Attributes:
        vectors: modality -> f16 [U, V] of users, [I, V] of items; missing vectors are zeros.
        affinity_dir: where the affinity of all training rows is; None where the shards have none.
        shards_dir: where they are from; None: made by hand.
    """

    users: Users
    items: Items
    vectors: dict[str, np.ndarray]
    affinity_dir: Path | None = None
    shards_dir: Path | None = None

    @functools.cached_property
    def sequences(self) -> Sequences:
        """Every user's training items in time, read at the first use. Raises DataError for damaged tables."""
        return Sequences.read(self.shards_dir)

    @functools.cached_property
    def affinity(self) -> Affinity | None:
        """Features of any pair, read at the first use. Raises DataError for damaged files."""
        return None if self.affinity_dir is None else Affinity.load(self.affinity_dir)


def load_entities(shards_dir: str | os.PathLike, modalities: Iterable[Modality] | None = None) -> Entities:
    """Read `shards_dir`/entities, with the vectors of `modalities` (default: all that are there).

    Raises DataError naming the file for a missing table, a column of another type, or codes out of order.
    """
    folder, facts = Path(shards_dir) / "entities", ShardFacts.read(shards_dir)
    modalities = facts.modalities if modalities is None else tuple(modalities)
    tables = {}
    for side in SIDES:
        kind = facts.entity_schema(side)
        unread = {m.name for m in facts.modalities} - {m.name for m in modalities} | {"history"}
        table = tables[side] = read_table(
            folder / f"{side}s", kind, [name for name in kind.names if name not in unread]
        )
        if not np.array_equal(table["code"].to_numpy(), np.arange(table.num_rows)):
            raise DataError(
                f"{folder / f'{side}s'}: column 'code' must count 0, 1, 2, ...; run prepare again"
            )
    items = tables["item"]
    return Entities(
        users=Users(**_common(tables["user"])),
        items=Items(
            **_common(items),
            titles=items["title"].to_pylist(),
            price_tag=np.array(items["price_tag"].to_pylist(), dtype=object),
            category=column_matrix(items["category"], facts.category_types),
        ),
        vectors={m.name: column_matrix(tables[m.side][m.name], 0) for m in modalities},
        affinity_dir=Path(shards_dir) / AFFINITY if facts.affinity else None,
        shards_dir=Path(shards_dir),
    )


def read_vectors(
    shards_dir: str | os.PathLike, modality: Modality, first: int, last: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors of the entities with codes in [first, last), group by group of the Parquet files.

    Yields (code of the first, f16 [n, V]); missing vectors are zeros. Files and groups without such codes
    are not read.

    Raises:
        DataError: no table, a column of another type, a damaged file, or a vector that is not finite; names
            the file.
    """
    name, start = modality.name, 0
    column = with_vectors(pa.schema([]), {name: modality.dim})
    for path in part_files(Path(shards_dir) / "entities" / f"{modality.side}s"):
        try:
            file = pq.ParquetFile(path)
            check_schema(file.schema_arrow, column, path)
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if start < last and end > first:
                    matrix = column_matrix(file.read_row_group(group, columns=[name])[name], 0)
                    if not np.isfinite(matrix).all():
                        raise DataError(
                            f"{path}: column '{name}' holds a number that is not finite; run prepare again"
                        )
                    yield max(start, first), matrix[max(first - start, 0) : last - start]
                start = end
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged Parquet file ({error}); run prepare again") from None


def pair_batch(entities: Entities, user_codes: np.ndarray, item_codes: np.ndarray, spec: BatchSpec) -> Batch:
    """The rows of any B (user, item) pairs, as the model sees a test row; labels and ratings are 0.

    Args:
        entities: with the vectors of `spec.in_rows`.
        user_codes, item_codes: integers [B].
        spec: of the model.
    """
    users, items, facts = entities.users, entities.items, spec.facts
    user, item = np.asarray(user_codes, np.int64), np.asarray(item_codes, np.int64)
    dense = dense_matrix(
        list(facts.dense),
        users.count[user],
        items.count[item],
        users.mean_rating[user],
        items.mean_rating[item],
        items.price_tag[item],
        facts.rating_range,
    )
    if entities.affinity is not None:
        dense = np.concatenate([dense, entities.affinity.columns(user, item)], axis=1)
    code = {"user": user, "item": item}
    tensors = {name: torch.from_numpy(value) for name, value in code.items()}
    category = torch.from_numpy(items.category[item])
    batch = Batch(
        dense=torch.from_numpy(dense),
        sparse=make_sparse(category, tensors["user"], tensors["item"], spec.sparse, facts.category_types),
        vectors={m.name: torch.from_numpy(entities.vectors[m.name][code[m.side]]) for m in spec.in_rows},
        label=torch.zeros(len(user)),
        rating=torch.zeros(len(user)),
        user_positives=torch.from_numpy(users.positives[user]),
        item_positives=torch.from_numpy(items.positives[item]),
        **tensors,
    )
    return spec.complete(batch)


def first_entities(
    shards_dir: str | os.PathLike, modalities: Sequence[Modality], rows: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The part of `load_entities` that a sample needs, of the first `rows` users and items at most.

    Returns:
        modality -> f16 [n, V], missing vectors are zeros; "user" and "item", as far as they have a modality
        -> i64 [n, P] positives as in Users, of which some may be n and more.

    Raises DataError as `load_entities`.
    """
    folder, facts = Path(shards_dir) / "entities", ShardFacts.read(shards_dir)
    vectors, positives = {}, {}
    for side in SIDES:
        names = [modality.name for modality in modalities if modality.side == side]
        if names:
            table = read_table(folder / f"{side}s", facts.entity_schema(side), [*names, "positives"], rows)
            vectors |= {name: column_matrix(table[name], 0) for name in names}
            positives[side] = _positives(table)
    return vectors, positives


def entity_positives(shards_dir: str | os.PathLike, side: str) -> np.ndarray:
    """The positives of all entities of a side as in `Users`, i64 [N, P]; raises DataError as
    `load_entities`."""
    facts = ShardFacts.read(shards_dir)
    folder = Path(shards_dir) / "entities" / f"{side}s"
    return _positives(read_table(folder, facts.entity_schema(side), ["positives"]))


def entity_counts(shards_dir: str | os.PathLike, side: str) -> np.ndarray:
    """The training rows of all entities of a side, i32 [N]; raises DataError as `load_entities`."""
    facts = ShardFacts.read(shards_dir)
    folder = Path(shards_dir) / "entities" / f"{side}s"
    return read_table(folder, facts.entity_schema(side), ["count"])["count"].to_numpy()


def _common(table: pa.Table) -> dict[str, object]:
    return {
        "ids": table["id"].to_pylist(),
        "count": table["count"].to_numpy(),
        "mean_rating": table["mean_rating"].to_numpy(),
        "positives": _positives(table),
    }


def _positives(table: pa.Table) -> np.ndarray:
    lists = table["positives"].combine_chunks().fill_null([])
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = np.diff(lists.offsets.to_numpy())
    positives = np.full((len(lists), int(lengths.max(initial=0))), -1, np.int64)
    positives[np.arange(positives.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return positives


def column_matrix(column: pa.ChunkedArray, missing: int) -> np.ndarray:
    """[N, width] of a fixed-size list column; a null row becomes `missing`."""
    width = column.type.list_size
    rows = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy()
        matrix = np.full((len(chunk), width), missing, values.dtype)
        matrix[chunk.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, width)
        rows.append(matrix)
    return np.concatenate(rows) if rows else np.empty((0, width), column.type.value_type.to_pandas_dtype())
