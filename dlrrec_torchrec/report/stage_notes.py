"""What the stages before the report found to be wrong, as notes in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlrrec_torchrec.report.about import PARTS
from dlrrec_torchrec.store.manifest import Manifest


def stage_notes(stages: Mapping[str, Sequence[Manifest]]) -> list[str]:
    """Notes from the manifests of every seed, with the seeds (from 0) where there are several.

    - split: held-out rows whose text a training row has too.
    - train: alarms that were not over at the end, and where no epoch improved on the logistic regression.

    Args:
        stages: stage, or "train: VARIANT" -> the manifest of each seed.
    """
    notes = []
    for label, manifests in stages.items():
        stage, _, variant = label.partition(": ")
        found: dict[str, tuple[str, list[int]]] = {}  # what -> the first seed's words, seeds
        for seed, manifest in enumerate(manifests):
            for what, text in (_of_split if stage == "split" else _of_training)(manifest).items():
                found.setdefault(what, (text, []))[1].append(seed)
        for text, seeds in found.values():
            of_seeds = f" (seed {', '.join(map(str, seeds))})" if len(manifests) > 1 else ""
            notes.append((f"{variant}: " if variant else "") + text + of_seeds)
    return notes


def _of_split(manifest: Manifest) -> dict[str, str]:
    copied = manifest.facts.get("copied_texts", {})
    return {
        part: f"{count:,} {PARTS.get(part, part)} rows have the very text of a training row (copied "
        "reviews): what is read from text may be better than it would be on new reviews"
        for part, count in copied.items()
        if count
    }


def _of_training(manifest: Manifest) -> dict[str, str]:
    if manifest.stage != "train":
        return {}
    facts = manifest.facts
    notes = {
        alarm["name"]: alarm["text"] + (f"; from step {alarm['step']:,} on" if alarm["step"] else "")
        for alarm in facts.get("alarms", [])
        if not alarm["over"]
    }
    if facts.get("start") and facts.get("best_epoch") == 0:
        notes["start"] = (
            "no epoch was better than the logistic regression of the dense features that training starts as: "
            "the model is that regression"
        )
    return notes
