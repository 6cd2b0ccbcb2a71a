"""Reviews with the label that their rating gives them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.rating_scale import USUAL, positive_from, rating_scale
from dlrrec_torchrec.store.schema import REVIEWS


def labelled(reviews_dir: str | Path, positive: float | None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """All reviews in canonical order, with column `label`; facts: `rating_range` (None: no common scale),
    `ratings` (the lowest and the highest) and `positive_rating`, by the scale where it is not given."""
    rows = pl.from_arrow(read_table(reviews_dir, REVIEWS)).sort("user_id", "item_id")
    twice = rows.filter(pl.struct("user_id", "item_id").is_duplicated())
    if twice.height:
        raise DataError(
            f"{reviews_dir}: columns 'user_id', 'item_id': the pair ({twice['user_id'][0]}, "
            f"{twice['item_id'][0]}) occurs more than once; ingest the source again, which drops repeats"
        )
    if not rows.height:
        raise DataError(f"{reviews_dir}: no reviews; check the source that was ingested")
    lowest, highest = float(rows["rating"].min()), float(rows["rating"].max())
    scale = rating_scale(lowest, highest)
    if positive is None and scale is None:
        raise DataError(
            f"{reviews_dir}: column 'rating' holds {lowest:g} to {highest:g}, on no common scale: say by "
            "--positive-rating from where on a rating is positive, and by prepare.rating_range that they "
            f"reach from {lowest:g} to {highest:g} (counts, as of plays or hours, are not ratings: take "
            "their logarithm first)"
        )
    low, high = scale or (lowest, highest)
    if positive is not None and not low < positive <= high:
        raise DataError(
            f"--positive-rating: {positive:g} leaves one label only among ratings of {low:g} to {high:g} "
            f"({reviews_dir})"
        )
    if positive is None:
        positive = positive_from(scale)
        _say_scale(scale, positive, float((rows["rating"] >= positive).mean()))
    if not (rows["rating"] >= positive).any():
        raise DataError(
            f"{reviews_dir}: no rating is positive: they reach from {lowest:g} to {highest:g}, and positive "
            f"is {positive:g} and above; say from where on one is positive, as --positive-rating {highest:g}"
        )
    rows = rows.with_columns((rows["rating"] >= positive).cast(pl.Float32).alias("label"))
    return rows, {"rating_range": scale, "ratings": [lowest, highest], "positive_rating": positive}


def _say_scale(scale: tuple[float, float], positive: float, share: float) -> None:
    """Print a note on what was taken for a positive rating and on their share, unless both are usual."""
    if scale == USUAL and 0.05 <= share <= 0.95:
        return
    few = " If they count something, as plays or hours, take their logarithm first." if share < 0.05 else ""
    print(
        f"note: ratings of {scale[0]:g} to {scale[1]:g}: positive from {positive:g}, {share:.0%} of them "
        f"(--positive-rating).{few}",
        file=sys.stderr,
    )
