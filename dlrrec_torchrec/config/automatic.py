"""Settings that follow from the size of the data where the user leaves them open (None).

The rule is read off the configurations that were tuned by validation (configs/, docs/results.md, measured
before there was a wide path), and interpolates between them:

| | training rows | of the rarer label | rows a user, item | what was chosen |
|---|---|---|---|---|
| demo | 4,800 | 570 | 8, 19 | linear towers, dropout .3, lr .0003 at batch 256, decay 10, no ids |
| Zomato | 7,000 | 2,300 | 2, 70 | linear towers, dropout .5, lr .01, decay .1, 10 epochs, no ids |
| MovieLens 100k | 72,000 | 31,000 | 76, 45 | linear towers, dropout .3, lr .001, decay 1, 8 epochs, ids |

In all three an epoch's decay, lr * decay * steps, comes to 2 to 7 %.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dlrrec_torchrec.config.sections import ListConfig, ModelConfig, TrainConfig

SMALL = 5_000  # training rows of the rarer label below which steps are smaller and the top MLP is narrow
LARGE = 50_000  # from which towers have a hidden layer, and dropout is weaker
HISTORY = 20  # training rows of a user and of an item, on average, from which ids have embeddings
DECAY = 0.06  # what an epoch's decay takes away of a matrix
MOST_DECAY = 10.0
STEPS = 1_000  # of a training, in whole epochs
EPOCHS = (5, 60)
RECENT = 27  # latest items of a user
LATER = 0.9  # share of held-out rows after their user's training rows from which the order counts


@dataclasses.dataclass(frozen=True)
class DataSize:
    """Training rows, those of the rarer label, users and items; whether the rows have affinity features;
    `later` as of `latest_items`."""

    rows: int
    rarer: int
    users: int
    items: int
    affinity: bool = False
    later: float = 0.0


def automatic(
    model: ModelConfig, train: TrainConfig, size: DataSize | None = None
) -> tuple[ModelConfig, TrainConfig, dict[str, Any]]:
    """Both sections with a value for every setting that is open, and the chosen ones by name.

    With E = model.embedding_dim and B = train.batch_size:

    * towers: linear, [E], below LARGE rows of the rarer label; [256, E] (text) and [64, E] (others) above.
    * model.over_arch: [32, 1] below SMALL, [64, 1] below LARGE, else [256, 16, 1].
    * model.tower_dropout, model.dropout: 0.3 below LARGE, else 0 and 0.1.
    * model.user_id, model.item_id: on where both users and items have HISTORY training rows on average and
      the rows have no affinity features, or where the model would have no table. Affinity says out of fold
      what an id embedding learns from the rows' own labels: on MovieLens 100k validation AUC begins at .804
      with it, and with ids too falls to .784 within eight epochs.
    * train.lr: 0.0003 sqrt(B / 256) below SMALL, else 0.001 sqrt(B / 1024), at most 0.01: Adam's noise goes
      with the root of the batch (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient
      Algorithms").
    * train.weight_decay: DECAY / (lr * steps of an epoch), at most MOST_DECAY: an epoch takes the same share,
      whatever its number of steps.
    * model.residual: [512, 128], and train.residual_lr 0.003 sqrt(B / 256) below SMALL, else
      0.001 sqrt(B / 1024), at most 0.01; without model.wide none. On worlds 100 to 102 of the demo and on
      MovieLens validation AUC rises by .002 to .008 by it, by as much as [256, 64] or more.
    * train.epochs: as many as make STEPS steps, within EPOCHS; train.patience may stop earlier.

    Without a size, where no data is known: the papers' model, as its defaults were.

    Example::

        >>> size = DataSize(rows=72_000, rarer=31_000, users=943, items=1_600)
        >>> automatic(ModelConfig(dropout=0.2), TrainConfig(), size)[2]["train.lr"]
        0.001
    """
    by_name = _plain(model) if size is None else _by_size(model, train, size)
    sections: dict[str, Any] = {"model": model, "train": train}
    chosen = {}
    for name, value in by_name.items():
        section, _, field = name.partition(".")
        if getattr(sections[section], field) is None:
            chosen[name] = value
            sections[section] = dataclasses.replace(sections[section], **{field: value})
    if size is not None and train.weight_decay is None:
        settled = sections["train"]
        decay = min(DECAY / (settled.lr * _steps(train, size)), MOST_DECAY)
        chosen["train.weight_decay"] = float(f"{decay:.2g}")
        sections["train"] = dataclasses.replace(settled, weight_decay=chosen["train.weight_decay"])
    return sections["model"], sections["train"], chosen


def automatic_lists(lists: ListConfig, later: float = 0.0) -> tuple[ListConfig, dict[str, Any]]:
    """The section with a value for every setting that is open, and the chosen ones by name.

    list.recent is as of `latest_items`. list.tau is 0.2 with latest items, which tell more of what comes next
    than who the user is does of what she would choose at all, and 0.3 without.

    Args:
        later: as of `latest_items`; 0 where no data is known.
    """
    recent = latest_items(later) if lists.recent is None else lists.recent
    by_name = {"recent": recent, "tau": 0.2 if recent else 0.3}
    chosen = {name: value for name, value in by_name.items() if getattr(lists, name) is None}
    settled = dataclasses.replace(lists, **chosen)
    return settled, {f"list.{name}": value for name, value in chosen.items()}


def latest_items(later: float) -> int:
    """list.recent: RECENT where what is to be found comes after what is known, as it does for who uses the
    model; 0 where held-out rows lie in between, and what came before a training row tells nothing of them.

    Args:
        later: share of the held-out rows that come after a training row of their user and before none.
    """
    return RECENT if later >= LATER else 0


def _plain(model: ModelConfig) -> dict[str, Any]:
    width, ids = model.embedding_dim, _no_other_table(model)
    return {
        "model.text_tower": [256, width],
        "model.image_tower": [64, width],
        "model.other_tower": [64, width],
        "model.over_arch": [256, 16, 1],
        "model.residual": [],
        "model.tower_dropout": 0.0,
        "model.dropout": 0.1,
        "model.user_id": ids,
        "model.item_id": ids,
        "train.lr": 0.01,
        "train.residual_lr": 0.01,
        "train.weight_decay": 0.0,
        "train.epochs": 30,
    }


def _by_size(model: ModelConfig, train: TrainConfig, size: DataSize) -> dict[str, Any]:
    width, large = model.embedding_dim, size.rarer >= LARGE
    long = size.rows >= HISTORY * max(size.users, size.items)
    ids = (long and not size.affinity) or _no_other_table(model)
    small = size.rarer < SMALL
    lr = 3e-4 * math.sqrt(train.batch_size / 256) if small else 1e-3 * math.sqrt(train.batch_size / 1024)
    residual_lr = 10 * lr if small else lr
    epochs = round(STEPS / _steps(train, size))
    return {
        "model.text_tower": [256, width] if large else [width],
        "model.image_tower": [64, width] if large else [width],
        "model.other_tower": [64, width] if large else [width],
        "model.over_arch": [32, 1] if small else [256, 16, 1] if large else [64, 1],
        "model.residual": [512, 128] if model.wide else [],
        "model.tower_dropout": 0.0 if large else 0.3,
        "model.dropout": 0.1 if large else 0.3,
        "model.user_id": ids,
        "model.item_id": ids,
        "train.lr": float(f"{min(lr, 0.01):.2g}"),
        "train.residual_lr": float(f"{min(residual_lr, 0.01):.2g}"),
        "train.epochs": min(max(epochs, EPOCHS[0]), EPOCHS[1]),
    }


def _no_other_table(model: ModelConfig) -> bool:
    return not (model.category or model.user_id or model.item_id)


def _steps(train: TrainConfig, size: DataSize) -> int:
    return max(math.ceil(size.rows / train.batch_size), 1)


def chosen_text(chosen: dict[str, Any], size: DataSize) -> str:
    """What was chosen, in one line, and why ids are left out where they are."""
    reason = ""
    if chosen.get("model.user_id") is False:
        why = (
            "affinity features say out of fold what they would learn"
            if size.affinity
            else f"fewer than {HISTORY} training rows a user or item"
        )
        reason = f" (no id embeddings: {why})"
    values = ", ".join(f"{name}={_shown(value)}" for name, value in chosen.items())
    return (
        f"chosen by the size of the data ({size.rows:,} training rows, {size.rarer:,} of the rarer label; "
        f"{size.rows / max(size.users, 1):.1f} a user, {size.rows / max(size.items, 1):.1f} an item): "
        f"{values}{reason}"
    )


def _shown(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else (str(value).replace(" ", ""))
    )
