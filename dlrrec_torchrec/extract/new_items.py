"""Content of items that no training row knows: what their metadata and a few of their reviews say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.extract.content_tables import table_of, vector_column, words_and_pictures
from dlrrec_torchrec.extract.corpus import Corpus, unit
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords
from dlrrec_torchrec.extract.providers.base import EntityReviews, Provider
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.extract.strings import Strings
from dlrrec_torchrec.extract.training_reviews import (
    bare_corpus,
    entities_of,
    item_metadata,
    read_training_reviews,
)
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.schema import with_vectors

SHOWN = (0, 1, 3)  # reviews that are known of an item


@dataclasses.dataclass(frozen=True)
class ColdItems:
    """What is known of N items. Documents are the reviews that are shown, then each item's own words.

    ids, metadata: of the items, {} where nothing is known; texts, captions, images: of all documents.
    versions: (place among the items, most reviews that are shown of it, documents i64) for each of SHOWN.
    """

    ids: list[str]
    metadata: list[dict]
    texts: list[str | None]
    captions: list[list[str] | None]
    images: list[list[str] | None]
    versions: list[tuple[int, int, np.ndarray]]

    def entities(self, corpus: Corpus) -> Iterator[EntityReviews]:
        """Each version as a provider takes it, in their order; `corpus` is of `texts`."""
        for code, _, documents in self.versions:
            yield EntityReviews(self.ids[code], "item", -1, documents, corpus)


def read_cold_items(split_dir: Path, metadata_of: Callable[[list[str]], list[dict]]) -> ColdItems:
    """The items of split_dir/cold, with the reviews of split_dir/shown; none where nothing is set apart.

    Args:
        metadata_of: ids -> what is known of each, as in ITEMS; {} where nothing is.
    """
    if not (split_dir / "cold").exists():
        return ColdItems([], [], [], [], [], [])
    names = ["item_id", "text", "images", "captions"]
    items = sorted(set(read_table(split_dir / "cold", schema.SPLIT, ["item_id"])["item_id"].to_pylist()))
    shown = read_table(split_dir / "shown", schema.SPLIT, names)
    reviews: dict[str, list[int]] = {item: [] for item in items}
    for row, item in enumerate(shown["item_id"].to_pylist()):
        reviews.get(item, []).append(row)
    metadata = metadata_of(items)
    texts, captions, images = (
        shown[name].to_pylist() + [known.get(name) for known in metadata]
        for name in ("text", "captions", "images")
    )
    versions = [
        (code, number, np.array([*reviews[item][:number], shown.num_rows + code]))
        for code, item in enumerate(items)
        for number in SHOWN
    ]
    return ColdItems(items, metadata, texts, captions, images, versions)


def described_entities(
    config: ExtractConfig, split_dir: Path, items_dir: Path | None
) -> Iterator[tuple[Sequence[str | None], Iterator[EntityReviews]]]:
    """The texts and the versions that extraction describes: of training reviews, and of items set apart."""
    given = read_training_reviews(config, split_dir / "train", items_dir)
    yield given.texts, entities_of(given)
    cold = read_cold_items(split_dir, partial(item_metadata, items_dir))
    yield cold.texts, cold.entities(bare_corpus(cold.texts))


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
        metadata_of: as of `read_cold_items`.
        categories_from_items: categories from the metadata alone; slots: of an item, at most.
        scratch: a folder for the time of the call.
    """
    given = read_cold_items(split_dir, metadata_of)
    captions.look([(given.captions, given.images)])
    own = scratch / "cold"
    own.mkdir()
    sentences = [[split_sentences(text) for text in given.texts]]
    described = [captions(given.captions, given.images)]
    words, pictures = words_and_pictures(given.texts, sentences, described, captions, embed, own)
    told = provider.read(words).describe(given.entities(words))
    categories = []
    for content, (code, _, _) in zip(told, given.versions, strict=True):
        own = given.metadata[code].get("categories") or []
        names = own if categories_from_items else (list(content.categories) or own)
        categories.append(names[:slots])
    documents = [documents for *_, documents in given.versions]
    columns = [
        [given.ids[code] for code, *_ in given.versions],
        [number for _, number, _ in given.versions],
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
