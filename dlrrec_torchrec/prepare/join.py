"""The two sides out of the folders of split, extract and neighbors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.features.leave_one_out import (
    PooledVectors,
    StoredVectors,
    fold_groups,
    rating_statistics,
)
from dlrrec_torchrec.prepare.inputs import (
    FoldIndex,
    SplitRows,
    index_reviews,
    map_metadata,
    map_vectors,
    read_positives,
)
from dlrrec_torchrec.prepare.sides import ItemLabels, Side
from dlrrec_torchrec.prepare.vocabulary import CategoryVocabulary, category_slots, category_vocabulary, encode
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import ITEM_CONTENT, PRICE_TAGS, REVIEW_CONTENT, USER_CONTENT


def assemble(
    train: SplitRows,
    user_ids: pa.Array,
    item_ids: pa.Array,
    content_dir: Path,
    swing_dir: Path,
    scratch: Path,
    *,
    text: str,
    by_fold: bool,
    smoothing: float,
    prior: float,
    positives: int,
) -> tuple[Side, Side, CategoryVocabulary]:
    """Users, items and the category vocabulary.

    Args:
        train: the training rows, whose codes are positions in `user_ids` and `item_ids`.
        scratch: folder for memory maps, to live as long as the sides.
        text: "mean" pools the reviews' vectors, "summary" takes the summaries' vectors.
        by_fold: leave out a row's whole fold of its entity instead of its own review.
        smoothing: pseudo-reviews of the rating `prior` in a mean rating.
        positives: neighbours kept for each entity.
    """
    reviews = index_reviews(content_dir / "reviews", train, user_ids, item_ids)

    def review_vectors(column: str) -> np.ndarray:
        path = scratch / f"reviews-{column}"
        return map_vectors(
            content_dir / "reviews", REVIEW_CONTENT, column, path, reviews.row, len(train.user)
        )

    def metadata_vectors(column: str) -> np.ndarray:
        return map_metadata(content_dir / "metadata", item_ids, column, scratch / f"metadata-{column}")

    review_text = review_vectors("text_vector") if text == "mean" else None
    made = {}
    for name, schema, ids, entity, fold in (
        ("users", USER_CONTENT, user_ids, train.user, reviews.user_fold),
        ("items", ITEM_CONTENT, item_ids, train.item, reviews.item_fold),
    ):
        folder = content_dir / name
        content = read_table(folder, schema, [c for c in schema.names if not c.endswith("_vector")])
        by_row, by_entity = _find_content(folder, content, ids, entity, fold)
        left_out = fold_groups(entity, fold) if by_fold else None
        if text == "mean":
            metadata = metadata_vectors("text_vector") if name == "items" else None
            text_vectors = PooledVectors(review_text, entity, len(ids), left_out, metadata)
        else:
            stored = map_vectors(folder, schema, "text_vector", scratch / f"{name}-text")
            text_vectors = StoredVectors(stored, by_row, by_entity)
        vectors, labels = {f"{name[:-1]}_text": text_vectors}, None
        if name == "items":
            vectors["item_image"] = PooledVectors(
                review_vectors("image_vector"),
                entity,
                len(ids),
                left_out,
                metadata_vectors("image_vector"),
            )
            vocabulary = category_vocabulary(content["categories"], content["fold"].to_numpy() == -1)
            labels = ItemLabels(
                _price_codes(folder, content["price_tag"]),
                category_slots(content["categories"], vocabulary.names),
                by_row,
                by_entity,
            )
        made[name] = Side(
            entity,
            rating_statistics(train.rating, entity, len(ids), left_out, smoothing, prior),
            vectors,
            read_positives(swing_dir / name, ids, positives),
            labels,
        )
    return made["users"], made["items"], vocabulary


def _find_content(
    folder: Path, content: pa.Table, ids: pa.Array, entity: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Content rows of the training rows [N] (without their folds) and of the entities [E] (whole).

    A training row has none (-1) only where all reviews of its entity are in its fold.
    """
    index = FoldIndex(content, ids)
    by_row, by_entity = index.find(entity, fold), index.find(np.arange(len(ids)), -1)
    if (by_entity < 0).any():
        raise DataError(
            f"{folder}: no row for id '{ids[int(np.argmin(by_entity))]}', fold -1; run extract again"
        )
    group = fold_groups(entity, fold)
    something_left = np.bincount(entity)[entity] > np.bincount(group)[group]
    if len(missing := np.flatnonzero((by_row < 0) & something_left)):
        row = missing[0]
        raise DataError(f"{folder}: no row for id '{ids[entity[row]]}', fold {fold[row]}; run extract again")
    return by_row, by_entity


def _price_codes(folder: Path, tags: pa.ChunkedArray) -> np.ndarray:
    """uint8 positions in PRICE_TAGS."""
    tags = pc.fill_null(tags, PRICE_TAGS[0])
    codes = encode(tags, pa.array(PRICE_TAGS))
    if len(unknown := np.flatnonzero(codes < 0)):
        raise DataError(
            f"{folder}: row {unknown[0]}: price_tag '{tags[int(unknown[0])]}' is not one of "
            f"{', '.join(PRICE_TAGS)}; run extract again"
        )
    return codes.astype(np.uint8)
