"""What the stages of the table do: each hands its settings and folders to the function that does it.

Nothing that a stage works with is imported before the stage is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig, variant
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage works on at a time."""

    config: RunConfig  # as the seed and the variant change it
    paths: RunPaths  # of the seed; of the first one for a stage that works once for all
    all_paths: Sequence[RunPaths]  # of all seeds
    variant: str = ""


def ingest(work: Work) -> Manifest:
    from dlrrec_torchrec.ingest.stage import ingest

    return ingest(work.config.ingest, work.paths.reviews, work.paths.items)


def split(work: Work) -> Manifest:
    from dlrrec_torchrec.split.stage import split

    return split(work.config.split, work.config.protocol, work.paths.reviews, work.paths.split)


def extract(work: Work) -> Manifest:
    from dlrrec_torchrec.extract.stage import extract

    paths = work.paths
    folders = paths.split, paths.items, paths.content, paths.cache
    return extract(work.config.extract, *folders, **extract_settings(work.config))


def extract_settings(config: RunConfig) -> dict[str, Any]:
    """What `extract` takes besides its own section and folders."""
    reviews = config.ingest.reviews
    folder = Path(reviews).parent if reviews else None
    return {"llm": config.llm, "pictures": config.pictures, "picture_folder": folder}


def check_extract(config: RunConfig) -> None:
    from dlrrec_torchrec.extract.cluster.connection import RayCluster
    from dlrrec_torchrec.extract.providers.registry import make_provider

    settings = config.extract
    make_provider(settings.provider, settings.summary_sentences, settings.provider_options, config.llm)
    if settings.engine == "ray":
        RayCluster(settings.address)


def swing(work: Work) -> Manifest:
    from dlrrec_torchrec.swing_stage import neighbors

    return neighbors(work.config.swing, work.paths.split, work.paths.swing)


def check_swing(config: RunConfig) -> None:
    from dlrrec_torchrec.swing_stage import parameters

    parameters(config.swing)


def prepare(work: Work) -> Manifest:
    from dlrrec_torchrec.prepare.stage import prepare

    paths = work.paths
    return prepare(work.config.prepare, paths.split, paths.content, paths.swing, paths.items, paths.shards)


def check_prepare(config: RunConfig) -> None:
    from dlrrec_torchrec.features.dense import dense_width
    from dlrrec_torchrec.prepare.own_vectors import vector_files

    dense_width(config.prepare.dense)
    vector_files(config.prepare.vectors)


def check_prepare_input(work: Work) -> None:
    from dlrrec_torchrec.prepare.inputs import check_ratings, rating_range
    from dlrrec_torchrec.store.files import read_table
    from dlrrec_torchrec.store.schema import SPLIT, SPLITS

    bounds = rating_range(work.config.prepare.rating_range, work.paths.split)
    for folder in (work.paths.split / part for part in SPLITS):
        check_ratings(folder, read_table(folder, SPLIT, ["rating"])["rating"].to_numpy(), bounds)


def train(work: Work) -> Manifest:
    from dlrrec_torchrec.training.stage import train

    config, shards, out = work.config, work.paths.shards, work.paths.train(work.variant)
    return train(config.model, config.contrastive, config.train, config.protocol, shards, out, config.list)


def check_train(config: RunConfig) -> None:
    trained = [variant(config, name).train for name in config.variants]
    if any(t.device == "cuda" or t.comms == "bf16" or t.compile for t in trained):
        from dlrrec_torchrec.training.requirements import check_machine

        for settings in trained:
            check_machine(settings.device, settings.comms, settings.compile)


def evaluate(work: Work) -> Manifest:
    from dlrrec_torchrec.evaluation.stage import evaluate

    paths = work.paths
    known = {name: paths.reviews / file for name, file in (("truth", "truth.parquet"), ("law", "law.npz"))}
    known = {name: file for name, file in known.items() if file.exists()}
    trained = {name: paths.train(name) for name in work.config.variants}
    settings = known | dataclasses.asdict(work.config.evaluate)
    folders = {"split_dir": paths.split, "content_dir": paths.content}
    return evaluate(trained, paths.shards, paths.evaluation, **settings, **folders)


def refit(work: Work) -> Manifest:
    from dlrrec_torchrec.stages.refit import refit

    return refit(work.config, work.paths)


def show_report(work: Work) -> str:
    from dlrrec_torchrec.report.stage import format_table

    return format_table(work.paths.report)
