"""A synthetic restaurant world with known truth: reviews, restaurants, photos and the best possible AUC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlrrec_torchrec.ingest.synthetic import pictures, text
from dlrrec_torchrec.ingest.synthetic.world import World, make_world
from dlrrec_torchrec.metrics import expected_auc
from dlrrec_torchrec.store.schema import ITEMS, REVIEWS

TRUTH = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("probability", pa.float32()),
        ("likes", pa.list_(pa.int16())),  # category types that the text says the user likes
        ("avoids", pa.list_(pa.int16())),  # and those it says the user avoids
    ]
)
LAW = "law.npz"


def write_world(
    size: str | tuple[int, int, int], seed: int, folder: str | Path
) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Make the world of a size ("tiny", "small", "paper", or numbers of reviews, users and items) and a seed;
    equal arguments give equal worlds.

    Writes the photos to `folder`/pictures and each review's true probability of a positive label to
    `folder`/truth.parquet (TRUTH; rows as the reviews). `folder`/law.npz has what the probabilities are
    made of (`world.Law`).

    Returns:
        reviews: schema.REVIEWS in the order of time; image paths are relative to `folder`.
        items: schema.ITEMS.
        facts: counts, shares and three AUCs: `reachable_auc`, that of the true probabilities in expectation,
            which no model can exceed; `sampled_auc`, theirs on the drawn labels; `means_auc`, that of the
            true user mean plus the true item mean in expectation.

    Raises DataError for an unknown size or a negative seed.
    """
    folder = Path(folder)
    world = make_world(size, seed)
    # Separate streams, so that words and pictures can change without changing who rates what.
    menu_rng, word_rng, photo_rng, item_rng = np.random.default_rng([seed, 1]).spawn(4)
    menus = text.make_menus(menu_rng, world.types)
    price = text.make_prices(item_rng, world.price_level)
    texts, likes, avoids = text.compose(
        word_rng,
        world.user,
        world.item,
        world.rating,
        taste=world.taste,
        sensitivity=world.sensitivity,
        types=world.types,
        menus=menus,
        price_level=world.price_level,
        price=price,
    )
    photos = pictures.take_photos(
        photo_rng,
        world.user,
        world.item,
        world.rating >= 4,
        favourites=text.favourites(world.taste),
        menus=menus,
        family=world.family,
    )
    picture_count = pictures.write_pictures(photos, folder)

    user_names = np.asarray([f"u{n:05d}" for n in range(len(world.taste))], dtype=object)
    item_names = np.asarray([f"r{n:05d}" for n in range(len(world.types))], dtype=object)
    pairs = {"user_id": user_names[world.user], "item_id": item_names[world.item]}
    reviews = pa.table(
        pairs
        | {
            "rating": world.rating.astype(np.float32),
            "text": texts,
            "timestamp": world.timestamp,
            "images": [
                [pictures.file_name(*photo) for photo in review_photos] or None for review_photos in photos
            ],
            "captions": [
                [pictures.caption(*photo) for photo in review_photos] or None for review_photos in photos
            ],
            "split": pa.nulls(len(texts), pa.string()),
        },
        schema=REVIEWS,
    )
    items = pa.table(
        {
            "item_id": item_names,
            "title": text.make_titles(item_rng, world.types),
            "text": pa.nulls(len(price), pa.string()),
            "categories": [[text.TYPE_NAMES[code] for code in codes] for codes in world.types],
            "price": price,
            "images": pa.nulls(len(price), ITEMS.field("images").type),
            "captions": pa.nulls(len(price), ITEMS.field("captions").type),
        },
        schema=ITEMS,
    )
    truth_columns = {"probability": world.probability.astype(np.float32), "likes": likes, "avoids": avoids}
    truth = pa.table(pairs | truth_columns, schema=TRUTH)
    pq.write_table(truth, folder / "truth.parquet", compression="zstd")
    world.law.write(folder / LAW, item_names.tolist())
    return reviews, items, _facts(world, texts, photos, picture_count)


def _facts(world: World, texts: list[str | None], photos: list, picture_count: int) -> dict[str, Any]:
    label = world.rating >= 4
    expected = expected_auc(world.probability)
    return {
        "reviews": len(label),
        "users": len(world.taste),
        "items": len(world.types),
        "positive_share": float(label.mean()),
        "text_share": float(np.mean([words is not None for words in texts])),
        "photo_share": float(np.mean([bool(review_photos) for review_photos in photos])),
        "several_photos_share": float(np.mean([len(review_photos) > 1 for review_photos in photos])),
        "pictures": picture_count,
        "reachable_auc": expected,
        "sampled_auc": expected_auc(label.astype(float), world.probability),
        "means_auc": expected_auc(world.probability, world.means),
    }
