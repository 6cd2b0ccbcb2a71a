"""The stage: training reviews (and item metadata) in, content tables out."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from dlrrec_torchrec.config import ExtractConfig, LlmConfig, PicturesConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.extract.cluster.cluster_encoder import ClusterEncoder
from dlrrec_torchrec.extract.cluster.connection import RayCluster
from dlrrec_torchrec.extract.content_tables import CountedEmbedding, write_content
from dlrrec_torchrec.extract.encoder import Encoder, SentenceEncoder
from dlrrec_torchrec.extract.llm.one_budget import one_budget
from dlrrec_torchrec.extract.new_items import write_cold
from dlrrec_torchrec.extract.pictures.picture_words import PictureWords, make_captioner
from dlrrec_torchrec.extract.providers.language_model import check_packages
from dlrrec_torchrec.extract.providers.registry import make_provider
from dlrrec_torchrec.extract.training_reviews import (
    item_metadata,
    read_training_reviews,
)
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output

LOSSY = (
    "extract.encoder_precision=int8: vectors differ from the encoder's own; "
    "`dlrrec bench encode --precision int8` measures how far, docs/modalities.md has AUC and Recall with both"
)


@one_budget()
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
    cluster = RayCluster(config.address) if config.engine == "ray" else None
    encoder = encoder or _encoder(config, llm, cluster, Path(cache_dir))
    items_dir = Path(items_dir) if (Path(items_dir) / "manifest.json").exists() else None
    inputs = {"split": Manifest.read(split_dir).fingerprint, "encoder": encoder.identity}
    if items_dir:
        inputs["items"] = Manifest.read(items_dir).fingerprint
    provenance = {
        "provider": provider.name,
        "model": provider.model,
        "fingerprint": provider.fingerprint,
    }
    captions = _picture_words(pictures, llm, cluster, picture_folder, cache_dir)
    if captions.captioner:
        provenance["captioner"] = captions.captioner.identity
    settings = jsonable(config) | {"provenance": provenance}
    del settings["engine"], settings["address"]  # the result is the same
    manifest = Manifest("extract", settings, inputs)
    if current := manifest.current(out_dir):
        return current
    if begin := getattr(provider, "begin", None):
        begin()
    with (
        stage_output(manifest, out_dir) as folder,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        cluster or contextlib.nullcontext(),
    ):
        embed, scratch = CountedEmbedding(encoder, Path(cache_dir) / "vectors"), Path(temporary)
        categories_from_items = write_content(
            folder,
            manifest,
            read_training_reviews(config, Path(split_dir) / "train", items_dir, scratch),
            items_dir,
            embed,
            captions,
            provider,
            config.categories_from,
            config.price_from,
            config.category_slots,
            scratch,
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
                scratch,
            )
        if record := getattr(provider, "record", None):
            manifest.facts[provider.name] = record(folder)
        manifest.facts["pictures"] = captions.record(folder / "pictures")
        if budget := getattr(encoder, "budget", None):
            manifest.facts["vectors"] = budget.facts
        manifest.facts |= provenance | {"encoder": config.encoder, "category_slots": config.category_slots}
        if pictures.picture_vectors != "captions":
            manifest.facts["image_encoder"] = pictures.resnet_model
        manifest.facts |= {"fold_by": config.fold_by, "engine": config.engine}
    return manifest


def _picture_words(
    settings: PicturesConfig,
    llm: LlmConfig,
    cluster: RayCluster | None,
    picture_folder: str | os.PathLike | None,
    cache_dir: str | os.PathLike,
) -> PictureWords:
    """What makes captions, or vectors, of pictures."""
    folder, cache_dir = Path(picture_folder) if picture_folder else None, Path(cache_dir)
    if settings.picture_vectors == "resnet":
        from dlrrec_torchrec.extract.pictures.picture_vectors import PictureVectors

        return PictureVectors(settings, folder, cache_dir)
    return PictureWords(settings, make_captioner(settings, llm, cluster), folder, cache_dir)


def _encoder(config: ExtractConfig, llm: LlmConfig, cluster: RayCluster | None, cache_dir: Path) -> Encoder:
    where, colon, model = config.encoder.partition(":")
    if where == "server" and colon:
        if not model:
            raise DataError("extract.encoder (--encoder) 'server:': name the model too, as server:MODEL")
        check_packages()
        from dlrrec_torchrec.extract.llm.embeddings import ServerEncoder

        return ServerEncoder(model, llm)
    if cluster:
        return ClusterEncoder(cluster, config.encoder, config.batch_tokens)
    if config.encoder_precision != "exact":
        print(LOSSY, file=sys.stderr)
    return SentenceEncoder(
        config.encoder,
        config.batch_tokens,
        precision=config.encoder_precision,
        converted=cache_dir / "encoders",
    )
