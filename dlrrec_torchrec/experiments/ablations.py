"""What single parts of DLRREC are worth: terms, dimensions, parameters, similarities, negatives, domains.

The model is the papers' (`papers.PAPERS_MODEL`) unless an experiment says otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.definitions import ANY, Cell, Contrast, Experiment, Group, Options
from dlrrec_torchrec.experiments.papers import (
    IMAGE,
    PROPOSED_DENSE,
    TEXT,
    by_data,
    dlrrec,
    group_name,
    has_images,
    papers_config,
    v0,
    v0_groups,
)
from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import BUILT_IN

BCE = "BCE"
CONTENT = ("auc", "accuracy", "fpr", "loss", "content_recall@20", "content_ndcg@20")
COMPARED = ("auc", "content_recall@20")
TERMS = {"L_rec + L_uu": ("user",), "L_rec + L_ii": ("item",), "L_rec + both": ("user", "item")}
SIMILARITIES = {
    "SWING": "swing",
    "cosine": "cosine",
    "Jaccard": "jaccard",
    "common neighbours": "common",
    "Adamic-Adar": "adamic_adar",
}
NEGATIVES = {
    "random": "corpus",
    "in-batch": "batch",
    "popularity": "popularity",
    "semi-hard": "semi_hard",
    "SWING-hard": "swing_hard",
}
TEXT_DIM = 384  # of the built-in encoder, for counting parameters
HIDDEN = {"text": 256, "image": 64}
TOP = [256, 16, 1]


def inputs_of(base: RunConfig) -> list[str]:
    """All vectors that the data's configuration lets rows have."""
    return [*TEXT, *(IMAGE if has_images(base) else ())]


def ablation(options: Options) -> Experiment:
    """The terms of DLRREC equation 2, by their weight w = w1 = w2 and the temperature of equation 1."""
    weights, temperatures = ((0.1,), (0.1,)) if options.quick else ((0.01, 0.1, 1.0), (0.05, 0.1, 0.5))

    def cells(base: RunConfig) -> list[Cell]:
        inputs = inputs_of(base)
        alone = {"terms": "L_rec", "w": ANY, "tau": ANY}
        found = [Cell("rec", alone, dlrrec(inputs, contrastive=False))]
        for (terms, sides), w, tau in itertools.product(TERMS.items(), weights, temperatures):
            changes = dlrrec(inputs)
            changes["contrastive"] = {
                f"{side}_weight": w if side in sides else 0.0 for side in ("user", "item")
            }
            changes["contrastive"]["temperature"] = tau
            levels = {"terms": terms, "w": f"{w:g}", "tau": f"{tau:g}"}
            found.append(Cell(f"{'-'.join(sides)}-w{w:g}-tau{tau:g}", levels, changes))
        return found

    return Experiment(
        name="ablation",
        title="The contrastive terms, their weights and temperature",
        question="What does each contrastive term add to the rating's loss, at which weight and temperature?",
        groups=_groups(options, cells),
        metrics=CONTENT,
        compared=COMPARED,
        contrasts=(Contrast("terms", "L_rec"),),
        lists=True,
    )


def dimension(options: Options) -> Experiment:
    """Reduced dimensions. The papers' interaction, of every scalar with every scalar, grows with their
    square: it is tried at the small ones alone; DLRM's own, of dot products, at all."""
    sizes = (16, 32) if options.quick else (16, 32, 64, 128)

    def cells(base: RunConfig) -> list[Cell]:
        found = []
        for interaction, size in itertools.product(("dot", "pairwise"), sizes):
            if interaction == "pairwise" and size > 32:
                continue
            changes = dlrrec(inputs_of(base))
            changes["model"] |= {
                "interaction": interaction,
                "embedding_dim": size,
                "text_tower": [HIDDEN["text"], size],
                "image_tower": [HIDDEN["image"], size],
                "dense_arch": [64, size if interaction == "dot" else 16],
            }
            levels = {"interaction": interaction, "dimension": f"{size}"}
            found.append(Cell(f"{interaction}-{size}", levels, changes))
        return found

    return Experiment(
        name="dimension",
        title="Dimensions of the reduced vectors",
        question="What do more dimensions bring in quality, and cost in seconds and bytes?",
        groups=_groups(options, cells),
        metrics=("auc", "loss", "content_recall@20", "mebibytes"),
        compared=COMPARED,
        contrasts=(Contrast("dimension", "32"), Contrast("interaction", "dot")),
        notes=("MiB are those of all weights; a stored vector of a user or item takes 4 bytes a dimension.",),
        lists=True,
    )


def fair(options: Options) -> Experiment:
    """V0 and DLRREC at equal inputs, and as nearly as can be the same number of weights."""

    def cells(base: RunConfig) -> list[Cell]:
        found = []
        of_inputs = {"text": [*TEXT]} | ({"text + image": inputs_of(base)} if has_images(base) else {})
        for name, inputs in of_inputs.items():
            short = name.replace(" + ", "-")
            widened = v0(inputs)
            widened["model"]["over_arch"] = equal_top(inputs)
            models = {
                "DLRREC, BCE": (f"bce-{short}", dlrrec(inputs, contrastive=False)),
                "DLRREC": (f"dlrrec-{short}", dlrrec(inputs)),
                "V0": (f"v0-{short}", v0(inputs)),
                "V0, widened": (f"v0-widened-{short}", widened),
            }
            for model, (folder, changes) in models.items():
                found.append(Cell(folder, {"inputs": name, "model": model}, changes))
        return found

    return Experiment(
        name="fair",
        title="V0 against DLRREC at equal inputs and weights",
        question="Is DLRREC better than V0 when both know the same and have as many weights?",
        groups=_groups(options, cells),
        metrics=("auc", "accuracy", "fpr", "yes", "loss"),
        compared=("auc", "accuracy", "loss"),
        contrasts=(Contrast("model", "V0, widened"), Contrast("model", "V0")),
        notes=(
            "V0, widened: the first layer of its top MLP is as wide as makes its weights as many as those "
            "of DLRREC. The MLP of its first step counts with what it hands on; the layer that is thrown "
            "away after that step does not.",
        ),
    )


