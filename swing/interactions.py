"""From tables of interactions to CSR: stream, filter, number the ids, drop duplicates, apply the limits.

The rows are read once and only their numbered pairs are kept, 8 bytes an interaction. Ids are numbered in
sorted order, so sorting by code is sorting by id.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from swing import csr
from swing.compiled import check_compiler
from swing.config import SwingConfig, SwingError
from swing.numbering import numbering, ranked
from swing.tables import Filters, check, row_count, scan

ReadProgress = Callable[[int, int | None], None]


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Distinct user-item pairs, as CSR by user: rows ascend."""

    user_ids: pl.Series  # sorted, distinct, strings or integers
    item_ids: pl.Series
    user_ptr: np.ndarray  # i64[users + 1]
    item_idx: np.ndarray  # i32[edges]
    facts: dict[str, int]  # counts: rows, rows left out by reason, users, items, edges
    warnings: list[str]

    def digest(self) -> str:
        """A hash of the content: equal for equal edges and ids, whatever the form of the input."""
        total = hashlib.blake2b(digest_size=12)
        total.update(self.user_ptr.data)
        total.update(self.item_idx.data)
        for ids in (self.user_ids, self.item_ids):
            total.update(str(ids.dtype).encode())
            total.update(np.ascontiguousarray(ids.hash(seed=0).to_numpy()).data)
        return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Graph:
    """The graph of one side after the limits, in CSR both ways, rows ascending; `user`: what links.

    The arrays are read-only. They may lack edges that no pair of neighbours shares.
    """

    anchor_ids: pl.Series  # all ids of the compared side, those the limits emptied included
    anchor_ptr: np.ndarray  # i64[anchors + 1]
    anchor_idx: np.ndarray  # i32[edges]: users
    user_ptr: np.ndarray  # i64[users + 1]
    user_idx: np.ndarray  # i32[edges]: anchors
    user_weight: np.ndarray  # f64[users]
    anchor_size: np.ndarray  # i32[anchors]: users that the limits left
    facts: dict[str, int]  # edges left, and what each limit dropped


def read(
    source: str | Path | pl.DataFrame | pl.LazyFrame,
    user: str = "user_id",
    item: str = "item_id",
    filters: Filters | None = None,
    progress: ReadProgress | None = None,
) -> Interactions:
    """Read interactions from Parquet, CSV or TSV (file, folder, hive partitions, glob) or a frame.

    `user` and `item` name the id columns, strings or integers; ids of text files are strings. Rows with a
    null id are dropped and counted, as are those that `filters` exclude; duplicates count once. `progress` is
    called while rows are read, with how many have been read and how many there are (None for text files,
    which do not say).
    Raises SwingError for an unreadable path, a missing column, an unsuitable type or no rows, and where numba
    must not compile.
    """
    check_compiler()
    filters = filters or Filters()
    where = "the frame" if isinstance(source, (pl.DataFrame, pl.LazyFrame)) else str(source)
    try:
        lazy = scan(source)
        schema = lazy.collect_schema()
        warnings = check(schema, user, item, where)
        numbers = [numbering(schema[name]) for name in (user, item)]
        has_ids = pl.col(user).is_not_null() & pl.col(item).is_not_null()
        reasons = {"null_rows": ~has_ids}
        reasons |= {name: has_ids & out for name, out in filters.excluded(schema, where).items()}
        if_kept = pl.when(~pl.any_horizontal(reasons.values()))
        rows = lazy.select(
            numbers[0].expression(if_kept.then(pl.col(user))).alias("u"),
            numbers[1].expression(if_kept.then(pl.col(item))).alias("i"),
            *[out.alias(name) for name, out in reasons.items()],
        )
        facts = dict.fromkeys(("rows", *reasons), 0)
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        total = row_count(source) if progress else None
        with ThreadPoolExecutor(2) as pool:
            for batch in rows.collect_batches(maintain_order=False):
                facts["rows"] += len(batch)
                if progress:
                    progress(facts["rows"], total)
                for name in reasons:
                    facts[name] += int(batch[name].sum())
                ids = batch.select("u", "i").drop_nulls()
                users, items = pool.map(lambda number, values: number(values), numbers, ids)
                pairs.append((users, items))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SwingError(f"{where}: cannot be read: {error}") from None
    kept_rows = sum(len(users) for users, _ in pairs)
    if not kept_rows:
        left_out = ", ".join(f"{name} {count}" for name, count in facts.items() if count)
        raise SwingError(f"{where}: no interactions" + (f" left ({left_out})" if left_out else ""))
    (user_ids, user_rank), (item_ids, item_rank) = (
        ranked(n, name) for n, name in zip(numbers, (user, item), strict=True)
    )
    user_ptr, item_idx = csr.from_pairs(pairs, user_rank, item_rank)
    facts |= {
        "duplicate_rows": kept_rows - len(item_idx),
        "users": len(user_ids),
        "items": len(item_ids),
        "edges": len(item_idx),
    }
    return Interactions(user_ids, item_ids, user_ptr, item_idx, facts, warnings)


