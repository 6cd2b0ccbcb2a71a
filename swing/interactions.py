"""From tables of interactions to CSR: read, drop nulls and duplicates, number the ids, apply the limits.

Ids are numbered in sorted order, so that an order by code is an order by id.
"""

from __future__ import annotations

import dataclasses
import glob
from pathlib import Path

import numpy as np
import polars as pl

from swing.config import SwingConfig, SwingError

_LOW = 0xFFFFFFFF
_CSV = {".csv": ",", ".tsv": "\t"}


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Distinct user-item pairs. `pairs` i64[edges], ascending: user code << 32 | item code."""

    user_ids: pl.Series  # sorted, distinct, strings or integers
    item_ids: pl.Series
    pairs: np.ndarray
    facts: dict[str, int]  # rows, null_rows, duplicate_rows, users, items, edges


@dataclasses.dataclass(frozen=True)
class Graph:
    """The graph of one side after the limits, in CSR both ways, rows ascending; `user`: what links."""

    anchor_ids: pl.Series  # all ids of the compared side, those the limits emptied included
    anchor_ptr: np.ndarray  # i64[anchors + 1]
    anchor_idx: np.ndarray  # i32[edges]: users
    user_ptr: np.ndarray  # i64[users + 1]
    user_idx: np.ndarray  # i32[edges]: anchors
    user_weight: np.ndarray  # f64[users]
    facts: dict[str, int]  # edges left, and what each limit dropped


def read(
    source: str | Path | pl.DataFrame | pl.LazyFrame, user: str = "user_id", item: str = "item_id"
) -> Interactions:
    """Read interactions from Parquet, CSV or TSV (file, folder, hive partitions, glob) or a frame.

    `user` and `item` name the id columns, strings or integers; ids of text files are strings. Rows with a
    null id are dropped and counted, duplicates count once. Of a file, only the ids and the numbered pairs are
    held in memory, not the rows.
    Raises SwingError for an unreadable path, a missing column, an unsuitable type or no rows.
    """
    where = "the frame" if isinstance(source, (pl.DataFrame, pl.LazyFrame)) else str(source)
    try:
        lazy = _scan(source)
        schema = lazy.collect_schema()
        for name in (user, item):
            if name not in schema:
                raise SwingError(f"{where}: no column '{name}' (found: {', '.join(schema.names())})")
        if user == item:
            raise SwingError(f"{where}: users and items cannot both be column '{user}'")
        lazy = lazy.select(
            _id_column(user, schema, where).alias("u"), _id_column(item, schema, where).alias("i")
        )
        whole = lazy.drop_nulls()
        rows = lazy.select(pl.len()).collect(engine="streaming").item()
        user_ids, item_ids = (
            whole.select(pl.col(name).unique()).collect(engine="streaming")[name].sort() for name in "ui"
        )
        numbered = whole.join(_codes(user_ids, "u"), on="u").join(_codes(item_ids, "i"), on="i")
        pairs = (
            numbered.select(pl.col("u_code").cast(pl.Int64) * 2**32 + pl.col("i_code"))
            .collect(engine="streaming")
            .to_series()
            .to_numpy()
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SwingError(f"{where}: cannot be read: {error}") from None
    kept = len(pairs)
    pairs = _distinct(pairs)
    facts = {
        "rows": rows,
        "null_rows": rows - kept,
        "duplicate_rows": kept - len(pairs),
        "users": len(user_ids),
        "items": len(item_ids),
        "edges": len(pairs),
    }
    if not len(pairs):
        nulls = f" (all {rows} have a null id)" if rows else ""
        raise SwingError(f"{where}: no interactions{nulls}")
    return Interactions(user_ids, item_ids, pairs, facts)


def _scan(source) -> pl.LazyFrame:
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        return source.lazy()
    path = Path(source)
    if path.is_dir():
        for suffix in (".parquet", ".csv", ".tsv"):
            if files := sorted(path.rglob(f"*{suffix}")):
                break
        else:
            raise SwingError(f"{path}: no .parquet, .csv or .tsv file in this folder")
    else:
        files = [path] if path.exists() else sorted(map(Path, glob.glob(str(source), recursive=True)))
        if not files:
            raise SwingError(f"{source}: no such file or folder")
    suffix = files[0].suffix
    if suffix in _CSV:  # as strings: an id "007" must stay what it is
        return pl.scan_csv(files, separator=_CSV[suffix], infer_schema=False)
    if suffix != ".parquet":
        raise SwingError(f"{files[0]}: expected .parquet, .csv or .tsv, not '{suffix}'")
    return pl.scan_parquet(files, hive_partitioning=path.is_dir())


def _id_column(name: str, schema: pl.Schema, where: str) -> pl.Expr:
    kind = schema[name]
    if kind in (pl.Categorical, pl.Enum):
        return pl.col(name).cast(pl.String)
    if kind != pl.String and kind != pl.Null and not kind.is_integer():
        raise SwingError(f"{where}: column '{name}' has type {kind}; ids are strings or integers")
    return pl.col(name)


def _codes(ids: pl.Series, name: str) -> pl.LazyFrame:
    return pl.LazyFrame({name: ids, f"{name}_code": pl.int_range(len(ids), dtype=pl.UInt32, eager=True)})


def _distinct(keys: np.ndarray) -> np.ndarray:
    keys = np.sort(keys)
    if len(keys):
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return keys


def build(interactions: Interactions, config: SwingConfig, side: str = "items") -> Graph:
    """Apply the limits and lay the graph out for `side`. Raises SwingError if nothing can be compared."""
    if side not in ("items", "users"):
        raise SwingError(f"side must be 'items' or 'users', not {side!r}")
    users, items = interactions.pairs >> 32, interactions.pairs & _LOW
    anchor_ids, link_ids = interactions.item_ids, interactions.user_ids
    if side == "users":
        users, items, anchor_ids, link_ids = items, users, link_ids, anchor_ids
    link_side = "users" if side == "items" else "items"
    for ids, name in ((anchor_ids, side), (link_ids, link_side)):
        if len(ids) < 2:
            raise SwingError(
                f"only one of the {name} ('{ids[0]}'): SWING compares ids that share two others, so it needs "
                "two users and two items at least"
            )
    facts: dict[str, int] = {}

    def keep(mask: np.ndarray, what: str) -> None:
        nonlocal users, items
        facts[what] = int(len(mask) - np.count_nonzero(mask))
        users, items = users[mask], items[mask]

    degree = np.bincount(users, minlength=len(link_ids))
    keep(degree[users] >= config.min_user_items, "edges_below_min_user_items")
    if config.max_user_items is not None:
        keep(degree[users] <= config.max_user_items, "edges_above_max_user_items")
    if config.sample_user_items is not None:
        keep(_sample(users, items, config.sample_user_items, config.seed), "edges_not_in_sample_user_items")
    if config.max_item_users is not None:
        keep(_sample(items, users, config.max_item_users, config.seed), "edges_not_in_sample_item_users")
    facts[f"{link_side}_dropped"] = int(np.count_nonzero(degree)) - len(np.unique(users))
    facts["edges_left"] = len(users)
    if not len(users):
        raise SwingError(
            f"the limits dropped all {len(interactions.pairs)} interactions: none of the {link_side} has "
            f"{config.min_user_items} to {config.max_user_items or 'any number of'} {side}; "
            "lower min_user_items"
        )
    weight = (config.user_alpha + np.bincount(users, minlength=len(link_ids))).astype(np.float64)
    np.power(weight, -config.user_beta, out=weight, where=weight > 0)

    # An id with a single edge takes no part in any pair: leaving it out shortens every walk past it.
    for _ in range(3):
        mask = (np.bincount(users)[users] > 1) & (np.bincount(items)[items] > 1)
        users, items = users[mask], items[mask]
        if mask.all():
            break
    anchor_ptr, anchor_idx = _csr(items, users, len(anchor_ids))
    user_ptr, user_idx = _csr(users, items, len(link_ids))
    return Graph(anchor_ids, anchor_ptr, anchor_idx, user_ptr, user_idx, weight, facts)


def _csr(rows: np.ndarray, columns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    ptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=count), out=ptr[1:])
    return ptr, (np.sort(rows << 32 | columns) & _LOW).astype(np.int32)


def _sample(rows: np.ndarray, columns: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Mask that keeps `most` edges, drawn evenly, of every row that has more.

    The edges with the smallest hash of (seed, row, column) stay: a choice that no order of reading, partition
    or thread can change.
    """
    mask = np.ones(len(rows), bool)
    large = np.flatnonzero(np.bincount(rows)[rows] > most)
    if len(large):
        row = rows[large]
        order = np.lexsort((edge_hash(row, columns[large], seed), row))
        sorted_rows = row[order]
        rank = np.arange(len(row)) - np.searchsorted(sorted_rows, sorted_rows)
        mask[large[order[rank >= most]]] = False
    return mask


def edge_hash(rows: np.ndarray, columns: np.ndarray, seed: int) -> np.ndarray:
    """u64 hashes of (seed, row, column): two rounds of the finaliser of SplitMix64 (Steele et al. 2014)."""
    value = np.asarray(rows, np.uint64) << np.uint64(32) | np.asarray(columns, np.uint64)
    with np.errstate(over="ignore"):
        for salt in (np.uint64(seed), np.uint64(0)):
            value = value + salt * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
    return value
