"""The content tables: what extraction writes, from training reviews and a provider's answers.

Strings and vectors are in files of a scratch folder, and tables are written block by block. So memory grows
with the reviews by some numbers for each review, sentence and version, not by their words or vectors.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.extract.agreement import agreement, tercile_tags
from dlrrec_torchrec.extract.cache import embed_cached
from dlrrec_torchrec.extract.corpus import BLOCK, Corpus, build_corpora, group_means, unit
from dlrrec_torchrec.extract.encoder import Encoder
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews, Provider, Writer
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.extract.strings import Strings, batched, distinct
from dlrrec_torchrec.extract.training_reviews import TrainingReviews
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table, write_tables
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.progress import track
from dlrrec_torchrec.store.schema import with_vectors


class CountedEmbedding:
    """Texts to vectors through the cache, counting what the encoder has to make."""

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder, self.folder = encoder, folder
        self.embedded = 0
        self._dim = 0

    def __call__(self, texts: Strings, path: Path) -> np.ndarray:
        """f16 [N, V], mapped from the file `path`; of no texts too, for which no model is loaded if V is
        known already."""
        if not len(texts) and self._dim:
            return np.zeros((0, self._dim), np.float16)
        vectors, computed = embed_cached(texts, self.encoder, self.folder, out=path)
        self.embedded += computed
        self._dim = vectors.shape[1]
        return vectors


def pieces_of_texts(texts: Strings) -> Iterator[list[list[str]]]:
    """The sentences of each text, in batches of documents."""
    for batch in batched(track(texts, "splitting reviews", len(texts)), BLOCK):
        yield [split_sentences(text) for text in batch]


def words_and_pictures(
    texts: Sequence[str | None],
    sentences: Iterable[list[list[str]]],
    described: Iterable[list[list[str]]],
    captions: PictureWords,
    embed: Callable[[Strings, Path], np.ndarray],
    scratch: Path,
) -> list[Corpus]:
    """The corpora of texts and of pictures, of the same documents.

    Args:
        sentences, described: batches of documents: sentences of the texts, what `captions` says of pictures.
        embed: texts, file -> f16 [N, V]; of captions too, which are texts.
        scratch: an empty folder.
    """
    if captions.embed is None:
        return build_corpora([(texts, sentences), ((), described)], embed, scratch)
    own = scratch / "pictures"
    own.mkdir()
    return [
        *build_corpora([(texts, sentences)], embed, scratch),
        *build_corpora([((), described)], captions.embed, own),
    ]


def write_content(
    folder: Path,
    manifest: Manifest,
    given: TrainingReviews,
    items_dir: Path | None,
    embed: Callable[[Strings, Path], np.ndarray],
    captions: PictureWords,
    provider: Provider,
    categories_from: str,
    price_from: str,
    slots: int,
    scratch: Path,
) -> bool:
    """Write `folder`/{reviews,metadata,users,items} and the manifest's rows and facts.

    Returns whether the categories are those of the metadata.

    Args:
        embed: texts, file -> f16 [N, V].
        categories_from, price_from: settings of these names; slots: categories kept of an item.
        scratch: an empty folder for the time of the call.
    """
    captions.look(given.pictured())
    described = (captions(*batch) for batch in given.pictured())
    words, pictures = words_and_pictures(
        given.texts, pieces_of_texts(given.texts), described, captions, embed, scratch
    )
    dims = {"text_vector": words.vectors.shape[1], "image_vector": pictures.vectors.shape[1]}
    manifest.facts["vector_dims"] = {name.removesuffix("_vector"): dim for name, dim in dims.items()}

    n, metadata = len(given), given.metadata
    has_words, has_pictures = (np.diff(corpus.offsets) > 0 for corpus in (words, pictures))
    silent = not has_words[:n].any()
    categories_from_items, price_from_items = (
        chosen == "items" or (chosen == "auto" and silent and any(m.get(name) is not None for m in metadata))
        for chosen, name in ((categories_from, "categories"), (price_from, "price"))
    )
    kind = with_vectors(schema.REVIEW_CONTENT, dims)
    manifest.rows["reviews"] = write_tables(_reviews(given, words, pictures, kind), kind, folder / "reviews")
    known = np.flatnonzero(has_words[n:] | has_pictures[n:])
    kind = with_vectors(schema.METADATA_CONTENT, dims)
    columns = [given.ids["item"].take(pa.array(known))]
    columns += [_document_vectors(words, n + known, True), _document_vectors(pictures, n + known, False)]
    manifest.rows["metadata"] = write_table(table_of(columns, kind), folder / "metadata")

    writer = provider.read(words)
    kind = with_vectors(schema.USER_CONTENT, {"text_vector": dims["text_vector"]})
    told = _told(writer, "user", given, words, slots, kind, scratch)
    manifest.rows["users"] = write_tables(
        _described(told, "user", embed, kind, scratch), kind, folder / "users"
    )

    def item_columns(code: np.ndarray) -> dict[str, list]:
        """Columns that come from the metadata, not from the provider."""
        columns = {}
        if price_from_items:
            columns["price_tag"] = [price_tags[c] for c in code]
        if categories_from_items:
            columns["categories"] = [(metadata[c].get("categories") or [])[:slots] for c in code]
        return columns

    if price_from_items:
        prices = [np.nan if m.get("price") is None else m["price"] for m in metadata]
        price_tags = tercile_tags(np.asarray(prices, np.float64))
    kind = with_vectors(schema.ITEM_CONTENT, dims)
    told = _told(writer, "item", given, words, slots, kind, scratch)
    tables = _described(told, "item", embed, kind, scratch, item_columns, _pictured(given, pictures))
    manifest.rows["items"] = write_tables(tables, kind, folder / "items")

    manifest.facts |= {"texts": len(words.pieces), "embedded": embed.embedded}
    manifest.facts["reviews_with_words"] = int(has_words[:n].sum())
    manifest.facts["reviews_with_pictures"] = int(has_pictures[:n].sum())
    parts = [*([] if price_from_items else ["price"]), *([] if categories_from_items else ["categories"])]
    if items_dir and (comparison := agreement(folder, items_dir, slots, tuple(parts))):
        manifest.facts["agreement"] = comparison
    manifest.facts["from_items"] = {"categories": categories_from_items, "price": price_from_items}
    return categories_from_items


def _reviews(given: TrainingReviews, words: Corpus, pictures: Corpus, kind: pa.Schema) -> Iterator[pa.Table]:
    """The rows of the table `reviews`."""
    for start in range(0, len(given), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(given)))
        ids = [given.ids[side].take(pa.array(given.codes[side][rows])) for side in ("user", "item")]
        vectors = [_document_vectors(words, rows, True), _document_vectors(pictures, rows, False)]
        yield table_of([*ids, given.fold[rows], *vectors], kind)


def _told(
    writer: Writer,
    side: str,
    given: TrainingReviews,
    corpus: Corpus,
    slots: int,
    kind: pa.Schema,
    scratch: Path,
) -> pa.ipc.RecordBatchFileReader:
    """What the writer answers about each version of each user or item, in a file: the rows of the table
    `kind` with sentences instead of a summary, and without vectors."""
    ids, times, asked = given.ids[side], given.times, array("i")
    expected = given.version_count(side)
    names = {"likes", "avoids", "price_tag", "categories"} & set(kind.names)
    fields = [("code", pa.int32()), ("id", pa.string()), ("fold", pa.int16())]
    fields += [("sentences", pa.list_(pa.large_string())), *((name, kind.field(name).type) for name in names)]

    def requests() -> Iterator[EntityReviews]:
        for code, fold, documents in track(given.versions(side), f"describing {side}s", expected):
            known = None if times is None else times[documents]
            asked.extend((code, fold))
            yield EntityReviews(ids[code].as_py(), side, fold, documents, corpus, known)

    done, path = 0, scratch / f"{side}s.arrow"
    answers = iter(writer.describe(requests()))
    with pa.ipc.new_file(str(path), pa.schema(fields)) as file:
        for contents in batched(answers, BLOCK):
            start, done = done, done + len(contents)
            check_contents(contents)
            if 2 * done > len(asked):
                break  # more answers than requests
            code, fold = np.array(asked[2 * start : 2 * done]).reshape(-1, 2).T
            columns = {"code": code, "id": ids.take(pa.array(code)), "fold": fold.astype(np.int16)}
            columns["sentences"] = [content.summary for content in contents]
            for name in names:
                columns[name] = [
                    value if name == "price_tag" else value[:slots]
                    for value in (getattr(content, name) for content in contents)
                ]
            file.write_batch(pa.record_batch(columns, schema=pa.schema(fields)))
    if 2 * done > len(asked) or done != expected:
        done += sum(1 for _ in answers)
        raise DataError(f"extract.provider: answered {done} of {expected} requests; one each is due")
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _described(
    told: pa.ipc.RecordBatchFileReader,
    side: str,
    embed: Callable[[Strings, Path], np.ndarray],
    kind: pa.Schema,
    scratch: Path,
    other: Callable[[np.ndarray], dict[str, list]] = lambda code: {},
    image_vectors: Iterator[pa.Array] | None = None,
) -> Iterator[pa.Table]:
    """The rows of the table `kind`, block by block.

    Args:
        told: as `_told` returns it.
        other: codes i32 [n] -> columns that are not the provider's.
        image_vectors: of each block, where the table has them.
    """
    batches = [told.get_batch(k) for k in range(told.num_record_batches)]
    sentences, piece = distinct(
        Strings(batch["sentences"].flatten() for batch in batches), scratch / f"{side}-sentences.arrow"
    )
    vectors, start = embed(sentences, scratch / f"{side}-vectors"), 0
    for batch in batches:
        counts = batch["sentences"].value_lengths().to_numpy()
        stop = start + int(counts.sum())
        means = unit(group_means(vectors, piece[start:stop], counts))
        start = stop
        columns = {name: batch[name] for name in batch.schema.names} | other(batch["code"].to_numpy())
        columns["summary"] = [" ".join(map(_ended, one)) or None for one in batch["sentences"].to_pylist()]
        columns["text_vector"] = vector_column(means, counts > 0)
        if image_vectors:
            columns["image_vector"] = next(image_vectors)
        yield table_of([columns[name] for name in kind.names], kind)


def _pictured(given: TrainingReviews, pictures: Corpus) -> Iterator[pa.Array]:
    """The mean vector of the captions that each version of each item may know, block by block."""
    for block in batched((documents for *_, documents in given.versions("item")), BLOCK):
        pieces = [pictures.pieces_of(documents) for documents in block]
        counts = np.fromiter(map(len, pieces), np.int64)
        yield vector_column(group_means(pictures.vectors, np.concatenate(pieces), counts), counts > 0)


def check_contents(contents: list[Content]) -> None:
    """Raise DataError for what a provider must not answer."""
    for content in contents:
        if not isinstance(content, Content):
            raise DataError(
                f"extract.provider: answered {content!r:.80}; each answer must be a Content "
                "(extract/providers/base.py)"
            )
        for field in ("summary", "categories", "likes", "avoids"):
            texts, names = getattr(content, field), field != "summary"
            right = isinstance(texts, tuple | list) and all(isinstance(text, str) and text for text in texts)
            if not right or (names and len(set(texts)) < len(texts)):
                raise DataError(
                    f"extract.provider: {field} {texts!r:.80} must be a tuple of texts, none of them empty"
                    + (", each once" if names else "")
                )
        if content.price_tag not in schema.PRICE_TAGS:
            tags = ", ".join(schema.PRICE_TAGS)
            raise DataError(f"extract.provider: price tag {content.price_tag!r} is not one of {tags}")


def _ended(sentence: str) -> str:
    """With a full stop where a review left it out."""
    return sentence.rstrip(" ,;:") + "." if sentence[-1].isalnum() or sentence[-1] in " ,;:" else sentence


def _document_vectors(corpus: Corpus, documents: np.ndarray, normalize: bool) -> pa.Array:
    """The mean vectors of documents i64 [n], null where there are no pieces."""
    return vector_column(corpus.document_means(normalize, documents), corpus.counts_of(documents) > 0)


def vector_column(vectors: np.ndarray, present: np.ndarray) -> pa.Array:
    """f32 [N, V] as the tables hold it; null where not present."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(~present))


def table_of(columns: Iterable, kind: pa.Schema) -> pa.Table:
    """The table of columns in the order and of the types of `kind`."""
    arrays = [
        column.cast(field.type) if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, kind, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=kind)
