"""Baselines that a model must beat: predictions of the same rows from the dense features only."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from dlrrec_torchrec.data.entities import column_matrix
from dlrrec_torchrec.features.dense import DENSE_FEATURES
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.shard_facts import ShardFacts


@dataclasses.dataclass(frozen=True)
class Rows:
    """The columns of N shard rows, in the shards' order, that scoring and baselines need."""

    label: np.ndarray  # f32 [N]
    rating: np.ndarray  # f32 [N]
    user: np.ndarray  # i32 [N]
    item: np.ndarray  # i32 [N]
    dense: np.ndarray  # f32 [N, D]

    def __len__(self) -> int:
        return len(self.label)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """N predictions: the probability of a positive, and the score that ranks the rows."""

    probability: np.ndarray  # f64 [N]
    score: np.ndarray  # f64 [N]
    note: str = ""


def read_rows(shards_dir: str | os.PathLike, split: str) -> Rows:
    """All rows of one split of the shards, without their vectors. Raises DataError as `read_table` does."""
    facts = ShardFacts.read(shards_dir)
    names = [f.name for f in dataclasses.fields(Rows)]
    table = read_table(Path(shards_dir) / split, facts.row_schema([]), names).combine_chunks()
    dense = column_matrix(table["dense"], 0)
    return Rows(**{n: table[n].to_numpy() for n in names if n != "dense"}, dense=dense)


def baseline_predictions(
    train: Rows, test: Rows, dense_names: list[str]
) -> tuple[dict[str, Prediction], dict[str, str]]:
    """Predictions of `test` by each baseline, and why a baseline is left out.

    - `majority class`: every row gets the training rows' share of positives.
    - `item mean`: ranks by the item's mean rating.
    - `user mean + item mean`: ranks by the plain sum of both means, nothing fitted.
    - `logistic regression`: on all dense features, standardised, L2 penalty of weight 1.

    The two means rank by their raw score; their probabilities (for accuracy, loss, calibration) come from a
    logistic regression of the label on that baseline's one or two means. All fits use training rows only,
    with features that leave out their own review. Where a mean is not informative, its fitted slope may be
    negative by chance; the prediction's note then says so.
    """
    share = float(train.label.mean()) if len(train) else float("nan")
    constant = np.full(len(test), share)
    predictions = {"majority class": Prediction(constant, constant)}
    skipped: dict[str, str] = {}
    for name, features in (
        ("item mean", ["item_mean"]),
        ("user mean + item mean", ["user_mean", "item_mean"]),
    ):
        absent = [w for w in features if w not in dense_names]
        if absent:
            skipped[name] = f"the shards have no dense feature {' and '.join(absent)}"
            continue
        columns = [_offset(dense_names, w) for w in features]
        score = test.dense[:, columns].astype(np.float64).sum(axis=1)
        probability, slopes = logistic(train.dense[:, columns], train.label, test.dense[:, columns])
        falling = [w for w, slope in zip(features, slopes, strict=True) if slope < 0]
        note = f"its probabilities fall as {' and '.join(falling)} rises, by a weak fit" if falling else ""
        predictions[name] = Prediction(probability, score, note)
    if test.dense.shape[1]:
        probability, _ = logistic(train.dense, train.label, test.dense)
        predictions["logistic regression"] = Prediction(probability, probability)
    else:
        skipped["logistic regression"] = "the shards have no dense features"
    return predictions, skipped


def _offset(names: list[str], feature: str) -> int:
    """First dense column of the feature `feature`."""
    unknown = [n for n in names if n not in DENSE_FEATURES]
    if unknown:
        raise DataError(f"shards: unknown dense feature '{unknown[0]}'; run prepare again")
    return sum(DENSE_FEATURES[n] for n in names[: names.index(feature)])


def logistic(x: np.ndarray, label: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [M] of `x_test` by a logistic regression of `label` [N] on `x` [N, K]; its slopes [K]."""
    if len(np.unique(label)) < 2:  # one label only: nothing to fit
        share = label.mean() if len(label) else np.nan
        return np.full(len(x_test), share, np.float64), np.zeros(x.shape[1])
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        x.astype(np.float64), label
    )
    if not len(x_test):
        return np.zeros(0), fitted[-1].coef_[0]
    return fitted.predict_proba(x_test.astype(np.float64))[:, 1], fitted[-1].coef_[0]
