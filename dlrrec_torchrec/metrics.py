"""Metrics of binary predictions, with NumPy. Every formula is in its function's docstring.

A metric that is undefined for the given rows (no rows, one class only) is NaN, never an error; `jsonable`
turns NaN into null where a result is written to a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_CLIP = 1e-7  # keeps the log of a probability that has been rounded to 0 or 1 finite


def binary_metrics(
    label: np.ndarray,
    probability: np.ndarray,
    user: np.ndarray | None = None,
    threshold: float = 0.5,
    score: np.ndarray | None = None,
) -> dict[str, float]:
    """The metrics of N predictions, by name; a row counts as predicted positive if probability >= threshold.

    Args:
        label: [N] of 0 and 1 (any numeric or boolean type).
        probability: [N] floats in [0, 1].
        user: [N] integer codes or strings of the rows' users; without it the per-user metrics are NaN.
        score: [N] floats that rank the rows (AUC, AUPRC, per-user AUC), such as logits, which stay apart
            where their probabilities have been rounded to 1; default: the probability.

    Returns, with TP, FP, TN, FN the counts of the confusion matrix:
        tp, fp, tn, fn
        accuracy:       (TP + TN) / N
        fpr:            FP / (FP + TN), the false-positive rate. A model that says "no" to everything has 0:
                        never judge by it alone.
        loss:           mean binary cross-entropy -[y ln p + (1 - y) ln(1 - p)] in nats, p kept 1e-7 away from
                        0 and 1
        auc:            `roc_auc`
        auprc:          `average_precision`
        ne:             normalised entropy, loss / H(base rate), where H(q) = -[q ln q + (1 - q) ln(1 - q)];
                        1 is a constant at the rows' own base rate, lower is better (He et al. 2014,
                        "Practical Lessons from Predicting Clicks on Ads at Facebook", equation 1)
        calibration:    sum of p / sum of y; 1 is best (the same paper, section 2)
        user_auc, user_auc_users: `user_auc`

    Raises ValueError if the arrays differ in length.
    """
    label, probability = _checked(label, probability)
    rows = len(label)
    positive = label > 0
    predicted = probability >= threshold
    tp, fp = int((predicted & positive).sum()), int((predicted & ~positive).sum())
    tn, fn = int((~predicted & ~positive).sum()), int((~predicted & positive).sum())
    loss = cross_entropy(label, probability)
    base = _ratio(tp + fn, rows)
    score = probability if score is None else score
    per_user = (math.nan, math.nan) if user is None else user_auc(label, score, user)
    return {
        "accuracy": _ratio(tp + tn, rows),
        "fpr": _ratio(fp, fp + tn),
        "loss": loss,
        "auc": roc_auc(label, score),
        "auprc": average_precision(label, score),
        "ne": _ratio(loss, _entropy(base)),
        "calibration": _ratio(float(probability.sum()), tp + fn),
        "user_auc": per_user[0],
        "user_auc_users": per_user[1],
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def cross_entropy(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean binary cross-entropy in nats; NaN without rows."""
    losses = row_losses(label, probability)
    return float(losses.mean()) if len(losses) else math.nan


