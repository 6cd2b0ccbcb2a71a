"""The split's errors name the flag or the column."""

import numpy as np
import pytest

from dlrrec_torchrec.config import SplitConfig
from dlrrec_torchrec.split.stage import assign_parts, split
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.reviews import random_rows, write_reviews


@pytest.mark.parametrize(
    "options, words",
    [
        ({"test_share": 0.0}, "--test-share.*above 0 and below 1"),
        ({"test_share": 1.0}, "--test-share"),
        ({"val_share": 1.0}, "--val-share"),
        ({"val_share": -0.1}, "--val-share"),
        ({"min_reviews": 0}, "--min-reviews"),
        ({"folds": 1}, "split.folds"),
        ({"fold": 5}, "--fold.*below split.folds"),
        ({"method": "first"}, "--method.*published"),
        ({"min_reviews": 50}, "--min-reviews 50.*nothing is left.*lower"),
        ({"method": "last"}, "column 'timestamp' is missing in .* of .*--method last"),
        ({"method": "time"}, "column 'timestamp' is missing in .* of .*--method time"),
        ({"method": "published"}, "column 'split' is null everywhere"),
    ],
)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_errors_name_the_flag_or_column(tmp_path, protocol, options, words):
    reviews = write_reviews(random_rows(), tmp_path / "r")
    with pytest.raises(DataError, match=words):
        split(SplitConfig(**options), protocol, reviews, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_unknown_protocol_repeated_pairs_and_strange_parts_are_refused(tmp_path):
    rows = random_rows()
    with pytest.raises(DataError, match="--protocol.*strict, paper"):
        split(SplitConfig(), "loose", write_reviews(rows, tmp_path / "r"), tmp_path / "s")
    with pytest.raises(DataError, match=rf"pair \({rows[0][0]}, {rows[0][1]}\).*more than once"):
        split(SplitConfig(), "paper", write_reviews([*rows, rows[0]], tmp_path / "twice"), tmp_path / "s")
    parts = ["train"] * (len(rows) - 1) + ["dev"]
    with pytest.raises(DataError, match="column 'split'.*1 reviews differ.*'dev'"):
        reviews = write_reviews(rows, tmp_path / "dev", split=parts)
        split(SplitConfig(method="published"), "paper", reviews, tmp_path / "s")


def test_no_test_row_left_is_an_error(tmp_path):
    rows = [(f"u{u}", f"i{i}", 5.0) for u in range(8) for i in (u, (u + 1) % 8)]  # a ring: two reviews each
    with pytest.raises(DataError, match="nothing is left|no test row is left.*--min-reviews"):
        split(SplitConfig(), "strict", write_reviews(rows, tmp_path / "r"), tmp_path / "s")


@pytest.mark.parametrize("method", ["random", "last", "time", "folds"])
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_what_leaves_nothing_to_train_or_test_names_what_decides(tmp_path, protocol, method):
    rows = [(f"u{u}", "i0", 5.0) for u in range(8)]
    reviews = write_reviews(rows, tmp_path / "r", timestamp=list(range(8)))
    one_item = SplitConfig(method=method, cold_items=0.5, min_reviews=1)
    with pytest.raises(DataError, match="--cold-items 0.5: sets all 1 items apart"):
        split(one_item, protocol, reviews, tmp_path / "s")
    one_user = [("u0", f"i{i}", 5.0) for i in range(8)]  # so every tested item is unknown to training
    reviews = write_reviews(one_user, tmp_path / "one", timestamp=list(range(8)))
    way = "raise --test-share" if method in ("random", "time") else f"take another --method than {method}"
    with pytest.raises(DataError, match=f"no test row is left.*lower --min-reviews, {way}, or use more"):
        split(SplitConfig(method=method, min_reviews=1), protocol, reviews, tmp_path / "s")


def test_no_rows_have_no_last_one():
    nothing = np.zeros(0, np.int64)
    ids = {"strict": True, "min_reviews": 1, "timestamp": nothing}
    with pytest.raises(DataError, match="nothing is left of training's 0 reviews"):
        assign_parts(nothing, nothing, method="last", **ids)
