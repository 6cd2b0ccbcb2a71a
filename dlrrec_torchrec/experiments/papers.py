"""The papers' own experiments, with the papers' model, rules and published numbers.

DLRREC: Tian and Wang, "DLRREC: Denoising Latent Representations via Multi-Modal Knowledge Fusion in Deep
Recommender Systems". MMREC: Tian et al. 2024, "MMREC: LLM Based Multi-Modal Recommender System", whose model
DLRREC calls V0. Where a choice is from is told in docs/papers.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.read import value_of, with_values
from dlrrec_torchrec.experiments.definitions import Cell, Contrast, Experiment, Group, Options

TEXT, IMAGE = ("user_text", "item_text"), ("item_image",)
INPUTS = {"text": [*TEXT], "image": [*IMAGE], "text + image": [*TEXT, *IMAGE]}
# MMREC section 5.2: what its base model and its proposed one know of a review.
BASE_DENSE = ["item_count", "user_mean", "item_mean"]
PROPOSED_DENSE = [*BASE_DENSE, "price"]
RATES = ("accuracy", "fpr", "yes", "loss", "auc")
# Without an end of its own, a training by the papers' rule ends 50 epochs after epoch 300 at the earliest.
EPOCHS = 400
QUICK_EPOCHS = 12
QUICK_BATCH = 128  # steps enough for an epoch of little data

PAPERS_MODEL: dict[str, Any] = {
    "refit": False,
    "split.min_reviews": 2,  # MMREC section 3.2; one review of a user leaves nothing to know her by
    "prepare.affinity": False,
    "prepare.dense": PROPOSED_DENSE,
    "prepare.text": "summary",
    "model.text_tower": [256, 32],
    "model.image_tower": [64, 32],
    "model.other_tower": [256, 32],  # of text and image in one, in MMREC's base model
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
    "model.dropout": 0.5,  # of the row of MMREC Table 2 that DLRREC Table 1 repeats as its V0
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

# DLRREC Table 1: accuracy and false-positive rate on test rows. (model, inputs, objective) -> both.
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
# MMREC Tables 1 and 2: (model, weights, dropout) -> accuracy, false-positive rate and loss of training rows,
# and of test rows.
MMREC = {
    ("proposed", "basic", 0.1): ((0.9162, 0.0202, 2.7), (0.8527, 0.2722, 50.18)),
    ("proposed", "basic", 0.3): ((0.8811, 0.0414, 4.08), (0.8402, 0.2084, 30.66)),
    ("proposed", "basic", 0.5): ((0.8606, 0.0706, 5.28), (0.8348, 0.1816, 15.96)),
    ("proposed", "square root", 0.1): ((0.9595, 0.0436, 4.36), (0.8805, 0.3868, 66.51)),
    ("proposed", "square root", 0.3): ((0.9414, 0.1369, 6.35), (0.8915, 0.3642, 49.68)),
    ("proposed", "square root", 0.5): ((0.9195, 0.1887, 9.19), (0.8902, 0.3182, 23.76)),
    ("base", "basic", 0.1): ((0.9251, 0.2658, 6.35), (0.9136, 0.3180, 9.32)),
    ("base", "basic", 0.3): ((0.9239, 0.2782, 6.82), (0.9189, 0.3174, 7.66)),
    ("base", "basic", 0.5): ((0.9223, 0.2827, 6.97), (0.9183, 0.3179, 7.64)),
    ("base", "square root", 0.1): ((0.9412, 0.2901, 10.46), (0.9296, 0.3526, 14.57)),
    ("base", "square root", 0.3): ((0.9397, 0.3102, 11.07), (0.9326, 0.3566, 12.62)),
    ("base", "square root", 0.5): ((0.9406, 0.3349, 11.54), (0.9347, 0.3758, 12.59)),
}
WEIGHTS = {"basic": "normalized", "square root": "sqrt_normalized"}  # MMREC section 5.1: both are normalised
LOSS_SCALE = (
    "The papers do not say over what their loss is summed or averaged; ours is the mean of the rows, "
    "unweighted, so the two do not compare."
)
CAPTIONS = (
    "{}: the base model's pictures are ResNet-50 vectors in MMREC; here they are those of captions, as "
    "picture files and weights are needed for the others (pictures.picture_vectors=resnet)."
)
NO_IMAGES = "{}: no picture has words or vectors here, so cells with images are left out"


def papers_config(
    base: RunConfig, protocol: str, options: Options, changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Settings of a group: data of `base`, the papers' model and training, then `changes`, then what the
    command line gave.

    Under "paper" a training row leaves out its own review alone, as the papers say; under "strict" the
    reviews of its fold, which keeps rows from telling each other's labels.
    """
    statistics = "ordered" if base.extract.fold_by == "time" else "folds"
    values = PAPERS_MODEL | {"protocol": protocol, "seeds": options.seeds}
    values |= {"prepare.statistics": "row" if protocol == "paper" else statistics}
    values |= {"train.epochs": QUICK_EPOCHS if options.quick else EPOCHS}
    values |= {"train.batch_size": QUICK_BATCH} if options.quick else {}
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


