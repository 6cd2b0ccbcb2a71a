"""What a synthetic world knows of the rows: true probabilities, and the evidence for the attainable AUC."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrrec_torchrec.evaluation.attainable import Evidence, attainable_probability
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.ingest.synthetic.world import Law
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.modality import SIDES


def true_probabilities(truth: str | os.PathLike, shards_dir: str | os.PathLike, rows: Rows) -> np.ndarray:
    """The true probability f64 [N] of each row, joined by ids. Raises DataError for a row that has none."""
    table = pq.read_table(truth, columns=["user_id", "item_id", "probability"])
    return table["probability"].to_numpy()[_positions(table, truth, shards_dir, rows)].astype(np.float64)


def attainable(
    truth: str | os.PathLike, law: str | os.PathLike, shards_dir: str | os.PathLike, train: Rows, test: Rows
) -> np.ndarray:
    """Probability f64 [M] of a positive for each test row by the world's law and the training rows alone.

    Args:
        truth, law: the files that `ingest.synthetic.write` leaves beside the reviews.

    Raises DataError for a training row that `truth` misses, or an item that `law` misses.
    """
    parts, law_ids = Law.read(law)
    ids = _ids(shards_dir, "item")
    item = pc.index_in(ids, value_set=pa.array(law_ids)).fill_null(-1).to_numpy().astype(np.int64)
    if len(item) and item.min() < 0:
        raise DataError(f"{law}: has no item '{ids[int(item.argmin())]}'; run `dlrrec ingest` again")
    table = pq.read_table(truth, columns=["user_id", "item_id", "likes", "avoids"])
    table = table.take(pa.array(_positions(table, truth, shards_dir, train)))
    said = {}
    for name in ("likes", "avoids"):
        lists = table[name].combine_chunks()
        said[name] = (
            np.repeat(train.user, lists.value_lengths().to_numpy()).astype(np.int64),
            lists.flatten().to_numpy().astype(np.int64),
        )
    evidence = Evidence(
        len(_ids(shards_dir, "user")),
        train.user.astype(np.int64),
        item[train.item],
        train.rating,
        *said["likes"],
        *said["avoids"],
    )
    return attainable_probability(parts, evidence, test.user.astype(np.int64), item[test.item])


def _positions(
    table: pa.Table, path: str | os.PathLike, shards_dir: str | os.PathLike, rows: Rows
) -> np.ndarray:
    """The row i64 [N] of `table` that has each of `rows`. Raises DataError if one is not there."""
    codes = {}
    for kind in SIDES:
        ids = _ids(shards_dir, kind)
        matches = pc.index_in(table[f"{kind}_id"].cast(pa.string()), value_set=ids)
        codes[kind] = matches.fill_null(-1).to_numpy().astype(np.int64), len(ids)
    (user, _), (item, items) = codes["user"], codes["item"]
    known = np.flatnonzero((user >= 0) & (item >= 0))
    pair = user[known] * items + item[known]
    order = np.argsort(pair)
    pair, known = pair[order], known[order]
    row_pairs = rows.user.astype(np.int64) * items + rows.item
    position = np.minimum(np.searchsorted(pair, row_pairs), max(len(pair) - 1, 0))
    missing = len(row_pairs) if not len(pair) else int((pair[position] != row_pairs).sum())
    if missing:
        raise DataError(
            f"{path}: no probability for {missing} of {len(row_pairs)} rows of the shards; run ingest again"
        )
    return known[position] if len(row_pairs) else np.zeros(0, np.int64)


def _ids(shards_dir: str | os.PathLike, kind: str) -> pa.Array:
    """The ids of the shards' users or items, in code order."""
    return read_table(Path(shards_dir) / "entities" / f"{kind}s", schema.ENTITY, ["id"])[
        "id"
    ].combine_chunks()
