"""Content of items that no training row knows: what their metadata and a few of their reviews say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.extract.content_tables import table_of, vector_column, words_and_pictures
from dlrrec_torchrec.extract.corpus import Corpus, unit
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords
from dlrrec_torchrec.extract.providers.base import EntityReviews, Provider
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.extract.strings import Strings
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.schema import with_vectors

SHOWN = (0, 1, 3)  # reviews that are known of an item


def write_cold(
    split_dir: Path,
    out_dir: Path,
    embed: Callable[[Strings, Path], np.ndarray],
    captions: PictureWords,
    provider: Provider,
    metadata_of: Callable[[list[str]], list[dict]],
    categories_from_items: bool,
    slots: int,
    scratch: Path,
) -> int:
    """Write `out_dir` (COLD_CONTENT) from split_dir/{cold,shown}; return the number of its rows.

    An item without a review's word on its categories has those of its metadata.

    Args:
        embed: texts, file -> f16 [N, V].
        captions: (given captions, pictures) of documents -> their captions.
        metadata_of: ids -> what is known of each, as in ITEMS; {} where nothing is.
        categories_from_items: categories from the metadata alone; slots: of an item, at most.
        scratch: a folder for the time of the call.
    """
    names = ["item_id", "text", "images", "captions"]
    items = sorted(set(read_table(split_dir / "cold", schema.SPLIT, ["item_id"])["item_id"].to_pylist()))
    shown = read_table(split_dir / "shown", schema.SPLIT, names)
    reviews: dict[str, list[int]] = {item: [] for item in items}
    for row, item in enumerate(shown["item_id"].to_pylist()):
        reviews.get(item, []).append(row)
    metadata = metadata_of(items)
    texts, given, images = (
        shown[name].to_pylist() + [known.get(name) for known in metadata]
        for name in ("text", "captions", "images")
    )
    captions.look([(given, images)])
    own = scratch / "cold"
    own.mkdir()
    sentences, described = [[split_sentences(text) for text in texts]], [captions(given, images)]
    words, pictures = words_and_pictures(texts, sentences, described, captions, embed, own)
    of_item = [
        (code, number, np.array([*reviews[item][:number], shown.num_rows + code]))
        for code, item in enumerate(items)
        for number in SHOWN
    ]
    told = provider.read(words).describe(
        EntityReviews(items[code], "item", -1, documents, words) for code, _, documents in of_item
    )
    categories = []
    for content, (code, _, _) in zip(told, of_item, strict=True):
        own = metadata[code].get("categories") or []
        names = own if categories_from_items else (list(content.categories) or own)
        categories.append(names[:slots])
    documents = [documents for *_, documents in of_item]
    columns = [
        [items[code] for code, *_ in of_item],
        [number for _, number, _ in of_item],
        categories,
        _pooled(words, documents, normalize=True),
        _pooled(pictures, documents, normalize=False),
    ]
    dims = {"text_vector": words.vectors.shape[1], "image_vector": pictures.vectors.shape[1]}
    return write_table(table_of(columns, with_vectors(schema.COLD_CONTENT, dims)), out_dir)


def _pooled(corpus: Corpus, documents: list[np.ndarray], normalize: bool) -> pa.Array:
    """The direction of the sum of each group's document vectors, null where there is none: as prepare pools
    the reviews of an item and its metadata."""
    means = corpus.document_means(normalize)
    sums = np.stack([means[group].sum(axis=0) for group in documents])
    return vector_column(unit(sums), sums.any(axis=1))