def v0_groups(inputs: Sequence[str]) -> list[list[str]]:
    """What V0 reduces together: both texts, and the picture by itself (MMREC section 5.2)."""
    texts, images = ([name for name in inputs if name in kind] for kind in (TEXT, IMAGE))
    return [group for group in (texts, images) if group]


def v0(inputs: list[str], groups: Sequence[Sequence[str]] | None = None) -> dict[str, Any]:
    """Changes of a cell that make it V0 with these vectors; `groups` are reduced together (`v0_groups`)."""
    joined = ["+".join(group) for group in groups or v0_groups(inputs) if len(group) > 1]
    return {
        "model": {"modalities": inputs, "reduction": "upstream", "joined": joined},
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
            for (model, objective), (folder, changes) in models.items():
                levels = {"model": model, "inputs": name, "objective": objective}
                numbers = TABLE1.get((model, name, objective))
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
        question="What do co-trained towers and contrastive terms add to V0, by text, by images, by both?",
        groups=tuple(groups),
        metrics=RATES,
        compared=("auc", "accuracy", "fpr"),
        contrasts=(Contrast("objective", "BCE"), Contrast("model", "V0"), Contrast("inputs", "text")),
        notes=tuple(dict.fromkeys(notes)),
    )


def mmrec(options: Options) -> Experiment:
    """MMREC Tables 1 and 2."""
    groups, notes = [], [LOSS_SCALE]
    for data, base, protocol in by_data(options):
        images = list(IMAGE) if has_images(base) else []
        pictures = base.pictures.picture_vectors
        if not images:
            notes.append(NO_IMAGES.format(data))
        elif pictures != "resnet":
            notes.append(CAPTIONS.format(data))
        # MMREC section 5.2: what each model is made of.
        kinds = {
            "base": (
                {"prepare.text": "mean", "prepare.dense": BASE_DENSE},
                v0([*TEXT, *images], [[*TEXT, *images]]),
            ),
            "proposed": ({"prepare.text": "summary"}, v0([*TEXT, *images])),
        }
        for kind, (settings, model) in kinds.items():
            if kind == "base":
                model["model"] |= {"category": False}
            cells = []
            for weights, dropout in itertools.product(WEIGHTS, (0.3,) if options.quick else (0.1, 0.3, 0.5)):
                changes = model | {"model": model["model"] | {"dropout": dropout}}
                changes |= {"train": {"class_weights": WEIGHTS[weights]}}
                train, test = MMREC[kind, weights, dropout]
                published = dict(zip(("train_accuracy", "train_fpr", "train_loss"), train, strict=True))
                published |= dict(zip(("accuracy", "fpr", "loss"), test, strict=True))
                levels = {"weights": weights, "dropout": f"{dropout}"}
                name = f"{WEIGHTS[weights]}-{dropout}"
                cells.append(Cell(name, levels, changes, published))
            config = papers_config(base, protocol, options, settings)
            if kind == "proposed":  # whatever the base's pictures are
                config = with_values(config, {"pictures.picture_vectors": "captions"})
            levels = {"data": data, "protocol": protocol, "model": kind}
            groups.append(Group(group_name(options, data, protocol, kind), levels, config, tuple(cells)))
    return Experiment(
        name="mmrec",
        title="MMREC Tables 1 and 2",
        question="What do summaries, captions, price and categories add to mean vectors of reviews?",
        groups=tuple(groups),
        metrics=("train_accuracy", "accuracy", "train_fpr", "fpr", "yes", "train_loss", "loss", "auc"),
        compared=("auc", "accuracy", "fpr"),
        contrasts=(
            Contrast("model", "base"),
            Contrast("weights", "basic"),
            Contrast("dropout", "0.3"),
        ),
        notes=tuple(dict.fromkeys(notes)),
    )
