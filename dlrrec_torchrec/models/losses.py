"""Binary cross-entropy on logits with class weights."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from dlrrec_torchrec.store.errors import DataError

CLASS_WEIGHTS = ("none", "basic", "sqrt", "normalized", "sqrt_normalized")


def class_weights(kind: str, n_negative: int, n_positive: int) -> tuple[float, float]:
    """Loss weights (w_0, w_1) of the negative and the positive label (MMREC section 5.1).

    With N_c rows of label c out of N:

    * none: w_c = 1.
    * basic: w_c = 1 - N_c / N (MMREC equation 1).
    * sqrt: w_c = sqrt(1 - N_c / N) (equation 2).
    * normalized, sqrt_normalized: the basic and the square-root weights divided by their mean on the training
      rows, sum_c N_c / N w_c, so that the mean weight is 1 and the loss keeps its scale; the first comes to
      w_c = N / (2 N_c). MMREC says that both are normalised but not how.

    Example::

        >>> class_weights("basic", n_negative=1, n_positive=3)
        (0.75, 0.25)
        >>> class_weights("normalized", n_negative=1, n_positive=3)
        (2.0, 0.6666666666666666)

    Raises:
        DataError: a weighting other than none where one label has no rows.
    """
    if kind not in CLASS_WEIGHTS:
        raise DataError(f"train.class_weights: unknown '{kind}' (known: {', '.join(CLASS_WEIGHTS)})")
    if kind == "none":
        return 1.0, 1.0
    if not n_negative or not n_positive:
        raise DataError(
            f"train.class_weights: '{kind}' needs both labels, but the training rows have {n_negative} "
            f"negatives and {n_positive} positives; use 'none', or another split.positive_rating"
        )
    total = n_negative + n_positive
    weights = (1 - n_negative / total, 1 - n_positive / total)
    if kind.startswith("sqrt"):
        weights = math.sqrt(weights[0]), math.sqrt(weights[1])
    if not kind.endswith("normalized"):
        return weights
    mean = (n_negative * weights[0] + n_positive * weights[1]) / total
    return weights[0] / mean, weights[1] / mean


def weighted_bce_sum(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Sum over rows of w_label times the cross-entropy; f32 scalar.

    Args:
        logits, label: f32 [B], labels 0 or 1; a row with label -1 (padding) does not count.
        weights: f32 [2], the weights of the labels 0 and 1.

    Example::

        >>> from torch import tensor
        >>> weighted_bce_sum(tensor([0.0, 0.0, 9.0]), tensor([0.0, 1.0, -1.0]), tensor([2.0, 1.0]))  # 3 ln 2
        tensor(2.0794)
    """
    row_weight = (weights[0] + (weights[1] - weights[0]) * label) * (label >= 0)
    return F.binary_cross_entropy_with_logits(logits, label, weight=row_weight, reduction="sum")
