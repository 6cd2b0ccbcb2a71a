"""The columns of every table that passes between stages, the manifest each stage leaves, and atomic writes.

Every stage reads folders of Parquet and writes a folder of Parquet with a `manifest.json`. A folder appears
under its final name only when it is complete, so a killed stage leaves nothing that could be taken for whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

SCHEMA_VERSION = 2
VECTOR_DIM = 384
NUM_CATEGORIES = 179  # types; the embedding table has one row more, for the padding
PAD_CATEGORY = 179
CATEGORY_SLOTS = 11
PRICE_TAGS = ("none", "cheap", "fair", "overpriced")
MODALITIES = ("user_text", "item_text", "item_image")
SPLITS = ("train", "val", "test")

_str_list = pa.list_(pa.string())
_vector16 = pa.list_(pa.float16(), VECTOR_DIM)

REVIEWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),
        ("text", pa.string()),  # null: a rating without words
        ("timestamp", pa.int64()),  # seconds since 1970, null: unknown
        ("images", _str_list),  # paths or links, null: none
        ("captions", _str_list),  # one for each image where the source has them, else null
        ("split", pa.string()),  # "train" or "test" where the source publishes a split, else null
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("categories", _str_list),
        ("price", pa.float32()),  # in the source's own unit
        ("images", _str_list),
        ("captions", _str_list),
    ]
)
SPLIT = pa.schema([*REVIEWS, ("label", pa.float32())])  # label = 1 if rating >= positive_rating else 0

# Content of an entity as one provider saw it. fold = -1: from all its training reviews; fold = k: from all
# its training reviews except those of fold k (cross-fitting: what a training row of fold k may see).
USER_CONTENT = pa.schema(
    [
        ("id", pa.string()),
        ("fold", pa.int16()),
        ("summary", pa.string()),
        ("text_vector", _vector16),  # of the summary; null: no words
    ]
)
ITEM_CONTENT = pa.schema(
    [
        *USER_CONTENT,
        ("image_vector", _vector16),  # mean over captions; null: no picture
        ("price_tag", pa.string()),  # one of PRICE_TAGS
        ("categories", _str_list),  # at most CATEGORY_SLOTS, best first
    ]
)
# One row per training review: its own vectors (for exact leave-one-out by subtraction) and its folds.
REVIEW_CONTENT = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("user_fold", pa.int16()),
        ("item_fold", pa.int16()),
        ("text_vector", _vector16),  # null: no words
        ("image_vector", _vector16),  # mean over its captions; null: no picture
    ]
)
# One row per training item whose own metadata has words or captions; no review of it is counted here.
METADATA_CONTENT = pa.schema(
    [
        ("id", pa.string()),
        ("text_vector", _vector16),  # null: no words
        ("image_vector", _vector16),  # mean over its captions; null: no picture
    ]
)
NEIGHBORS = pa.schema([("id", pa.string()), ("neighbors", _str_list), ("scores", pa.list_(pa.float32()))])


def shard_schema(dense: int, modalities: Iterable[str], positives: int) -> pa.Schema:
    """The columns of a training shard; no value is null, and fixed-size lists are stored packed (`packed`).

    Args:
        dense: dense features.
        modalities: whose vectors are in the rows.
        positives: neighbours kept of the user and of the item.
    """
    single = {"label": pa.float32(), "rating": pa.float32(), "user": pa.int32(), "item": pa.int32()}
    lists = {
        "dense": pa.list_(pa.float32(), dense),
        "category": pa.list_(pa.int32(), CATEGORY_SLOTS),  # padded with PAD_CATEGORY
    }
    if positives:
        codes = pa.list_(pa.int32(), positives)  # best first, padded with -1
        lists |= {"user_positives": codes, "item_positives": codes}
    lists |= {m: _vector16 for m in modalities}  # zeros where the entity has none
    return pa.schema([pa.field(n, kind, nullable=False) for n, kind in (single | lists).items()])


# Entity tables: row i is code i. What serving needs to build a row for any user and item.
USER_ENTITY = pa.schema(
    [
        ("code", pa.int32()),
        ("id", pa.string()),
        ("count", pa.int32()),  # training reviews
        ("mean_rating", pa.float32()),  # of its training reviews, smoothed as the rows' are
        ("user_text", _vector16),
        ("positives", pa.list_(pa.int32())),
    ]
)
ITEM_ENTITY = pa.schema(
    [
        ("code", pa.int32()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("count", pa.int32()),
        ("mean_rating", pa.float32()),
        ("price_tag", pa.string()),
        ("category", pa.list_(pa.int32(), CATEGORY_SLOTS)),
        ("item_text", _vector16),
        ("item_image", _vector16),
        ("positives", pa.list_(pa.int32())),
    ]
)


def category_types() -> list[str]:
    """The 179 restaurant types that offline extraction and the synthetic world share, in code order."""
    return (Path(__file__).parent / "categories.txt").read_text(encoding="utf-8").split("\n")[:NUM_CATEGORIES]