def build(interactions: Interactions, config: SwingConfig, side: str = "items") -> Graph:
    """Apply the limits and build the graph of `side`. Raises SwingError if nothing can be compared."""
    if side not in ("items", "users"):
        raise SwingError(f"side must be 'items' or 'users', not {side!r}")
    anchor_ids, link_ids = interactions.item_ids, interactions.user_ids
    ptr, idx = interactions.user_ptr, interactions.item_idx
    link_side = "users"
    if side == "users":
        anchor_ids, link_ids, link_side = link_ids, anchor_ids, "items"
        ptr, idx = csr.transpose(ptr, idx, len(link_ids))
    minimum = 2 if config.similarity == "swing" else 1  # linking ids that two neighbours share
    for ids, name, count in ((anchor_ids, side, 2), (link_ids, link_side, minimum)):
        if len(ids) < count:
            raise SwingError(
                f"only one of the {name} ('{ids[0]}'): SWING compares ids that share two others, so it needs "
                "at least two users and two items"
            )
    facts: dict[str, int] = {}

    def noted(fact: str, result: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        facts[fact] = len(idx) - len(result[1])
        return result

    linking = int(np.count_nonzero(np.diff(ptr)))
    ptr, idx = noted("edges_below_min_user_items", csr.keep_rows(ptr, idx, config.min_user_items, None))
    if config.max_user_items is not None:
        ptr, idx = noted("edges_above_max_user_items", csr.keep_rows(ptr, idx, 1, config.max_user_items))
    if config.sample_user_items is not None:
        sample = csr.sample_rows(ptr, idx, config.sample_user_items, config.seed)
        ptr, idx = noted("edges_not_in_sample_user_items", sample)
    ptr, idx = csr.transpose(ptr, idx, len(anchor_ids))
    if config.max_item_users is not None:
        sample = csr.sample_rows(ptr, idx, config.max_item_users, config.seed)
        ptr, idx = noted("edges_not_in_sample_item_users", sample)
    user_ptr, user_idx = csr.transpose(ptr, idx, len(link_ids))
    user_size, anchor_size = np.diff(user_ptr), np.diff(ptr).astype(np.int32)
    facts[f"{link_side}_dropped"] = linking - int(np.count_nonzero(user_size))
    facts["edges_left"] = len(idx)
    if not len(idx):
        raise SwingError(
            f"the limits dropped all {len(interactions.item_idx)} interactions: none of the {link_side} has "
            f"{config.min_user_items} to {config.max_user_items or 'any number of'} {side}; "
            "lower min_user_items"
        )
    # An id that cannot have a neighbour is in no pair: leaving it out shortens every walk past it.
    while smaller := csr.prune(ptr, idx, np.diff(user_ptr), minimum):
        ptr, idx = smaller
        user_ptr, user_idx = csr.transpose(ptr, idx, len(link_ids))
    arrays = (ptr, idx, user_ptr, user_idx, _user_weight(user_size, config), anchor_size)
    for array in arrays:
        array.flags.writeable = False
    return Graph(anchor_ids, *arrays, facts)


def _user_weight(size: np.ndarray, config: SwingConfig) -> np.ndarray:
    """The weight of linking ids with `size` i64[users] edges, f64[users]; 0 for one without edges.

    Computed once, here: machines may differ in the last bit of a power or logarithm.
    """
    weight = np.zeros(len(size))
    has_pairs = size > (1 if config.similarity == "adamic_adar" else 0)
    if config.similarity == "swing":
        weight[has_pairs] = (config.user_alpha + size[has_pairs]) ** -config.user_beta
    elif config.similarity == "adamic_adar":
        weight[has_pairs] = 1.0 / np.log(size[has_pairs])
    else:
        weight[has_pairs] = 1.0
    return weight
