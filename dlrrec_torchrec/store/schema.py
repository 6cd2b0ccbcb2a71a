"""The columns of every table that passes between stages.

Every stage reads folders of Parquet and writes a folder of Parquet with a `manifest.json`. A folder appears
under its final name only when it is complete, so a killed stage leaves nothing that could be taken for whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from dlrrec_torchrec.store.modality import Modality

SCHEMA_VERSION = 6
PRICE_TAGS = ("none", "cheap", "fair", "overpriced")
SPLITS = ("train", "val", "test")
USER_PROFILE, ITEM_PROFILE = "category.user", "category.item"  # begin the names of affinity columns
AFFINITY = "affinity"  # folder beside the shards: what computes these features of any user and item

_str_list = pa.list_(pa.string())

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


def with_vectors(columns: pa.Schema, dims: Mapping[str, int]) -> pa.Schema:
    """The columns, and one of f16 vectors for each name in `dims` (name -> numbers of a vector)."""
    return pa.schema([*columns, *((name, pa.list_(pa.float16(), dim)) for name, dim in dims.items())])


# The content tables without their vectors (`with_vectors`), whose sizes the encoders decide.
#
# Content of an entity as one provider saw it. fold = -1: from all its training reviews; fold = k: from all
# its training reviews except those of fold k (cross-fitting: what a training row of fold k may see).
# Vectors: text_vector (of the summary; null: no words), and of items image_vector (mean over captions; null:
# no picture).
_CONTENT = [("id", pa.string()), ("fold", pa.int16()), ("summary", pa.string())]
# Names of categories that the user says to like or to avoid anywhere, most often said first.
USER_CONTENT = pa.schema([*_CONTENT, ("likes", _str_list), ("avoids", _str_list)])
ITEM_CONTENT = pa.schema(
    [
        *_CONTENT,
        ("price_tag", pa.string()),  # one of PRICE_TAGS
        ("categories", _str_list),  # best first
    ]
)
# One row per training review: its fold, and its own text_vector and image_vector (for exact leave-one-out by
# subtraction).
REVIEW_CONTENT = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("fold", pa.int16()),
    ]
)
# One row per training item whose own metadata has words or captions, with its text_vector and image_vector;
# no review of it is counted here.
METADATA_CONTENT = pa.schema([("id", pa.string())])
# Of each item without training rows (split.cold_items) what its metadata and the first `shown` of its reviews
# say, with its text_vector and image_vector, pooled as prepare pools them.
COLD_CONTENT = pa.schema([("id", pa.string()), ("shown", pa.int8()), ("categories", _str_list)])
NEIGHBORS = pa.schema([("id", pa.string()), ("neighbors", _str_list), ("scores", pa.list_(pa.float32()))])


def shard_schema(dense: int, slots: int, modalities: Iterable[Modality], positives: int) -> pa.Schema:
    """The columns of a training shard; no value is null, and fixed-size lists are stored packed (`packed`).

    Args:
        dense: dense features.
        slots: category types of an item, at most.
        modalities: whose vectors are in the rows.
        positives: neighbours kept of the user and of the item.
    """
    single = {"label": pa.float32(), "rating": pa.float32(), "user": pa.int32(), "item": pa.int32()}
    lists = {
        "dense": pa.list_(pa.float32(), dense),
        "category": pa.list_(pa.int32(), slots),  # padded with the number of types
    }
    if positives:
        codes = pa.list_(pa.int32(), positives)  # best first, padded with -1
        lists |= {"user_positives": codes, "item_positives": codes}
    lists |= {m.name: pa.list_(pa.float16(), m.dim) for m in modalities}  # zeros where the entity has none
    return pa.schema([pa.field(n, kind, nullable=False) for n, kind in (single | lists).items()])


# Entity tables: row i is code i. What serving needs to build a row for any user and item: these columns, more
# of users (USER_ENTITY) and items (`item_entity`), and one of vectors for each modality of the side
# (`with_vectors`).
ENTITY = pa.schema(
    [
        ("code", pa.int32()),
        ("id", pa.string()),
        ("count", pa.int32()),  # training reviews
        ("mean_rating", pa.float32()),  # of its training reviews, smoothed as the rows' are
        ("positives", pa.list_(pa.int32())),
    ]
)
# The codes of the user's training items, the latest last where times are known.
USER_ENTITY = pa.schema([*ENTITY, ("history", pa.list_(pa.int32()))])


def item_entity(slots: int) -> pa.Schema:
    """The columns of the items' entity table, with at most `slots` category types."""
    of_items = [("title", pa.string()), ("price_tag", pa.string()), ("category", pa.list_(pa.int32(), slots))]
    return pa.schema([*ENTITY, *of_items])


def category_types() -> list[str]:
    """The restaurant types that offline extraction and the synthetic world share, in code order."""
    return (Path(__file__).parent / "categories.txt").read_text(encoding="utf-8").splitlines()
