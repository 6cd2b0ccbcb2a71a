"""Texts that stand on both sides of a split."""

import numpy as np
import polars as pl

from dlrrec_torchrec.split.copied_texts import copied_texts
from dlrrec_torchrec.split.stage import TEST, TRAIN, VAL


def test_held_out_rows_with_the_text_of_a_training_row_are_counted():
    long = "The soup was cold and the waiter did not care about it."
    text = pl.Series([long, "Good food.", "Another text that is long enough to be told apart.", None] * 3)
    part = np.array([TRAIN, TRAIN, TRAIN, TRAIN, VAL, VAL, VAL, VAL, TEST, TEST, TEST, TEST])
    item = pl.Series(list("abcadbcabbca"))  # all of c's reviews have one text
    assert copied_texts(text, item, part) == {"val": 1, "test": 1}
    varied = text.to_list()
    varied[8] = f"  {long.upper().replace(' ', '  ')}\n"
    assert copied_texts(pl.Series(varied), item, part) == {"val": 1, "test": 1}
    assert copied_texts(pl.Series([None] * 12, dtype=pl.String), item, part) == {"val": 0, "test": 0}
