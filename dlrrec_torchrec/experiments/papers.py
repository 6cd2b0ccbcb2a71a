"""The papers' own experiments, with the papers' model, rules and published numbers.

DLRREC: Tian and Wang, "DLRREC: Denoising Latent Representations via Multi-Modal Knowledge Fusion in Deep
Recommender Systems". MMREC: Tian et al. 2024, "MMREC: LLM Based Multi-Modal Recommender System", whose model
DLRREC calls V0. Where a choice is from is told in docs/papers.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.definitions import Cell, Contrast, Experiment, Group, Options
from dlrrec_torchrec.experiments.search_space import value_of, with_values

TEXT, IMAGE = ("user_text", "item_text"), ("item_image",)
INPUTS = {"text": [*TEXT], "image": [*IMAGE], "text + image": [*TEXT, *IMAGE]}
# MMREC section 5.2: what its base model and its proposed one know of a review.
BASE_DENSE = ["item_count", "user_mean", "item_mean"]
PROPOSED_DENSE = [*BASE_DENSE, "price"]
RATES = ("accuracy", "fpr", "loss", "auc")
# Without an end of its own, a training by the papers' rule ends 50 epochs after epoch 300 at the earliest.
EPOCHS = 400
QUICK_EPOCHS = 8

PAPERS_MODEL: dict[str, Any] = {
    "refit": False,
    "prepare.affinity": False,
    "prepare.dense": PROPOSED_DENSE,
    "prepare.text": "summary",
    "model.text_tower": [256, 32],
    "model.image_tower": [64, 32],
    "model.tower_norm": "batch",
    "model.tower_dropout": 0.0,
    "model.towers": {},
    "model.dense_arch": [64, 16],
    "model.over_arch": [256, 16, 1],
    "model.interaction": "pairwise",
    "model.embedding_dim": 32,
    "model.category": True,
    "model.user_id": False,
    "model.item_id": False,
    "model.wide": False,
    "model.residual": [],
    "model.dropout": 0.1,
    "model.vectors": "row",
    "list.weight": 0.0,
    "train.batch_size": 1024,
    "train.lr": 0.01,
    "train.weight_decay": 0.0,
    "train.schedule": "constant",
    "train.warmup_steps": 0,
    "train.class_weights": "normalized",
    "train.select": "auc",
    "train.patience": 20,
    "train.log_steps": 0,
}

# DLRREC Table 1: accuracy and false-positive rate on test rows. (model, inputs, loss) -> both.
TABLE1 = {
    ("DLRREC", "text", "BCE + contrastive"): (0.993, 0.0036),
    ("DLRREC", "text", "BCE"): (0.9770, 0.0107),
    ("DLRREC", "image", "BCE"): (0.8910, 0.1620),
    ("DLRREC", "text + image", "BCE + contrastive"): (0.9970, 0.0015),
    ("DLRREC", "text + image", "BCE"): (0.9846, 0.0120),
    ("V0", "text", "BCE"): (0.7910, 0.1910),
    ("V0", "image", "BCE"): (0.5790, 0.2830),
    ("V0", "text + image", "BCE"): (0.8350, 0.1820),
}
NO_IMAGES = "{}: no picture has words or vectors here, so cells with images are left out"


def papers_config(
    base: RunConfig, protocol: str, options: Options, changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Settings of a group: data of `base`, the papers' model and training, then `changes`, then what the
    command line gave.

    Under "paper" a training row leaves out its own review alone, as the papers say; under "strict" the reviews
    of its fold, which keeps rows from telling each other's labels.
    """
    statistics = "ordered" if base.extract.fold_by == "time" else "folds"
    values = PAPERS_MODEL | {"protocol": protocol, "seeds": options.seeds}
    values |= {"prepare.statistics": "row" if protocol == "paper" else statistics}
    values |= {"train.epochs": options.epochs or (QUICK_EPOCHS if options.quick else EPOCHS)}
    values |= dict(changes or {})
    values |= {name: value_of(base, name) for name in options.given}
    return with_values(base, values)


def has_images(base: RunConfig) -> bool:
    """Whether the data's configuration lets rows have vectors of pictures."""
    return base.prepare.modalities is None or "item_image" in base.prepare.modalities


def by_data(options: Options) -> Iterator[tuple[str, RunConfig, str]]:
    """(data, its settings, protocol) of the groups that every experiment has."""
    for (data, base), protocol in itertools.product(options.data.items(), options.protocols):
        yield data, base, protocol


def group_name(options: Options, data: str, *parts: str) -> str:
    """The name of a group's folder, without the data's where there is one only."""
    return "-".join([*([data] if len(options.data) > 1 else []), *parts]).replace(" ", "")


def v0_reduction(inputs: list[str]) -> list[list[str]]:
    """What V0 concatenates and reduces together: both texts, and the picture (MMREC section 5.2)."""
    texts, images = ([name for name in inputs if name in kind] for kind in (TEXT, IMAGE))
    return [group for group in (texts, images) if group]


def v0(inputs: list[str]) -> dict[str, Any]:
    """Changes of a cell that make it V0 with these vectors."""
    return {
        "model": {"modalities": inputs, "reduction": "upstream", "joined": v0_reduction(inputs)},
        "contrastive": {"item_weight": 0.0, "user_weight": 0.0},
    }


def dlrrec(inputs: list[str], contrastive: bool = True) -> dict[str, Any]:
    """Changes of a cell that make it DLRREC with these vectors; the user term needs a vector of users."""
    weights = {} if contrastive else {"item_weight": 0.0}
    if not contrastive or not set(inputs) & {"user_text"}:
        weights |= {"user_weight": 0.0}
    return {"model": {"modalities": inputs}, "contrastive": weights}


def table1(options: Options) -> Experiment:
    """DLRREC Table 1."""
    groups, notes = [], []
    for data, base, protocol in by_data(options):
        cells = []
        for name, inputs in INPUTS.items():
            if not has_images(base) and IMAGE[0] in inputs:
                continue
            short = name.replace(" + ", "-")
            models = {
                ("DLRREC", "BCE + contrastive"): (f"dlrrec-{short}", dlrrec(inputs)),
                ("DLRREC", "BCE"): (f"bce-{short}", dlrrec(inputs, contrastive=False)),
                ("V0", "BCE"): (f"v0-{short}", v0(inputs)),
            }
            for (model, loss), (folder, changes) in models.items():
                levels = {"model": model, "inputs": name, "loss": loss}
                numbers = TABLE1.get((model, name, loss))
                published = dict(zip(("accuracy", "fpr"), numbers, strict=True)) if numbers else {}
                cells.append(Cell(folder, levels, changes, published))
        if not has_images(base):
            notes.append(NO_IMAGES.format(data))
        config = papers_config(base, protocol, options)
        levels = {"data": data, "protocol": protocol}
        groups.append(Group(group_name(options, data, protocol), levels, config, tuple(cells)))
    return Experiment(
        name="table1",
        title="DLRREC Table 1",
        question="What do co-trained towers and the contrastive terms add to V0, by text, by images and by both?",
        groups=tuple(groups),
        metrics=RATES,
        compared=("auc", "accuracy", "fpr"),
        contrasts=(Contrast("loss", "BCE"), Contrast("model", "V0"), Contrast("inputs", "text")),
        notes=tuple(dict.fromkeys(notes)),
    )