def row_losses(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Binary cross-entropy f64 [N] of each row in nats, p kept 1e-7 away from 0 and 1."""
    label, probability = _checked(label, probability)
    p = np.clip(probability, _CLIP, 1 - _CLIP)
    return -np.where(label > 0, np.log(p), np.log1p(-p))


def roc_auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties counting half.

    By ranks (Mann and Whitney 1947): (R - P (P + 1) / 2) / (P * Q) for P positives, Q negatives and R the sum
    of the positives' ranks, ties sharing their mean rank. NaN where a class is absent or a score is NaN.
    """
    label, score = _checked(label, score)
    positives = int((label > 0).sum())
    negatives = len(label) - positives
    if not positives or not negatives or np.isnan(score).any():
        return math.nan
    rank_sum = float(mean_ranks(score)[label > 0].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of values [N], ties sharing their mean rank: f64 [N], as `scipy.stats.rankdata`, whose
    import takes longer than all of this module's work."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision.

    Sum over the distinct scores, from high to low, of (recall_k - recall_{k-1}) * precision_k, without
    interpolation. NaN without a positive or with NaN scores.
    """
    label, score = _checked(label, score)
    positives = int((label > 0).sum())
    if not positives or np.isnan(score).any():
        return math.nan
    values, place = np.unique(-score, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    hits = np.bincount(place, weights=label > 0, minlength=len(values))
    precision = np.cumsum(hits) / np.cumsum(counts)
    return float((hits * precision).sum() / positives)


def user_auc(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> tuple[float, float]:
    """Per-user AUC ("GAUC", Zhu et al. 2017), and the share of the users in it.

    Sum of n_u * AUC_u / sum of n_u over the users who have both labels, with n_u rows of user u. The AUC is
    NaN where no user has both, or with NaN scores; both are NaN without rows.
    """
    label, score = _checked(label, score)
    user = np.asarray(user)
    if len(user) != len(label):
        raise ValueError(f"user has {len(user)} rows, label {len(label)}")
    if not len(label):
        return math.nan, math.nan
    _, code = np.unique(user, return_inverse=True)
    rows = np.bincount(code)
    positives = np.bincount(code, weights=label > 0)
    negatives = rows - positives
    mixed = (positives > 0) & (negatives > 0)
    share = float(mixed.mean())
    if not mixed.any() or np.isnan(score).any():
        return math.nan, share
    # Ranks within a user: ranks of (user, score), user first, less the rows of the users that sort earlier.
    score_code = np.unique(score, return_inverse=True)[1] + 1
    pairs = code.astype(np.int64) * (int(score_code.max()) + 1) + score_code
    before = np.concatenate([[0], np.cumsum(rows)[:-1]])
    rank = mean_ranks(pairs) - before[code]
    rank_sum = np.bincount(code, weights=rank * (label > 0))
    auc = (rank_sum[mixed] - positives[mixed] * (positives[mixed] + 1) / 2) / (
        positives[mixed] * negatives[mixed]
    )
    return float(np.average(auc, weights=rows[mixed])), share


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), written as (1 + tanh(x / 2)) / 2, which does not overflow."""
    return (1 + np.tanh(np.asarray(logit) / 2)) / 2


def expected_auc(probability: np.ndarray, score: np.ndarray | None = None) -> float:
    """The AUC that `score` reaches in expectation; without a score, that of `probability`: what is reachable.

    With independent labels y_i ~ Bernoulli(p_i), the expected number of correctly ordered pairs over that of
    pairs of a positive and a negative is
        sum over i != j of p_i (1 - p_j) ([s_i > s_j] + [s_i = s_j] / 2) / sum over i != j of p_i (1 - p_j),
    and no score orders more pairs correctly than p itself (Clemencon, Lugosi and Vayatis 2008). O(N log N) by
    sorting. With probabilities of 0 and 1 it is the ordinary AUC. NaN where no pair can exist, or with NaN.

    Args:
        probability, score: floats [N].
    """
    p = np.asarray(probability, np.float64).ravel()
    score = p if score is None else np.asarray(score).ravel()
    if not len(p) or np.isnan(p).any() or np.isnan(score).any():
        return math.nan
    group = np.unique(score, return_inverse=True)[1]
    positive, negative = np.bincount(group, p), np.bincount(group, 1 - p)
    below = np.cumsum(negative) - negative
    self_pairs = float((p * (1 - p)).sum())  # of a row with itself
    right = float((positive * (below + negative / 2)).sum()) - self_pairs / 2
    return _ratio(right, float(positive.sum() * negative.sum()) - self_pairs)


def alignment(anchors: np.ndarray, positives: np.ndarray) -> float:
    """Mean squared distance of N pairs on the unit sphere: E ||x - y||^2, from 0 (equal) to 4 (opposite).

    Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity
    on the Hypersphere", section 4.1.1 with alpha = 2. NaN without a pair.

    Args:
        anchors, positives: floats [N, R], row by row; scaled to unit length here.
    """
    if not len(anchors):
        return math.nan
    return float(np.square(_unit(anchors) - _unit(positives)).sum(1).mean())


def uniformity(vectors: np.ndarray) -> float:
    """ln of the mean of exp(-2 ||x - y||^2) over all pairs of different rows, on the unit sphere.

    0 where all are one point; lower, the more evenly they are spread (about -4 in many dimensions). Wang and
    Isola 2020, section 4.1.2 with t = 2. NaN with fewer than two rows.

    Args:
        vectors: floats [N, R]; scaled to unit length here.
    """
    if len(vectors) < 2:
        return math.nan
    unit = _unit(vectors)
    near = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(np.log(np.exp(4 * (near - 1)).mean()))  # ||x - y||^2 = 2 - 2 x.y


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the singular values over their sum, from 1 to min(N, R).

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1. NaN
    where all values are zero.

    Args:
        vectors: floats [N, R].
    """
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    if not values.sum() > 0:
        return math.nan
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def selection_key(rule: str, metrics: Mapping[str, float | None]) -> tuple[float, ...]:
    """What is to be compared of two models' metrics on held-out rows: the larger one is the better.

    Args:
        rule: "auc" or "accuracy" (higher is better), "loss" (lower), "mixture" (NDCG@20 + Recall@20 / 2 +
            AUC, where it is defined; higher), or "paper": lower false-positive rate, and of equal ones the
            higher AUC.
        metrics: by name; NaN and None, undefined, are the worst.
    """
    if rule == "paper":
        values = (-_number(metrics["fpr"]), _number(metrics["auc"]))
    elif rule == "mixture":
        auc = _number(metrics["auc"])
        lists = _number(metrics["ndcg@20"]) + _number(metrics["recall@20"]) / 2
        values = (lists + (0.0 if math.isnan(auc) else auc),)
    else:
        value = _number(metrics[rule])
        values = (-value if rule == "loss" else value,)
    return tuple(-math.inf if math.isnan(v) else v for v in values)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _checked(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label, score = np.asarray(label).ravel(), np.asarray(score, np.float64).ravel()
    if len(label) != len(score):
        raise ValueError(f"label has {len(label)} rows, the scores {len(score)}")
    return label, score


def _entropy(rate: float) -> float:
    if not 0 < rate < 1:  # NaN too
        return 0.0
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else math.nan
