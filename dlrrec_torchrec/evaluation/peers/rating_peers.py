"""Predictors of ratings and labels by others' packages: SVD++, item kNN (scikit-surprise), LightGBM.

Each is fitted to the training rows. What it says about rows that it was not fitted to becomes a probability
by a logistic regression of their labels: the validation rows; without them, a tenth of the training rows,
which a first fit leaves out. Its own training rows would make it look surer than it is.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from dlrrec_torchrec.evaluation.baselines import Prediction, Rows, logistic
from dlrrec_torchrec.evaluation.peers.installed import not_installed, quiet_surprise

# Both of scikit-surprise walk a user's whole history for each of its rows.
_MOST_STEPS = 100_000_000
_MOST_ITEMS = 20_000  # item kNN keeps a similarity of every two items: 3.2 GB
_HELD_OUT = 10  # without validation rows every tenth training row, shuffled

Predictor = Callable[[Rows], np.ndarray]  # rows -> scores f64 [N], higher is better
Fit = Callable[[Rows, Rows, tuple[float, float]], Predictor]  # training rows, rows to stop by, rating range


def rating_peers(
    train: Rows, validation: Rows, test: Rows, rating_range: tuple[float, float]
) -> Iterator[tuple[str, Callable[[], Prediction] | str]]:
    """Name of each peer, and a function that fits it and predicts `test`, or why it is left out."""
    for name, (fit, refusal) in _PEERS.items():
        if not len(train):
            why = "there are no training rows"
        elif np.ptp(train.rating) == 0:
            why = "all training ratings are the same"
        else:
            why = refusal(train)

        def predict(fit: Fit = fit) -> Prediction:
            return _predicted(fit, train, validation, test, rating_range)

        yield name, why or predict


def _predicted(
    fit: Fit, train: Rows, validation: Rows, test: Rows, rating_range: tuple[float, float]
) -> Prediction:
    if len(validation):
        predictor = fit(train, validation, rating_range)
        unseen, notes = validation, []
        known = predictor(unseen)
    else:
        order = np.random.default_rng(0).permutation(len(train))
        held_out = order[: len(train) // _HELD_OUT]
        unseen, rest = _chosen(train, np.sort(held_out)), _chosen(train, np.sort(order[len(held_out) :]))
        known = fit(rest, _chosen(train, order[:0]), rating_range)(unseen)
        predictor = fit(train, validation, rating_range)
        notes = ["its probabilities are fitted on a tenth of the training rows: there are no validation rows"]
    score = predictor(test)
    probability, slopes = logistic(known[:, None], unseen.label, score[:, None])
    if slopes[0] < 0:
        notes.append("its probabilities fall as its score rises, by a weak fit")
    return Prediction(probability, score, "; ".join(notes))


def _chosen(rows: Rows, which: np.ndarray) -> Rows:
    return Rows(**{f.name: getattr(rows, f.name)[which] for f in dataclasses.fields(Rows)})


def _svd_pp(train: Rows, _: Rows, rating_range: tuple[float, float]) -> Predictor:
    """Koren 2008, "Factorization meets the neighborhood", equation 15; the package's own settings."""
    quiet_surprise()
    from surprise import SVDpp

    return _surprise(SVDpp(random_state=0, cache_ratings=True), train, rating_range)


def _item_knn(train: Rows, _: Rows, rating_range: tuple[float, float]) -> Predictor:
    """Koren 2010, equation 3: baselines, and residuals on the 40 items of the highest shrunk correlation."""
    quiet_surprise()
    from surprise import KNNBaseline

    by_items = {"name": "pearson_baseline", "user_based": False}
    algorithm = KNNBaseline(k=40, sim_options=by_items, bsl_options={"verbose": False}, verbose=False)
    return _surprise(algorithm, train, rating_range)


def _surprise(algorithm: object, train: Rows, rating_range: tuple[float, float]) -> Predictor:
    """Fit an algorithm of scikit-surprise, whose inner ids are our codes."""
    from surprise import Trainset

    by_user, by_item = collections.defaultdict(list), collections.defaultdict(list)
    pairs = zip(train.user.tolist(), train.item.tolist(), train.rating.tolist(), strict=True)
    for user, item, rating in pairs:
        by_user[user].append((item, rating))
        by_item[item].append((user, rating))
    users, items = int(train.user.max()) + 1, int(train.item.max()) + 1
    codes = ({code: code for code in known} for known in (by_user, by_item))
    algorithm.fit(Trainset(by_user, by_item, users, items, len(train), rating_range, *codes))

    def predict(rows: Rows) -> np.ndarray:
        pairs = zip(rows.user.tolist(), rows.item.tolist(), strict=True)
        return np.array([algorithm.predict(u, i, clip=False).est for u, i in pairs], np.float64)

    return predict


def _lightgbm(train: Rows, stop_by: Rows, _: tuple[float, float]) -> Predictor:
    """Boosted trees on all dense columns; as many as the rows to stop by like best, 100 without them."""
    import lightgbm

    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 50,
        "verbosity": -1,
        "seed": 0,
        "deterministic": True,
        "force_row_wise": True,
    }
    data = lightgbm.Dataset(train.dense, train.label, free_raw_data=False)
    stopping = {}
    if len(np.unique(stop_by.label)) == 2:
        stopping = {
            "valid_sets": [data.create_valid(stop_by.dense, stop_by.label)],
            "callbacks": [lightgbm.early_stopping(30, verbose=False)],
        }
    trees = lightgbm.train(settings, data, num_boost_round=500 if stopping else 100, **stopping)
    return lambda rows: trees.predict(rows.dense, raw_score=True) if len(rows) else np.zeros(0)


def _surprise_refusal(train: Rows) -> str | None:
    if why := not_installed("surprise"):
        return why
    steps = int((np.bincount(train.user).astype(np.int64) ** 2).sum())
    if steps > _MOST_STEPS:
        return f"the sum of the squared lengths of the users' histories, {steps:,}, is above {_MOST_STEPS:,}"
    return None


def _knn_refusal(train: Rows) -> str | None:
    items = int(train.item.max()) + 1
    if items > _MOST_ITEMS:
        return f"its matrix of {items:,} x {items:,} items is above {_MOST_ITEMS:,} x {_MOST_ITEMS:,}"
    return _surprise_refusal(train)


def _lightgbm_refusal(train: Rows) -> str | None:
    if why := not_installed("lightgbm"):
        return why
    return None if train.dense.shape[1] else "the shards have no dense features"


# name -> how it is fitted, and why it is left out (None: it is not)
_PEERS: dict[str, tuple[Fit, Callable[[Rows], str | None]]] = {
    "SVD++": (_svd_pp, _surprise_refusal),
    "item kNN": (_item_knn, _knn_refusal),
    "LightGBM": (_lightgbm, _lightgbm_refusal),
}
