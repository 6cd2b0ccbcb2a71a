"""Held-out reviews that are copies of training reviews."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl

from dlrrec_torchrec.store.schema import SPLITS

SHORT_TEXT = 40  # characters below which equal texts ("Good food.") are no sign of a copied review


def copied_texts(text: pl.Series, item: pl.Series, part: np.ndarray) -> dict[str, int]:
    """How many validation ("val") and test ("test") rows have the text of a training row.

    Texts are equal but for case and white space; those below SHORT_TEXT characters do not count, nor do
    those of an item whose reviews all have one text: that describes the item, as a film's title does.

    Args:
        text: of the reviews, [N] strings or null; item: their items, [N]; part: [N], positions in SPLITS,
            other numbers for what is in none.
    """
    plain = text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    rows = pl.DataFrame({"text": plain, "item": item, "part": part})
    rows = rows.filter(pl.col("text").str.len_chars() >= SHORT_TEXT)
    rows = rows.filter(~((pl.col("text").n_unique() == 1) & (pl.len() > 1)).over("item"))
    trained = rows.filter(pl.col("part") == SPLITS.index("train"))["text"].unique()
    return {
        name: rows.filter(
            (pl.col("part") == SPLITS.index(name)) & pl.col("text").is_in(trained.implode())
        ).height
        for name in ("val", "test")
    }


def say_copied(copied: dict[str, int]) -> None:
    """Print a note for each part that has any."""
    for name, count in copied.items():
        if count:
            print(
                f"note: {count:,} {name} rows have the text of a training row (copied reviews)",
                file=sys.stderr,
            )
