"""`dlrrec experiment leakage`: what each leak adds to the papers' model, alone and with others."""

from __future__ import annotations

from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.definitions import Cell, Contrast, Experiment, Group, Options
from dlrrec_torchrec.experiments.eight_leaks import FILTER, LEAKS, SCENARIOS, Scenario
from dlrrec_torchrec.experiments.papers import (
    QUICK_EPOCHS,
    by_data,
    dlrrec,
    group_name,
    has_images,
    papers_config,
)
from dlrrec_torchrec.store.paths import RunPaths

# Mean vectors of the reviews, in which every review has its part: a summary of five sentences may leave the
# tested review out. Without class weights, so that what says "yes" to all has the accuracy of the majority.
# Batches of a quarter of the papers', so that a tenth of their rows has as many steps an epoch; and a tenth
# of their learning rate, at which the first steps leave hidden units for dead and all logits positive.
CHANGES: dict[str, Any] = {
    "prepare.text": "mean",
    "train.class_weights": "none",
    "train.batch_size": 256,
    "train.lr": 0.001,
    "train.epochs": 60,
    "train.patience": 8,
}
CHOSEN_ON = "epoch by"  # factor: rows by which the epoch is chosen
QUICK = ("clean", "a+b", "d", "a+d+h")
# Leaks under the papers' rule for the epoch too, (e): the others differ from these as they do without it.
CHOSEN_ON_TEST = ("clean", "a+b", "d", "a+d+h")


def leakage(options: Options) -> Experiment:
    """Each leak alone, several together, and none.

    All rows are split as protocol "strict" does; "paper" of the options is (e) here, and nothing else.
    """
    groups, notes = [], []
    for data, base, protocol in by_data(options):
        for scenario in SCENARIOS.values():
            if protocol == "paper" and scenario.name not in CHOSEN_ON_TEST:
                continue
            if options.quick and scenario.name not in QUICK:
                continue
            if scenario.pictures and not has_pictures(base):
                notes.append(f"{data}: reviews come without pictures, so no row for each picture can be made")
                continue
            groups.append(_group(options, data, base, protocol, scenario))
    return Experiment(
        name="leakage",
        title="Leaks",
        question="Which leak could make accuracy and false-positive rate as good as the papers report them?",
        groups=tuple(groups),
        metrics=("accuracy", "fpr", "auc"),
        compared=("accuracy", "fpr", "auc"),
        contrasts=(Contrast("leak", "clean", other_rows=True), Contrast(CHOSEN_ON, "validation")),
        notes=(
            *(f"({letter}) {line}" for letter, line in LEAKS.items()),
            "(e) is the epoch of the lowest false-positive rate on the test rows, else that of the highest "
            f"AUC on validation rows; (f) asks for {FILTER} reviews of a user and of an item",
            "(f) and a row for each picture have other test rows than the clean split, so that metrics are "
            "compared and not rows",
            *dict.fromkeys(notes),
        ),
    )


def has_pictures(base: RunConfig) -> bool:
    """Whether reviews of this source may have several pictures."""
    ingest = base.ingest
    known = ingest.source in ("synthetic", "google", "amazon") or "images" in ingest.columns
    return known and has_images(base)


def _group(options: Options, data: str, base: RunConfig, protocol: str, scenario: Scenario) -> Group:
    changes = CHANGES | ({"train.epochs": QUICK_EPOCHS} if options.quick else {})
    config = papers_config(base, protocol, options, changes)
    inputs = ["user_text", "item_text", *(["item_image"] if has_images(base) else [])]
    cells = (
        Cell("bce", {"objective": "BCE"}, dlrrec(inputs, contrastive=False)),
        Cell("dlrrec", {"objective": "BCE + contrastive"}, dlrrec(inputs)),
    )
    chosen_on = "test" if protocol == "paper" else "validation"
    levels = {"data": data, "leak": scenario.name, CHOSEN_ON: chosen_on, "protocol": "strict"}
    name = group_name(options, data, scenario.name.replace("+", ""), protocol)

    def make(seeded: RunConfig, paths: RunPaths) -> None:
        from dlrrec_torchrec.experiments.leaks import make_leaky

        make_leaky(scenario, seeded, paths)

    return Group(name, levels, config, cells, make)
