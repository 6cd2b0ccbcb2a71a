"""Splits with what a split must keep apart: for the experiment that measures leaks, and for nothing else.

Each function goes from folders of a stage to a folder of the same form, which the stages after it read as
they read any other. No setting of a run leads here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.config import SplitConfig
from dlrrec_torchrec.experiments.eight_leaks import KEY
from dlrrec_torchrec.split.stage import TEST, TRAIN, VAL, active_rows, assign_parts
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest, stage_output
from dlrrec_torchrec.store.schema import REVIEWS, SPLIT, SPLITS


def recombine(split_dir: Path, out_dir: Path, parts: Mapping[str, Sequence[str]]) -> Manifest:
    """Write `out_dir`, in which each part has the rows of these parts of `split_dir`.

    {"train": ("train", "val", "test"), ...} lets the stages after it take all rows for training rows.

    Args:
        parts: "train", "val" and "test" -> parts of `split_dir`.
    """
    manifest = _from_split(split_dir, {"parts": {name: list(parts[name]) for name in SPLITS}})
    if previous := manifest.current(out_dir):
        return previous
    whole = {name: read_table(split_dir / name, SPLIT) for name in SPLITS}
    return _write(manifest, out_dir, {n: pa.concat_tables(whole[p] for p in parts[n]) for n in SPLITS})


def with_copies(split_dir: Path, out_dir: Path, share: float, seed: int) -> Manifest:
    """Write `out_dir`: the split with copies of a share of its validation and of its test rows among the
    training rows. The validation and test rows themselves stay as they are.

    Args:
        share: of each part's rows, above 0 and at most 1; seed: of the rows drawn.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} must be above 0 and at most 1")
    manifest = _from_split(split_dir, {"copies": share, "seed": seed})
    if previous := manifest.current(out_dir):
        return previous
    rng = np.random.default_rng(seed)
    whole = {name: read_table(split_dir / name, SPLIT) for name in SPLITS}
    copies = []
    for name in ("val", "test"):
        rows = whole[name].num_rows
        copies.append(whole[name].take(np.sort(rng.permutation(rows)[: round(share * rows)])))
    return _write(manifest, out_dir, whole | {"train": pa.concat_tables([whole["train"], *copies])})


def one_row_a_picture(
    reviews_dir: Path, split_dir: Path, out_dir: Path, config: SplitConfig, pictured: bool
) -> Manifest:
    """Write `out_dir`: every picture of a review a row of its own, with the review's text and rating, and
    the rows split at random, as by protocol `strict` and the method `random`.

    Args:
        split_dir: the ordinary split of these reviews, which says what a positive rating is.
        config: shares, filter and seed of the split.
        pictured: only reviews with a picture; else one without has one row too.

    Raises DataError where no review has more than one picture, and as `assign_parts` does.
    """
    inputs = {"reviews": Manifest.read(reviews_dir).fingerprint}
    manifest = _from_split(split_dir, {"one row a picture": True, "pictured": pictured}, inputs)
    if previous := manifest.current(out_dir):
        return previous
    rows = read_table(reviews_dir, REVIEWS).combine_chunks()
    number = pc.fill_null(pc.list_value_length(rows["images"]), 0).to_numpy()
    if number.max(initial=0) < 2:
        raise DataError(f"{reviews_dir}: column 'images': no review has more than one picture")
    often = number if pictured else np.maximum(number, 1)
    rows = _in_order(rows.take(np.repeat(np.arange(len(often)), often)))
    place = _places(rows)
    for name in ("images", "captions"):
        values = rows[name].to_pylist()
        own = [None if of is None else of[p : p + 1] for of, p in zip(values, place, strict=True)]
        rows = rows.set_column(
            rows.schema.get_field_index(name), name, pa.array(own, REVIEWS.field(name).type)
        )
    label = (rows["rating"].to_numpy() >= manifest.facts["positive_rating"]).astype(np.float32)
    rows = rows.append_column("label", pa.array(label)).cast(SPLIT)
    user, item = (_codes(rows[name]) for name in ("user_id", "item_id"))
    part, _ = assign_parts(
        user,
        item,
        method="random",
        strict=True,
        min_reviews=config.min_reviews,
        test_share=config.test_share,
        val_share=config.val_share,
        seed=config.seed,
    )
    codes = {"train": TRAIN, "val": VAL, "test": TEST}
    return _write(manifest, out_dir, {n: rows.filter(pa.array(part == codes[n])) for n in SPLITS})


def filtered_reviews(reviews_dir: Path, out_dir: Path, min_reviews: int) -> Manifest:
    """Write `out_dir`: the reviews of users and items that have `min_reviews` of them, those that will be
    tested counted too.

    Raises DataError where none is left.
    """
    ingested = Manifest.read(reviews_dir)
    settings = {KEY: {"filter before the split": min_reviews}}
    manifest = Manifest("ingest", settings, {"reviews": ingested.fingerprint}, facts=ingested.facts)
    if previous := manifest.current(out_dir):
        return previous
    rows = _in_order(read_table(reviews_dir, REVIEWS))
    active = active_rows(*(_codes(rows[name]) for name in ("user_id", "item_id")), min_reviews)
    if not active.any():
        raise DataError(f"{reviews_dir}: no user and item has {min_reviews} reviews; use more reviews")
    with stage_output(manifest, out_dir) as folder:
        manifest.rows = {"reviews": write_table(rows.filter(pa.array(active)), folder), "rejected": 0}
    return manifest


def _from_split(split_dir: Path, done: dict[str, Any], inputs: dict[str, str] | None = None) -> Manifest:
    split = Manifest.read(split_dir)
    facts = {name: split.facts[name] for name in ("rating_range", "ratings", "positive_rating")}
    inputs = split.inputs | {"split": split.fingerprint} | (inputs or {})
    return Manifest("split", split.config | {KEY: done}, inputs, facts=facts)


def _write(manifest: Manifest, out_dir: Path, parts: Mapping[str, pa.Table]) -> Manifest:
    with stage_output(manifest, out_dir) as folder:
        for name, rows in parts.items():
            manifest.rows[name] = write_table(_in_order(rows), folder / name)
    return manifest


def _in_order(rows: pa.Table) -> pa.Table:
    """By user and item; rows of one pair stay in their order."""
    place = pa.array(np.arange(rows.num_rows))
    keys = [("user_id", "ascending"), ("item_id", "ascending"), ("place", "ascending")]
    return rows.take(pc.sort_indices(rows.append_column("place", place), keys)).combine_chunks()


def _places(rows: pa.Table) -> np.ndarray:
    """i64 [N]: how many rows of the same pair stand before each row, in rows sorted by pair."""
    user, item = (_codes(rows[name]) for name in ("user_id", "item_id"))
    starts = np.r_[True, (np.diff(user) != 0) | (np.diff(item) != 0)]
    first = np.flatnonzero(starts)
    return np.arange(len(user)) - np.repeat(first, np.diff(np.r_[first, len(user)]))


def _codes(ids: pa.ChunkedArray) -> np.ndarray:
    """i64 [N], the place of each id among the distinct ones in order."""
    return np.unique(ids.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
