"""Do rows know themselves? Counted in the shards, whatever the settings say."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlrrec_torchrec.features.dense import DENSE_FEATURES
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.modality import SIDES
from dlrrec_torchrec.store.schema import ENTITY, REVIEW_CONTENT, SPLIT, with_vectors
from dlrrec_torchrec.store.shard_facts import ShardFacts

POOLED = ("reviews", "captions", "pictures")  # sources of vectors that every review is a part of
NEAR = 1e-4  # in units of the rating range, below which two means are equal


@dataclasses.dataclass(frozen=True)
class Counted:
    """`count` of `rows`, which are `what`."""

    count: int
    rows: int
    what: str

    @property
    def share(self) -> float:
        return self.count / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return f"{self.count:,} of {self.rows:,} {self.what}"


def own_ratings_kept(shards_dir: str | os.PathLike) -> Counted:
    """Training rows whose mean is that of all training rows of their user (or item), their own included.

    Only rows whose rating is not that mean itself: to leave it out changes the mean. By chance a few do not
    change all the same, as what they leave out may have the mean of the rest. Of the two sides, that with
    the larger share.
    """
    facts = ShardFacts.read(shards_dir)
    train = read_table(Path(shards_dir) / "train", facts.row_schema(()), ["user", "item", "rating", "dense"])
    dense, rating = _matrix(train["dense"]), train["rating"].to_numpy()
    names = [name for name in facts.dense for _ in range(DENSE_FEATURES.get(name, 1))]
    found = [Counted(0, 0, "training rows")]
    for side in SIDES:
        if f"{side}_mean" not in names:
            continue
        wanted = ["mean_rating", "count"]
        entities = read_table(Path(shards_dir) / "entities" / f"{side}s", ENTITY, wanted)
        code = train[side].to_numpy()
        mean = entities["mean_rating"].to_numpy()[code]
        counted = entities["count"].to_numpy() == np.bincount(code, minlength=len(entities))
        low, high = facts.rating_range
        whole = np.nan_to_num((mean - low) / (high - low) * 2 - 1)
        telling = np.abs(rating - mean) > NEAR * (high - low)
        kept = counted[code] & (np.abs(dense[:, names.index(f"{side}_mean")] - whole) <= 1e-6)
        found.append(Counted(int((kept & telling).sum()), int(telling.sum()), "training rows"))
    return max(found, key=lambda counted: (counted.share, counted.rows))


def own_vectors_kept(shards_dir: str | os.PathLike, content_dir: str | os.PathLike) -> Counted:
    """Training rows one of whose vectors is that of all training reviews of their user or item.

    Of rows whose own review has such a vector, and of vectors that every review is a part of (POOLED): a
    summary may be the same without one of its reviews. None where the content is not there.
    """
    facts = ShardFacts.read(shards_dir)
    found = [Counted(0, 0, "training rows")]
    modalities = [m for m in facts.row_modalities if m.source in POOLED]
    if not modalities or not (Path(content_dir) / "reviews").exists():
        return found[0]
    train = read_table(Path(shards_dir) / "train", facts.row_schema(modalities))
    ids = {s: read_table(Path(shards_dir) / "entities" / f"{s}s", ENTITY, ["id"])["id"] for s in SIDES}
    pairs = train["user"].to_numpy().astype(np.int64) * facts.items + train["item"].to_numpy()
    for modality in modalities:
        kind = modality.name.removeprefix(f"{modality.side}_")
        column = with_vectors(REVIEW_CONTENT, {f"{kind}_vector": modality.dim})
        reviews = read_table(Path(content_dir) / "reviews", column)
        codes = [pc.index_in(reviews[f"{s}_id"], value_set=ids[s].combine_chunks()) for s in SIDES]
        user, item = (c.fill_null(-1).to_numpy().astype(np.int64) for c in codes)
        worded = user * facts.items + item
        has = worded[reviews[f"{kind}_vector"].is_valid().to_numpy() & (user >= 0) & (item >= 0)]
        vectors = _matrix(train[modality.name])
        schema = with_vectors(pa.schema([]), {modality.name: modality.dim})
        entities = read_table(Path(shards_dir) / "entities" / f"{modality.side}s", schema)
        whole = _matrix(entities[modality.name])[train[modality.side].to_numpy()]
        telling = np.isin(pairs, has) & whole.any(axis=1)
        kept = (vectors == whole).all(axis=1)
        found.append(Counted(int((kept & telling).sum()), int(telling.sum()), "training rows"))
    return max(found, key=lambda counted: (counted.share, counted.rows))


def foreign_means(shards_dir: str | os.PathLike, split_dir: str | os.PathLike, smoothing: float) -> Counted:
    """Users and items whose mean rating or count is not that of their training rows.

    Args:
        smoothing: that the shards were made with (`left_out.rating_statistics`).
    """
    facts = ShardFacts.read(shards_dir)
    train = read_table(Path(split_dir) / "train", SPLIT, ["user_id", "item_id", "rating"])
    rating, (low, high) = train["rating"].to_numpy().astype(np.float64), facts.rating_range
    foreign = total = 0
    for side in SIDES:
        entities = read_table(
            Path(shards_dir) / "entities" / f"{side}s", ENTITY, ["id", "count", "mean_rating"]
        )
        code = pc.index_in(train[f"{side}_id"], value_set=entities["id"].combine_chunks())
        code = code.fill_null(-1).to_numpy().astype(np.int64)
        known = code >= 0
        count = np.bincount(code[known], minlength=len(entities))
        sums = np.bincount(code[known], rating[known], len(entities))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (sums + smoothing * (low + high) / 2) / (count + smoothing)
        same = np.abs(mean - entities["mean_rating"].to_numpy()) <= NEAR * (high - low)
        same |= np.isnan(mean) & np.isnan(entities["mean_rating"].to_numpy())
        foreign += int((~same | (count != entities["count"].to_numpy())).sum())
        total += len(entities)
    return Counted(foreign, total, "users and items")


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """The numbers of a column of lists of one length, [N, width]."""
    array = column.combine_chunks()
    numbers = array.flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(len(array), array.type.list_size)
