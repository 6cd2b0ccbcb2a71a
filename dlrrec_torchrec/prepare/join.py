"""The two sides, from the folders of split, extract and swing and the user's own vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.features.left_out import Groups, PooledVectors, StoredVectors, rating_statistics
from dlrrec_torchrec.prepare.inputs import (
    FoldIndex,
    SplitRows,
    index_reviews,
    map_metadata,
    map_vectors,
    read_positives,
)
from dlrrec_torchrec.prepare.own_vectors import VectorFile, read_vector_file
from dlrrec_torchrec.prepare.sides import ItemLabels, Side, Tastes
from dlrrec_torchrec.prepare.vocabulary import CategoryVocabulary, category_codes, category_vocabulary, encode
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.modality import Modality, modality
from dlrrec_torchrec.store.schema import ITEM_CONTENT, PRICE_TAGS, USER_CONTENT


@dataclasses.dataclass(frozen=True)
class JoinedSides:
    """Everything the rows are made of.

    Attributes:
        users, items: the two sides.
        vocabulary: of the categories; slots: of them an item has at most.
        modalities: of all vectors that the sides hold, also of those that no entity has.
        fold: int64 [N], of each training row.
    """

    users: Side
    items: Side
    vocabulary: CategoryVocabulary
    slots: int
    modalities: tuple[Modality, ...]
    fold: np.ndarray

    def number(self, modality: Modality) -> int:
        """How many entities of its side have a vector of the modality."""
        return {"user": self.users, "item": self.items}[modality.side].vectors[modality.name].number()


def join_sides(
    train: SplitRows,
    user_ids: pa.Array,
    item_ids: pa.Array,
    content_dir: Path,
    swing_dir: Path,
    scratch: Path,
    *,
    text: str,
    statistics: str,
    smoothing: float,
    prior: float,
    positives: int,
    category_types: int,
    files: Sequence[VectorFile] = (),
) -> JoinedSides:
    """Users, items and the category vocabulary.

    Args:
        train: the training rows, whose codes are positions in `user_ids` and `item_ids`.
        scratch: folder for memory maps, to live as long as the sides.
        text: "mean" pools the reviews' vectors, "summary" takes the summaries' vectors.
        statistics: what a row sees: "folds" (reviews of other folds), "ordered" (of earlier folds, which are
            blocks of time) or "row" (all except its own).
        smoothing: pseudo-reviews of the rating `prior` in a mean rating.
        positives: neighbours kept for each entity.
        category_types: that have a code, at most.
        files: of the user's own vectors.
    """
    facts = Manifest.read(content_dir).facts
    dims, encoder = facts["vector_dims"], facts["encoder"]
    reviews = index_reviews(content_dir / "reviews", train, user_ids, item_ids)

    def review_vectors(kind: str) -> np.ndarray:
        place = {"row": reviews.row, "size": len(train.user)}
        return map_vectors(
            content_dir / "reviews", f"{kind}_vector", dims[kind], scratch / f"reviews-{kind}", **place
        )

    def metadata_vectors(kind: str) -> np.ndarray:
        return map_metadata(
            content_dir / "metadata", item_ids, f"{kind}_vector", dims[kind], scratch / f"metadata-{kind}"
        )

    _check_order(content_dir, statistics, facts.get("fold_by", "random"))
    earlier = statistics == "ordered"
    review_text = review_vectors("text") if text == "mean" else None
    text_source = "reviews" if text == "mean" else "summary"
    contents = {
        side: read_table(content_dir / f"{side}s", kind, [n for n in kind.names if n != "summary"])
        for side, kind in (("user", USER_CONTENT), ("item", ITEM_CONTENT))
    }
    vocabulary = category_vocabulary(
        contents["item"]["categories"], contents["item"]["fold"].to_numpy() == -1, category_types
    )

    def codes(names: pa.ChunkedArray) -> np.ndarray:
        return category_codes(names, vocabulary.names, facts["category_slots"], category_types)

    sides: dict[str, Side] = {}
    modalities: list[Modality] = []
    for side, ids, entity in (("user", user_ids, train.user), ("item", item_ids, train.item)):
        folder, content = content_dir / f"{side}s", contents[side]
        index = FoldIndex(content, ids)
        groups = Groups(entity, reviews.fold, earlier)
        by_row, by_entity = _find_content(folder, index, ids, entity, reviews.fold, groups)
        by_fold = partial(index.seen_by, np.arange(len(ids)), earlier=earlier)
        left_out = None if statistics == "row" else groups
        if text == "mean":
            metadata = metadata_vectors("text") if side == "item" else None
            text_vectors = PooledVectors(
                review_text, entity, len(ids), left_out, metadata, scratch / f"{side}-text"
            )
        else:
            stored = map_vectors(folder, "text_vector", dims["text"], scratch / f"{side}-text")
            text_vectors = StoredVectors(stored, by_row, by_entity, by_fold)
        named = modality(f"{side}_text", dims["text"], source=text_source, encoder=encoder, flag="extract")
        vectors, labels, tastes = {named.name: text_vectors}, None, None
        modalities.append(named)
        if side == "user":
            tastes = Tastes(
                likes=codes(content["likes"]),
                avoids=codes(content["avoids"]),
                by_entity=by_entity,
                by_fold=by_fold,
            )
        if side == "item":
            made_by = {"source": "captions", "encoder": encoder}
            if "image_encoder" in facts:
                made_by = {"source": "pictures", "encoder": facts["image_encoder"]}
            named = modality("item_image", dims["image"], **made_by, flag="extract")
            modalities.append(named)
            vectors[named.name] = PooledVectors(
                review_vectors("image"),
                entity,
                len(ids),
                left_out,
                metadata_vectors("image"),
                scratch / "item-image",
            )
            labels = ItemLabels(
                price=_price_codes(folder, content["price_tag"]),
                category=codes(content["categories"]),
                padding=category_types,
                by_row=by_row,
                by_entity=by_entity,
                by_fold=by_fold,
            )
        sides[side] = Side(
            entity,
            rating_statistics(train.rating, entity, len(ids), left_out, smoothing, prior),
            vectors,
            read_positives(swing_dir / f"{side}s", ids, positives),
            labels,
            tastes,
        )
    for file in files:
        described, stored = read_vector_file(file, {"user": user_ids, "item": item_ids}, scratch / file.name)
        side = sides[described.side]
        all_codes = np.arange(len(stored))
        side.vectors[described.name] = StoredVectors(stored, side.entity, all_codes)
        modalities.append(described)
    return JoinedSides(
        sides["user"], sides["item"], vocabulary, facts["category_slots"], tuple(modalities), reviews.fold
    )


def _check_order(content_dir: Path, statistics: str, fold_by: str) -> None:
    """Refuse statistics that the content's folds cannot give."""
    if statistics == "ordered" and fold_by != "time":
        raise DataError(
            f"{content_dir}: prepare.statistics=ordered needs folds that are blocks of time, and these are "
            "random; use --statistics folds, or first run `dlrrec extract --fold-by time`"
        )
    if statistics == "folds" and fold_by == "time":
        raise DataError(
            f"{content_dir}: its folds are blocks of time (extract.fold_by), of which rows see the earlier "
            "ones; use --statistics ordered, or first run `dlrrec extract --fold-by random`"
        )


def _find_content(
    folder: Path, index: FoldIndex, ids: pa.Array, entity: np.ndarray, fold: np.ndarray, groups: Groups
) -> tuple[np.ndarray, np.ndarray]:
    """Content rows of the training rows [N] (without what they leave out) and of the entities [E] (whole).

    A training row has none (-1) only where it leaves out all reviews of its entity.
    """
    by_row, by_entity = index.find(entity, fold), index.find(np.arange(len(ids)), -1)
    if (by_entity < 0).any():
        raise DataError(
            f"{folder}: no row for id '{ids[int(np.argmin(by_entity))]}', fold -1; run extract again"
        )
    left_out = groups.left_out(np.bincount(groups.number))[groups.number]
    something_left = np.bincount(entity)[entity] > left_out
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
