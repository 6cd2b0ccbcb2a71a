"""The main job: every stage in order, each skipped while its manifest matches its inputs and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

from dlrrec_torchrec.config import RunConfig, variant
from dlrrec_torchrec.store.folders import check_output, remove_own, write_text_atomic
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.paths import RunPaths, run_paths

STAGES = ("ingest", "split", "extract", "swing", "prepare", "train", "evaluate", "report")


def for_seed(config: RunConfig, number: int) -> RunConfig:
    """The settings of the `number`-th repetition: another split and other weights, the rest alike."""
    return dataclasses.replace(
        config,
        split=dataclasses.replace(config.split, seed=config.split.seed + number),
        train=dataclasses.replace(config.train, seed=config.train.seed + number),
        variants={
            name: {
                section: {
                    k: v + number if (section, k) == ("train", "seed") else v for k, v in changes.items()
                }
                for section, changes in (sections or {}).items()
            }
            for name, sections in config.variants.items()
        },
    )


def run_stage(stage: str, config: RunConfig, paths: RunPaths) -> list[Manifest]:
    """Run one stage for one seed (unless it is current) and return what it reports.

    Raises DataError where one of its folders holds what the stage did not write (before anything is done).
    """
    _check_outputs((stage,), config, [paths])
    if stage == "ingest":
        from dlrrec_torchrec.ingest.stage import ingest

        return [ingest(config.ingest, paths.reviews, paths.items)]
    if stage == "split":
        from dlrrec_torchrec.split import split

        return [split(config.split, config.protocol, paths.reviews, paths.split)]
    if stage == "extract":
        from dlrrec_torchrec.extract.stage import extract

        return [extract(config.extract, paths.split, paths.items, paths.content, paths.cache)]
    if stage == "swing":
        from dlrrec_torchrec.swing_stage import neighbors

        return [neighbors(config.swing, paths.split, paths.swing)]
    if stage == "prepare":
        from dlrrec_torchrec.prepare.stage import prepare

        return [prepare(config.prepare, paths.split, paths.content, paths.swing, paths.items, paths.shards)]
    if stage == "train":
        return [train_variant(config, name, paths) for name in config.variants]
    if stage == "evaluate":
        from dlrrec_torchrec.evaluation.stage import evaluate

        truth = paths.reviews / "truth.parquet"
        directories = {name: paths.train(name) for name in config.variants}
        return [
            evaluate(directories, paths.shards, paths.evaluation, truth=truth if truth.exists() else None)
        ]
    raise ValueError(f"no stage '{stage}' (stages: {', '.join(STAGES)})")


def train_variant(config: RunConfig, name: str, paths: RunPaths) -> Manifest:
    """Train one of the run's variants."""
    from dlrrec_torchrec.training.stage import train

    chosen = variant(config, name)
    return train(
        chosen.model, chosen.contrastive, chosen.train, chosen.protocol, paths.shards, paths.train(name)
    )


def run(
    config: RunConfig,
    root: str | Path,
    *,
    until: str = "report",
    force: bool = False,
    say: Callable[[str], None] = print,
) -> list[RunPaths]:
    """Run every stage up to `until` for every seed; returns the folders, one for each seed.

    Stages that are current are not repeated, so an interrupted run goes on where it stopped. `force` begins
    anew, keeping only the cache of vectors.

    Raises DataError, before any stage has begun, where a folder that a stage is to write holds what it did
    not write.
    """
    every = run_paths(root, config.seeds)
    stages = STAGES[: STAGES.index(until) + 1]
    _check_outputs(stages, config, every)
    if force:
        _forget(every)
    write_text_atomic(Path(root) / "config.yaml", yaml.safe_dump(jsonable(config), sort_keys=False))
    for number, paths in enumerate(every):
        if config.seeds > 1:
            say(f"seed {number + 1} of {config.seeds}: {paths.root}")
        for stage in stages:
            if stage == "report" or (stage == "ingest" and number):
                continue
            names = list(config.variants) if stage == "train" else [""]
            manifests = run_stage(stage, for_seed(config, number), paths)
            for name, manifest in zip(names, manifests, strict=True):
                say(describe(f"{stage} {name}", manifest))
    if "report" in stages:
        from dlrrec_torchrec.report.stage import report

        report(every, list(config.variants), every[0].report)
    return every


def describe(stage: str, manifest: Manifest) -> str:
    """One line on a finished stage."""
    if manifest.reused:
        return f"{stage:<14} up to date"
    rows = ", ".join(f"{count:,} {name}" for name, count in manifest.rows.items())
    return f"{stage:<14} {manifest.seconds:7.1f} s {manifest.peak_memory_mib:7,.0f} MiB  {rows}"


def _outputs(stage: str, variants: Iterable[str], paths: RunPaths) -> list[tuple[str, Path]]:
    """The folders that a stage writes for one seed, each with the stage that its manifest names."""
    return {
        "ingest": [("ingest", paths.reviews), ("ingest-items", paths.items)],
        "split": [("split", paths.split)],
        "extract": [("extract", paths.content)],
        "swing": [("swing", paths.swing)],
        "prepare": [("prepare", paths.shards)],
        "train": [("train", paths.train(name)) for name in variants],
        "evaluate": [("evaluate", paths.evaluation)],
        "report": [("report", paths.report)],
    }.get(stage, [])


def _check_outputs(stages: Sequence[str], config: RunConfig, every: list[RunPaths]) -> None:
    for paths in every:
        for stage in stages:
            for writer, folder in _outputs(stage, config.variants, paths):
                check_output(folder, writer)


def _forget(every: list[RunPaths]) -> None:
    """Delete what the stages wrote, trainings of any variant included; what they did not write stays."""
    for paths in every:
        outputs = [output for stage in STAGES for output in _outputs(stage, (), paths)]
        outputs += [("train", folder) for folder in paths.root.glob("train/*")]
        for writer, folder in outputs:
            remove_own(folder, writer)
