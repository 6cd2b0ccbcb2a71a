"""Splits in which leaks are open on purpose: every row is where the leak puts it, and nothing else moves."""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import SplitConfig
from dlrrec_torchrec.experiments.leaky_shards import VIEWS
from dlrrec_torchrec.experiments.leaky_splits import (
    filtered_reviews,
    one_row_a_picture,
    recombine,
    with_copies,
)
from dlrrec_torchrec.split.stage import active_rows, split
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import SPLIT, SPLITS
from tests.helpers.reviews import random_rows, write_reviews

seeds = st.integers(0, 2**32 - 1)


def pairs(folder: Path) -> dict[str, collections.Counter]:
    """part -> how often each (user, item) is in it."""
    return {
        part: collections.Counter(
            zip(*(table[name].to_pylist() for name in ("user_id", "item_id")), strict=True)
        )
        for part in SPLITS
        for table in [read_table(folder / part, SPLIT)]
    }


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    """(reviews, split) with pictures: review n has n % 4 of them."""
    root = tmp_path_factory.mktemp("ordinary")
    rows = random_rows(3, users=40, items=15)
    images = [[f"{n}-{k}.png" for k in range(n % 4)] or None for n in range(len(rows))]
    texts = [f"A review with the number {n}, long enough to be told from others." for n in range(len(rows))]
    write_reviews(rows, root / "reviews", images=images, captions=images, text=texts)
    split(SplitConfig(positive_rating=4.0), "strict", root / "reviews", root / "split")
    return root / "reviews", root / "split"


def test_all_rows_become_training_rows_and_stay_what_they_are_beside(ordinary, tmp_path):
    before = pairs(ordinary[1])
    for view, parts in VIEWS.items():
        recombine(ordinary[1], tmp_path / view, parts)
        after = pairs(tmp_path / view)
        for part in SPLITS:
            assert after[part] == sum((before[name] for name in parts[part]), collections.Counter())
    assert recombine(ordinary[1], tmp_path / "all", VIEWS["all"]).reused


@given(st.floats(0.01, 1), seeds)
@settings(max_examples=15)
def test_copies_are_of_tested_rows_and_leave_these_as_they_are(ordinary, share, seed):
    before = pairs(ordinary[1])
    with tempfile.TemporaryDirectory() as folder:
        with_copies(ordinary[1], Path(folder) / "split", share, seed)
        after = pairs(Path(folder) / "split")
    assert (after["val"], after["test"]) == (before["val"], before["test"])
    added = after["train"] - before["train"]
    assert added.total() == after["train"].total() - before["train"].total()
    for part in ("val", "test"):
        copied = sum((added & before[part]).values())
        assert copied == round(share * before[part].total())
    with pytest.raises(ValueError, match="share"):
        with_copies(ordinary[1], Path(folder) / "split", 0.0, seed)


@pytest.mark.parametrize("pictured", [False, True])
def test_every_picture_is_a_row_with_its_reviews_text_and_rating(ordinary, tmp_path, pictured):
    reviews, plain = ordinary
    config = SplitConfig(min_reviews=1, test_share=0.4)
    one_row_a_picture(reviews, plain, tmp_path / "split", config, pictured)
    table = pa.concat_tables([read_table(tmp_path / "split" / part, SPLIT) for part in SPLITS])
    source = {
        (row["user_id"], row["item_id"]): row
        for part in SPLITS
        for row in read_table(plain / part, SPLIT).to_pylist()
    }
    shown = collections.defaultdict(list)
    for row in table.to_pylist():
        shown[row["user_id"], row["item_id"]].append(row)
    for pair, rows in shown.items():
        if pair not in source:  # dropped from the ordinary split, as nobody else reviewed the item
            continue
        images = source[pair]["images"] or []
        found = sorted(image for row in rows for image in row["images"] or [])
        assert set(found) <= set(images) and len(set(found)) == len(found)
        assert len(rows) <= max(len(images), 1) and (images or not pictured)
        for name in ("text", "rating", "label"):
            assert {row[name] for row in rows} == {source[pair][name]}
    both = set(pairs(tmp_path / "split")["train"]) & set(pairs(tmp_path / "split")["test"])
    assert both and all(len(shown[pair]) > 1 for pair in both)


def test_reviews_without_several_pictures_cannot_become_several_rows(tmp_path):
    write_reviews(random_rows(1), tmp_path / "reviews")
    split(SplitConfig(positive_rating=4.0), "strict", tmp_path / "reviews", tmp_path / "split")
    with pytest.raises(DataError, match="column 'images': no review has more than one picture"):
        one_row_a_picture(
            tmp_path / "reviews", tmp_path / "split", tmp_path / "out", SplitConfig(), pictured=False
        )


def test_the_filter_counts_all_reviews(tmp_path):
    rows = random_rows(5, users=50, items=20, share=0.08)
    write_reviews(rows, tmp_path / "reviews")
    manifest = filtered_reviews(tmp_path / "reviews", tmp_path / "out", 2)
    users, items = (np.unique([row[k] for row in rows], return_inverse=True)[1] for k in (0, 1))
    assert manifest.rows["reviews"] == active_rows(users, items, 2).sum() < len(rows)
    split(SplitConfig(positive_rating=4.0), "strict", tmp_path / "out", tmp_path / "split")
    with pytest.raises(DataError, match="no user and item has 50 reviews"):
        filtered_reviews(tmp_path / "reviews", tmp_path / "none", 50)