def similarity(options: Options) -> Experiment:
    """Where positives come from; the control gives every entity another one's positives."""
    groups: list[Group] = []
    chosen = {"SWING": "swing", "cosine": "cosine"} if options.quick else SIMILARITIES
    for data, base, protocol in by_data(options):
        inputs = inputs_of(base)
        for name, setting in chosen.items():
            changes = {"swing.similarity": setting}
            config = papers_config(base, protocol, options, changes)
            cells = [Cell("contrastive", {"positives": name}, dlrrec(inputs))]
            if name == "SWING":
                control = dlrrec(inputs)
                control["contrastive"] |= {"permuted": True}
                cells.append(Cell("permuted", {"positives": "another's (control)"}, control))
                cells.append(Cell("bce", {"positives": "none (BCE)"}, dlrrec(inputs, contrastive=False)))
            levels = {"data": data, "protocol": protocol}
            groups.append(Group(group_name(options, data, protocol, setting), levels, config, tuple(cells)))
    return Experiment(
        name="similarity",
        title="Similarities that choose the positives",
        question="Does SWING choose better positives than other similarities, or than chance?",
        groups=tuple(groups),
        metrics=CONTENT,
        compared=COMPARED,
        contrasts=(
            Contrast("positives", "none (BCE)"),
            Contrast("positives", "another's (control)"),
            Contrast("positives", "SWING"),
        ),
        lists=True,
    )


def negatives(options: Options) -> Experiment:
    """What positives are told apart from."""

    def cells(base: RunConfig) -> list[Cell]:
        inputs = inputs_of(base)
        found = []
        for name, setting in NEGATIVES.items():
            changes = dlrrec(inputs)
            changes["contrastive"] |= {"negatives": setting}
            found.append(Cell(setting, {"negatives": name}, changes))
        return [*found, Cell("bce", {"negatives": "none (BCE)"}, dlrrec(inputs, contrastive=False))]

    return Experiment(
        name="negatives",
        title="Negatives of the contrastive terms",
        question="Which negatives serve the contrastive terms best?",
        groups=_groups(options, cells),
        metrics=CONTENT,
        compared=COMPARED,
        contrasts=(Contrast("negatives", "random"), Contrast("negatives", "none (BCE)")),
        lists=True,
    )


def domains(options: Options) -> Experiment:
    """The contrastive terms on several data: restaurants, films, shop items."""
    if len(options.data) < 2:
        raise DataError(
            "experiment domains: compares data, so give two or more: --data FILE FILE, run configurations "
            "that name their files, as copies of configs/zomato.yaml and configs/movielens-100k.yaml with "
            "ingest.reviews"
        )

    def cells(base: RunConfig) -> list[Cell]:
        inputs = inputs_of(base)
        return [
            Cell("dlrrec", {"objective": "BCE + contrastive"}, dlrrec(inputs)),
            Cell("bce", {"objective": BCE}, dlrrec(inputs, contrastive=False)),
        ]

    return Experiment(
        name="domains",
        title="Domains",
        question="Do the contrastive terms help in other domains than restaurants?",
        groups=_groups(options, cells),
        metrics=CONTENT,
        compared=COMPARED,
        contrasts=(Contrast("objective", BCE),),
        lists=True,
    )


def equal_top(inputs: Sequence[str]) -> list[int]:
    """Layers of V0's top MLP that make its weights as many as those of DLRREC with TOP, or nearly."""
    wanted = weights_of(inputs, [[name] for name in inputs], TOP)
    joined = v0_groups(inputs)
    return min(
        ([width, *TOP[1:]] for width in range(16, 4097)),
        key=lambda top: abs(weights_of(inputs, joined, top) - wanted),
    )


def weights_of(inputs: Sequence[str], joined: Sequence[Sequence[str]], top: Sequence[int]) -> int:
    """Weights of the papers' model (`papers.PAPERS_MODEL`) without its table of categories.

    Args:
        inputs: modalities of TEXT_DIM numbers each.
        joined: those that a tower, or an MLP of V0, reduces together.
        top: layers of the top MLP.
    """
    reduced, width, total = 32, 16 + 32, _mlp([dense_width(PROPOSED_DENSE), 64, 16])
    for group in joined:
        kind = "text" if "text" in {BUILT_IN[name] for name in group} else "image"
        total += _mlp([TEXT_DIM * len(group), HIDDEN[kind], reduced]) + reduced  # batch norm, less a bias
        width += reduced
    return total + _mlp([width + width * (width - 1) // 2, *top])


def _mlp(sizes: Sequence[int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))


def _groups(
    options: Options,
    cells: Callable[[RunConfig], Sequence[Cell]],
    changes: Mapping[str, Any] | None = None,
) -> tuple[Group, ...]:
    """A group for each data and protocol, with the same cells."""
    return tuple(
        Group(
            group_name(options, data, protocol),
            {"data": data, "protocol": protocol},
            papers_config(base, protocol, options, changes),
            tuple(cells(base)),
        )
        for data, base, protocol in by_data(options)
    )
