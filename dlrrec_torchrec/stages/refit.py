"""Stage `refit`: the stages from the split to the training once more, with every review a training row.

The evaluation needs rows that the model has not seen; who uses the model wants it to have seen everything.
Nothing is chosen here, as no row is left to choose by: the variant, its settings, the number of epochs, the
wide path's penalty, the calibration and the lists' share of the rating are the evaluated training's.
"""

from __future__ import annotations

import dataclasses
import json

from dlrrec_torchrec.config import (
    ContrastiveConfig,
    ListConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    variant,
)
from dlrrec_torchrec.distributed.launcher import is_launched
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.serving.choose import REFIT, preferred, refit_inputs, trained_variants
from dlrrec_torchrec.split.stage import keep_all
from dlrrec_torchrec.stages.actions import extract_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import MANIFEST, UNFINISHED, check_output, remove_own, write_text_atomic
from dlrrec_torchrec.store.manifest import Manifest, jsonable, timed
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.swing_stage import neighbors
from dlrrec_torchrec.training.selection import Evaluated
from dlrrec_torchrec.training.stage import FREE, train


def refit(config: RunConfig, paths: RunPaths) -> Manifest:
    """Fill `paths.final` with split, content, swing, shards and the training of the preferred variant.

    Each of these has its own manifest, so that an interrupted call goes on where it stopped; only reviews
    that were not training rows before have sentences that the cache lacks.

    Raises DataError where no variant is trained on the run's shards, under a launcher, and where
    `paths.final` holds something else.
    """
    if is_launched():
        raise DataError("refit: works in one process; call `dlrrec refit` without a launcher")
    trained = trained_variants(paths, config.variants)
    name, why = preferred(trained)
    evaluated = trained[name]
    settings = {key: jsonable(getattr(config, key)) for key in ("extract", "swing", "prepare")}
    settings |= {"variant": name, "positive_rating": config.split.positive_rating}
    manifest = Manifest(REFIT, settings, refit_inputs(paths, evaluated))
    previous = manifest.current(paths.final)
    if previous and (paths.refitted.train(name) / MANIFEST).exists():  # not if a damaged one was deleted
        return previous
    check_output(paths.final, REFIT)
    write_text_atomic(paths.final / UNFINISHED, json.dumps({"stage": REFIT}) + "\n")
    (paths.final / MANIFEST).unlink(missing_ok=True)
    final = paths.refitted
    with timed(manifest):
        try:
            made = _make(config, paths, name, evaluated)
        except DataError as error:
            raise type(error)(f"refit: {error}; flags are those of `dlrrec run`") from None
        for other in final.trainings.iterdir():
            if other != final.train(name):
                remove_own(other, "train")
    manifest.peak_memory_mib = max(stage.peak_memory_mib for stage in made.values())  # each reset the peak
    manifest.rows = {key: made["prepare"].rows[key] for key in ("train", "users", "items")}
    manifest.facts = {"variant": name, "chosen": why, "epochs": made["train"].facts["epochs"]}
    manifest.write(paths.final)
    (paths.final / UNFINISHED).unlink(missing_ok=True)
    return manifest


def _make(config: RunConfig, paths: RunPaths, name: str, evaluated: Manifest) -> dict[str, Manifest]:
    """All stages from the split on, in `paths.final`; their manifests by name."""
    final = paths.refitted
    return {
        "split": keep_all(config.split.positive_rating, paths.reviews, final.split),
        "extract": extract(
            config.extract,
            final.split,
            paths.items,
            final.content,
            paths.cache,
            **extract_settings(config),
        ),
        "swing": neighbors(config.swing, final.split, final.swing),
        "prepare": prepare(
            config.prepare, final.split, final.content, final.swing, paths.items, final.shards
        ),
        "train": _train(evaluated, variant(config, name).train, final, name),
    }


def _train(evaluated: Manifest, running: TrainConfig, final: RunPaths, name: str) -> Manifest:
    """Train as `evaluated` was; of `running` only what does not change the result."""
    kinds = {"model": ModelConfig, "contrastive": ContrastiveConfig, "list": ListConfig, "train": TrainConfig}
    stored = {
        key: from_dict(kind, evaluated.config[key], f"{key} of '{name}'") if evaluated.config[key] else None
        for key, kind in kinds.items()
    }
    settings = dataclasses.replace(stored["train"], **{key: getattr(running, key) for key in FREE})
    return train(
        stored["model"],
        stored["contrastive"],
        settings,
        evaluated.config["protocol"],
        final.shards,
        final.train(name),
        stored["list"],
        Evaluated.of(evaluated),
    )
