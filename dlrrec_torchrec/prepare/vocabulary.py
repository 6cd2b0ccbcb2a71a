"""Names to codes: ids of users and items, category names, and lists of either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.store.schema import category_types


def sorted_names(names: pa.ChunkedArray) -> pa.Array:
    """The distinct names in order; a name's position is its code."""
    distinct = pc.unique(names)
    return distinct.take(pc.sort_indices(distinct))


def encode(names: pa.Array | pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """int32 codes (positions in `known`) of names; -1 for an unknown one."""
    return pc.fill_null(pc.index_in(names, value_set=known), -1).to_numpy().astype(np.int32)


def encode_lists(
    lists: pa.Array | pa.ChunkedArray, known: pa.Array, limit: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `limit` distinct known names of each list.

    Args:
        lists: M lists of names.
        keep: bool over all names of all lists, flattened; others are skipped.

    Returns for each name that is left, list by list and in the list's order: the list's number (int64), the
    position in what is left of the list (int64), the code (int32).
    """
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    parent = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    code = encode(pc.list_flatten(lists), known)
    keep = (code >= 0) if keep is None else (code >= 0) & keep
    parent, code = parent[keep], code[keep]
    _, first = np.unique(parent * max(len(known), 1) + code, return_index=True)
    first.sort()
    parent, code = parent[first], code[first]
    position = np.arange(len(parent)) - np.searchsorted(parent, parent)
    within = position < limit
    return parent[within], position[within], code[within]


@dataclass(frozen=True)
class CategoryVocabulary:
    """Category names in code order. `closed`: the project's fixed types, which no review influenced."""

    names: list[str]
    closed: bool
    dropped: int  # names seen in the content that have no code


def category_vocabulary(lists: pa.ChunkedArray, whole: np.ndarray, most: int) -> CategoryVocabulary:
    """The project's types if they cover every name and are not more than `most`; else the `most` names of
    most items, ties by name.

    A ranked vocabulary of names that a provider took from review text depends, if weakly, on every review;
    leave-one-out is exact for the fixed types and for names from item metadata.

    Args:
        lists: category names of each (item, fold).
        whole: bool, the lists of fold -1 (one for each item), which are counted.
    """
    names = pc.unique(pc.drop_null(pc.list_flatten(lists)))
    types = category_types()
    if len(types) <= most and pc.all(pc.is_in(names, value_set=pa.array(types)), min_count=0).as_py():
        return CategoryVocabulary(types, True, 0)
    known = sorted_names(names)
    _, _, code = encode_lists(lists.filter(pa.array(whole)), known, len(known))
    items = np.bincount(code, minlength=len(known))
    ranked = np.argsort(-items, kind="stable")[:most]
    ranked = ranked[items[ranked] > 0]
    return CategoryVocabulary(known.take(pa.array(ranked)).to_pylist(), False, len(known) - len(ranked))


def category_codes(lists: pa.ChunkedArray, names: list[str], slots: int, padding: int) -> np.ndarray:
    """Codes of each list's first `slots` distinct names, padded: the smallest unsigned [M, slots]."""
    codes = np.full((len(lists), slots), padding, np.min_scalar_type(padding))
    parent, position, code = encode_lists(lists, pa.array(names, pa.string()), slots)
    codes[parent, position] = code
    return codes
