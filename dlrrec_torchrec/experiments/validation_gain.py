"""Whether one training is better than another on the validation rows, or the difference may be chance."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.intervals import Interval, mixture_difference
from dlrrec_torchrec.ranking.full_ranking import Relevant, rank_lists
from dlrrec_torchrec.serving.score import Scorer


def validation_scores(
    train_dir: str | os.PathLike,
    shards_dir: str | os.PathLike,
    rule: str,
    users: int,
    seed: int,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """What the selection of a finished training's best epoch measured, of each row and each user.

    Args:
        rule: of `metrics.selection_key`.
        users, seed: those whose lists are measured, at most, as in the training (`ListMetrics`).

    Returns:
        logit: f64 [N] of the validation rows. list_user: i64 [n], list_value: f64 [n], NDCG@20 +
        Recall@20 / 2 by the list logits alone; both are empty unless `rule` is "mixture".
    """
    scorer = Scorer(train_dir, shards_dir, device)
    found = {
        "logit": scorer.logits(scorer.split("val")),
        "list_user": np.zeros(0, np.int64),
        "list_value": np.zeros(0),
    }
    if rule == "mixture":
        seen = split_pairs(shards_dir, "train")
        task = Relevant.of(split_pairs(shards_dir, "val", liked=True), seen).sample(users, seed)
        if len(task.users):
            counts = np.asarray(seen.sum(0)).reshape(-1)
            lists = rank_lists(
                lambda users: scorer.list_scores(users, rated=False), task, counts, cutoffs=(20,)
            ).per_user
            found["list_user"] = task.users
            found["list_value"] = lists["ndcg@20"] + lists["recall@20"] / 2
    return found


def validation_gain(
    rule: str,
    shards_dir: str | os.PathLike,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
) -> Interval:
    """By how much `first` (as `validation_scores` returns) is better than `second` by the rule, with the 95 %
    interval over validation users drawn with replacement. Of "loss", how much lower it is."""
    rows = read_rows(shards_dir, "val")
    label, user = rows.label > 0.5, rows.user
    if rule in ("auc", "mixture"):
        one, other = first["logit"], second["logit"]
        lists = first["list_user"], first["list_value"], second["list_value"]
        return mixture_difference(label, one, other, user, *lists)
    values = (_of_rows(rule, label, scores["logit"]) for scores in (first, second))
    none = np.zeros(0)
    return mixture_difference(none, none, none, np.zeros(0, user.dtype), user, *values)


def _of_rows(rule: str, label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Accuracy or the negative log loss of each row."""
    if rule == "accuracy":
        return (logit >= 0) == label
    return -np.logaddexp(0, np.where(label, -logit, logit))
