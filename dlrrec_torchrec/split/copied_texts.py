"""Held-out reviews that are copies of training reviews."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import polars as pl

from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import SPLIT, SPLITS

SHORT_TEXT = 40  # characters below which equal texts ("Good food.") are no sign of a copied review


@dataclasses.dataclass(frozen=True)
class Copies:
    """Test rows of a split that training rows know.

    Attributes:
        tested: test rows.
        pairs: of them, those whose user and item are a training row's.
        texts: those that have the text of a training row (`has_copied_text`).
        copied: those of either kind.
    """

    tested: int
    pairs: int
    texts: int
    copied: int

    def __str__(self) -> str:
        if not self.copied:
            return f"none of {self.tested:,} test rows has user and item, or the text, of a training row"
        return (
            f"{self.copied:,} of {self.tested:,} test rows ({self.copied / self.tested:.1%}) are in the "
            f"training rows too: {self.pairs:,} by user and item, {self.texts:,} by their text"
        )


def copies(split_dir: str | Path) -> Copies:
    """Count the test rows of the folder of a split that its training rows know. Raises DataError for damaged
    tables."""
    columns = ["user_id", "item_id", "text"]
    parts = [pl.from_arrow(read_table(Path(split_dir) / name, SPLIT, columns)) for name in SPLITS]
    rows, part = pl.concat(parts), np.repeat(np.arange(len(parts)), [p.height for p in parts])
    tested, trained = (pl.Series(part == SPLITS.index(name)) for name in ("test", "train"))
    known = rows.filter(trained).select("user_id", "item_id").unique().with_columns(known=pl.lit(True))
    pairs = rows.join(known, on=["user_id", "item_id"], how="left", maintain_order="left")
    by_pair = pairs["known"].fill_null(False) & tested
    by_text = has_copied_text(rows["text"], rows["item_id"], part) & tested
    return Copies(*(int(of.sum()) for of in (tested, by_pair, by_text, by_pair | by_text)))


def has_copied_text(text: pl.Series, item: pl.Series, part: np.ndarray) -> pl.Series:
    """Whether each row [N] has the text of a training row, its own if it is one.

    Texts are equal but for case and white space; those below SHORT_TEXT characters do not count, nor do
    those of an item whose reviews all have one text: that describes the item, as a film's title does.

    Args:
        text: of the reviews, [N] strings or null; item: their items, [N]; part: [N], positions in SPLITS,
            other numbers for what is in none.
    """
    plain = text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    rows = pl.DataFrame({"text": plain, "item": item, "part": part, "row": np.arange(len(part))})
    rows = rows.filter(pl.col("text").str.len_chars() >= SHORT_TEXT)
    rows = rows.filter(~((pl.col("text").n_unique() == 1) & (pl.len() > 1)).over("item"))
    trained = rows.filter(pl.col("part") == SPLITS.index("train"))["text"].unique()
    copied = np.zeros(len(part), bool)
    copied[rows.filter(pl.col("text").is_in(trained.implode()))["row"].to_numpy()] = True
    return pl.Series(copied)


def copied_texts(text: pl.Series, item: pl.Series, part: np.ndarray) -> dict[str, int]:
    """How many validation ("val") and test ("test") rows have the text of a training row (`has_copied_text`,
    with the same arguments)."""
    copied = has_copied_text(text, item, part).to_numpy()
    return {name: int((copied & (part == SPLITS.index(name))).sum()) for name in ("val", "test")}


def say_copied(copied: dict[str, int]) -> None:
    """Print a note for each part that has any."""
    for name, count in copied.items():
        if count:
            print(
                f"note: {count:,} {name} rows have the text of a training row (copied reviews)",
                file=sys.stderr,
            )
