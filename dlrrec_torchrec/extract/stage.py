"""The stage: training reviews (and item metadata) in, content tables out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.config import ExtractConfig, LlmConfig, PicturesConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.extract.agreement import agreement, tercile_tags
from dlrrec_torchrec.extract.cache import embed_cached
from dlrrec_torchrec.extract.corpus import Corpus, build_corpora, offsets_of
from dlrrec_torchrec.extract.encoder import Encoder, SentenceEncoder
from dlrrec_torchrec.extract.new_items import write_cold
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords, make_captioner
from dlrrec_torchrec.extract.providers.base import Content, EntityReviews, Provider, Writer
from dlrrec_torchrec.extract.providers.language_model import check_packages
from dlrrec_torchrec.extract.providers.registry import make_provider
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.extract.training_reviews import (
    TrainingReviews,
    item_metadata,
    read_training_reviews,
)
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.progress import track
from dlrrec_torchrec.store.schema import with_vectors

LOSSY = (
    "extract.encoder_precision=int8: vectors differ from the encoder's own; "
    "`dlrrec bench encode --precision int8` measures how far, docs/modalities.md has AUC and Recall with both"
)


def extract(
    config: ExtractConfig,
    split_dir: str | os.PathLike,
    items_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    cache_dir: str | os.PathLike,
    encoder: Encoder | None = None,
    llm: LlmConfig | None = None,
    pictures: PicturesConfig | None = None,
    picture_folder: str | os.PathLike | None = None,
) -> Manifest:
    """Write out_dir/{users,items,reviews,metadata} from split_dir/train and, where it exists, items_dir;
    out_dir/cold too, where split.cold_items set items apart.

    Besides training rows, only those of such items are read that the split shows. Users and items get content
    of fold -1 and of each of their folds; `reviews` has one row a training review, in the split's order;
    `metadata` one row for each training item whose metadata has words or captions. The vectors of all
    sentences and captions are cached in cache_dir/vectors.

    Args:
        encoder: another source of vectors than `config.encoder`.
        llm: the language model, for the provider of that name.
        pictures: who describes pictures without captions; picture_folder: where their relative paths begin,
            if `pictures` names no folder.

    Raises DataError for settings out of range, a missing input, or a provider or encoder that cannot be used.
    """
    llm, pictures = llm or LlmConfig(), pictures or PicturesConfig()
    check_settings(config, llm, pictures)
    provider = make_provider(
        config.provider, config.summary_sentences, config.provider_options, llm, Path(cache_dir)
    )
    encoder = encoder or _encoder(config, llm, Path(cache_dir))
    items_dir = Path(items_dir) if (Path(items_dir) / "manifest.json").exists() else None
    inputs = {"split": Manifest.read(split_dir).fingerprint, "encoder": encoder.identity}
    if items_dir:
        inputs["items"] = Manifest.read(items_dir).fingerprint
    provenance = {
        "provider": provider.name,
        "model": provider.model,
        "fingerprint": provider.fingerprint,
    }
    captioner = make_captioner(pictures, llm, getattr(provider, "budget", None))
    if captioner:
        provenance["captioner"] = captioner.identity
    captions = PictureWords(
        pictures, captioner, Path(picture_folder) if picture_folder else None, Path(cache_dir)
    )
    manifest = Manifest("extract", jsonable(config) | {"provenance": provenance}, inputs)
    if current := manifest.current(out_dir):
        return current
    if begin := getattr(provider, "begin", None):
        begin()
    with stage_output(manifest, out_dir) as folder:
        embed = _CountedEmbedding(encoder, Path(cache_dir) / "vectors")
        categories_from_items = _write_content(
            folder,
            manifest,
            read_training_reviews(config, Path(split_dir) / "train", items_dir),
            items_dir,
            embed,
            captions,
            provider,
            config.categories_from,
            config.price_from,
            config.category_slots,
        )
        if (Path(split_dir) / "cold").exists():
            manifest.rows["cold"] = write_cold(
                Path(split_dir),
                folder / "cold",
                embed,
                captions,
                provider,
                lambda items: item_metadata(items_dir, items),
                categories_from_items,
                config.category_slots,
            )
        if record := getattr(provider, "record", None):
            manifest.facts[provider.name] = record(folder)
        manifest.facts["pictures"] = captions.record(folder / "pictures")
        manifest.facts |= provenance | {"encoder": config.encoder, "category_slots": config.category_slots}
        manifest.facts["fold_by"] = config.fold_by
    return manifest


def _encoder(config: ExtractConfig, llm: LlmConfig, cache_dir: Path) -> Encoder:
    where, colon, model = config.encoder.partition(":")
    if where != "server" or not colon:
        if config.encoder_precision != "exact":
            print(LOSSY, file=sys.stderr)
        return SentenceEncoder(
            config.encoder,
            config.batch_tokens,
            precision=config.encoder_precision,
            converted=cache_dir / "encoders",
        )
    if not model:
        raise DataError("extract.encoder (--encoder) 'server:': name the model too, as server:MODEL")
    check_packages()
    from dlrrec_torchrec.extract.llm.embeddings import ServerEncoder

    return ServerEncoder(model, llm)


class _CountedEmbedding:
    """Texts to vectors through the cache, counting what the encoder has to make."""

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder, self.folder = encoder, folder
        self.embedded = 0
        self._dim = 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        """f16 [N, V]; of no texts too, for which no model is loaded if V is known already."""
        if not texts and self._dim:
            return np.zeros((0, self._dim), np.float16)
        vectors, computed = embed_cached(texts, self.encoder, self.folder)
        self.embedded += computed
        self._dim = vectors.shape[1]
        return vectors


def _write_content(
    folder: Path,
    manifest: Manifest,
    given: TrainingReviews,
    items_dir: Path | None,
    embed: _CountedEmbedding,
    captions: PictureWords,
    provider: Provider,
    categories_from: str,
    price_from: str,
    slots: int,
) -> bool:
    """Write it all; returns whether the categories are those of the metadata."""
    reviews, metadata, fold = given.table, given.metadata, given.fold
    users, items = given.ids["user"], given.ids["item"]
    texts = given.texts
    described = captions(given.column("captions"), given.column("images"))
    words, pictures = build_corpora(
        [(texts, [split_sentences(text) for text in texts]), ([None] * len(texts), described)], embed
    )
    text_vectors, image_vectors = (
        words.document_means(normalize=True),
        pictures.document_means(normalize=False),
    )
    has_words, has_pictures = (np.diff(c.offsets) > 0 for c in (words, pictures))

    # Captions are texts too: one encoder makes both kinds of vector.
    dims = {"text_vector": words.vectors.shape[1], "image_vector": pictures.vectors.shape[1]}
    manifest.facts["vector_dims"] = {name.removesuffix("_vector"): dim for name, dim in dims.items()}

    n = reviews.num_rows
    silent = not has_words[:n].any()
    categories_from_items, price_from_items = (
        chosen == "items" or (chosen == "auto" and silent and any(m.get(name) is not None for m in metadata))
        for chosen, name in ((categories_from, "categories"), (price_from, "price"))
    )
    columns = [reviews["user_id"], reviews["item_id"], fold]
    columns += [_vectors(text_vectors[:n], has_words[:n]), _vectors(image_vectors[:n], has_pictures[:n])]
    manifest.rows["reviews"] = _write(columns, with_vectors(schema.REVIEW_CONTENT, dims), folder / "reviews")

    known = np.flatnonzero(has_words[n:] | has_pictures[n:])
    columns = [
        [items[i] for i in known],
        *(
            _vectors(v[n:][known], h[n:][known])
            for v, h in ((text_vectors, has_words), (image_vectors, has_pictures))
        ),
    ]
    manifest.rows["metadata"] = _write(
        columns, with_vectors(schema.METADATA_CONTENT, dims), folder / "metadata"
    )

    writer, times = provider.read(words), given.times
    user_side = list(given.versions("user"))
    columns, summary_vectors, contents = _described(writer, "user", users, user_side, words, times, embed)
    columns += [[content.likes[:slots] for content in contents], [c.avoids[:slots] for c in contents]]
    kind = with_vectors(schema.USER_CONTENT, {"text_vector": dims["text_vector"]})
    manifest.rows["users"] = _write([*columns, summary_vectors], kind, folder / "users")

    item_side = list(given.versions("item"))
    columns, summary_vectors, contents = _described(writer, "item", items, item_side, words, times, embed)
    seen = _means([pictures.pieces_of(documents) for *_, documents in item_side], pictures, normalize=False)
    code = [c for c, *_ in item_side]
    if price_from_items:
        prices = np.asarray([np.nan if m.get("price") is None else m["price"] for m in metadata], np.float64)
        by_item = tercile_tags(prices)
        tags = [by_item[c] for c in code]
    else:
        tags = [content.price_tag for content in contents]
    if categories_from_items:
        kinds = [metadata[c].get("categories") or [] for c in code]
    else:
        kinds = [content.categories for content in contents]
    columns += [tags, [names[:slots] for names in kinds], summary_vectors, seen]
    manifest.rows["items"] = _write(columns, with_vectors(schema.ITEM_CONTENT, dims), folder / "items")

    manifest.facts |= {"texts": len(words.pieces), "embedded": embed.embedded}
    manifest.facts["reviews_with_words"] = int(has_words[:n].sum())
    manifest.facts["reviews_with_pictures"] = int(has_pictures[:n].sum())
    parts = [*([] if price_from_items else ["price"]), *([] if categories_from_items else ["categories"])]
    if items_dir and (comparison := agreement(folder, items_dir, slots, tuple(parts))):
        manifest.facts["agreement"] = comparison
    manifest.facts["from_items"] = {"categories": categories_from_items, "price": price_from_items}
    return categories_from_items


def _described(
    writer: Writer,
    side: str,
    ids: list[str],
    entities: list[tuple[int, int, np.ndarray]],
    corpus: Corpus,
    times: np.ndarray | None,
    embed: Callable[[list[str]], np.ndarray],
) -> tuple[list, pa.Array, list[Content]]:
    """The columns id, fold and summary; the summaries' vectors; and all that the writer answered."""

    def requests() -> Iterator[EntityReviews]:
        for code, fold, documents in track(entities, f"describing {side}s", len(entities)):
            known = None if times is None else times[documents]
            yield EntityReviews(ids[code], side, fold, documents, corpus, known)

    contents = list(writer.describe(requests()))
    _check_contents(contents, len(entities))
    distinct: dict[str, int] = {}
    summary_pieces = [
        np.fromiter((distinct.setdefault(s, len(distinct)) for s in content.summary), np.int64)
        for content in contents
    ]
    sentences = Corpus(
        [], np.zeros(1, np.int64), np.zeros(0, np.int64), list(distinct), embed(list(distinct))
    )
    summaries = [" ".join(map(_ended, content.summary)) or None for content in contents]
    vectors = _means(summary_pieces, sentences, normalize=True)
    return [[ids[c] for c, *_ in entities], [f for _, f, _ in entities], summaries], vectors, contents


def _check_contents(contents: list[Content], entities: int) -> None:
    if len(contents) != entities:
        raise DataError(f"extract.provider: answered {len(contents)} of {entities} requests; one each is due")
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


def _means(groups: list[np.ndarray], corpus: Corpus, normalize: bool) -> pa.Array:
    """The mean vector of each group of the corpus's pieces, null where a group is empty."""
    offsets = offsets_of(map(len, groups))
    piece = np.concatenate([np.zeros(0, np.int64), *groups])
    grouped = Corpus([None] * len(groups), offsets, piece, corpus.pieces, corpus.vectors)
    return _vectors(grouped.document_means(normalize), np.diff(offsets) > 0)


def _vectors(vectors: np.ndarray, present: np.ndarray) -> pa.Array:
    """f32 [N, V] as the tables hold it; null where not present."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(~present))


def _write(columns: list, kind: pa.Schema, folder: Path) -> int:
    arrays = [
        column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, field.type)
        for column, field in zip(columns, kind, strict=True)
    ]
    return write_table(pa.Table.from_arrays(arrays, names=kind.names).cast(kind), folder)
