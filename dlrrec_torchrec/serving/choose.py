"""Which model of a run is served: the variant that validation prefers, refitted where that is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from dlrrec_torchrec.metrics import selection_key
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import MANIFEST, stage_of
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths

REFIT = "refit"  # the stage that writes `RunPaths.final`
_SPLITS = {"val": "validation"}
RULES = {  # of `metrics.selection_key`, in words
    "auc": "AUC",
    "mixture": "NDCG@20 + Recall@20 / 2 + AUC",
    "paper": "false-positive rate",
}


@dataclasses.dataclass(frozen=True)
class Served:
    """A model to recommend with.

    Attributes:
        shards_dir, train_dir: its folders.
        text: which it is and why, in words.
    """

    shards_dir: Path
    train_dir: Path
    text: str


def served(
    paths: RunPaths, variants: Iterable[str], name: str | None = None, evaluated: bool = False
) -> Served:
    """The model of a run to recommend with: the refitted one (`RunPaths.final`), where that is current.

    Args:
        variants: of the run.
        name: one of them; None: the `preferred` one.
        evaluated: the model that was evaluated, though there is a refitted one.

    Raises:
        DataError: the variant, or with None every one, is not trained on the run's shards.
    """
    if name is None:
        trained = trained_variants(paths, variants)
        name, text = preferred(trained)
    else:
        trained, text = trained_variants(paths, [name]), f"'{name}'"
    if not evaluated and stage_of(paths.final) == REFIT and (paths.final / MANIFEST).exists():
        final, final_paths = Manifest.read(paths.final), paths.refitted
        there = final.config["variant"] == name and (final_paths.train(name) / MANIFEST).exists()
        if there and _is_of(final, paths, trained[name]):
            return Served(final_paths.shards, final_paths.train(name), f"{text}, refitted on all reviews")
        if there:
            text += ", as evaluated (the refitted one is of an earlier training: `dlrrec refit`)"
    return Served(paths.shards, paths.train(name), text)


def trained_variants(paths: RunPaths, variants: Iterable[str]) -> dict[str, Manifest]:
    """The manifests of those variants that are trained on the run's shards.

    Raises DataError where none is.
    """
    shards, variants = Manifest.read(paths.shards), list(variants)
    finished = {name: paths.train(name) for name in variants if stage_of(paths.train(name)) == "train"}
    finished = {name: folder for name, folder in finished.items() if (folder / MANIFEST).exists()}
    manifests = {name: Manifest.read(folder) for name, folder in finished.items()}
    trained = {name: m for name, m in manifests.items() if m.inputs.get("shards") == shards.fingerprint}
    if not trained:
        at = paths.train(variants[0])
        if not manifests:
            Manifest.read(at)  # says what is missing
        raise DataError(f"{at}: not trained on {paths.shards}; run `dlrrec train` again")
    return trained


def preferred(trained: Mapping[str, Manifest]) -> tuple[str, str]:
    """The variant that validation prefers, of equal ones the first; and in words, why.

    By the rule that selected the epochs (`selection_key`) if that was the same for all, else by AUC, on the
    rows that selected: validation, and under protocol `paper` the test rows.

    Args:
        trained: variant -> the manifest of its training.
    """
    if len(trained) == 1:
        (only,) = trained
        return only, f"'{only}'"
    rules = {manifest.facts.get("rule") for manifest in trained.values()}
    rule = next(iter(rules)) if len(rules) == 1 and None not in rules else "auc"
    keys = {name: selection_key(rule, manifest.facts["best"]) for name, manifest in trained.items()}
    best = max(keys, key=lambda name: keys[name])
    split = trained[best].facts["split"]
    by = f"{_SPLITS.get(split, split)} {RULES.get(rule, rule)}"
    return best, f"'{best}', of {len(trained)} variants the best by {by}"


def refit_inputs(paths: RunPaths, evaluated: Manifest) -> dict[str, str]:
    """The fingerprints that a refitted model stands on: reviews, items where there are any, and the
    evaluated training, which names all that was made of these.
    """
    folders = {"reviews": paths.reviews, "items": paths.items}
    inputs = {
        name: Manifest.read(folder).fingerprint
        for name, folder in folders.items()
        if (folder / MANIFEST).exists()
    }
    return inputs | {"evaluated": evaluated.fingerprint}


def _is_of(final: Manifest, paths: RunPaths, evaluated: Manifest) -> bool:
    """Whether the refitted model is of this training; folders that were taken away change nothing."""
    now = refit_inputs(paths, evaluated)
    return all(final.inputs.get(name) == fingerprint for name, fingerprint in now.items())
