"""The baselines of the table: by the dense columns, calibrated by logistic regression."""

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.linear_model import LogisticRegression

from dlrrec_torchrec.evaluation.baselines import Rows, baseline_predictions, read_rows
from tests.helpers.shards import write_shards

DENSE = ["item_count", "user_mean", "item_mean", "user_count", "price"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("evaluate") / "shards", rows=(600, 50, 300))


def test_baselines_against_a_plain_reference(shards):
    train, test = read_rows(shards, "train"), read_rows(shards, "test")
    predictions, skipped = baseline_predictions(train, test, DENSE)
    assert not skipped
    share = train.label.mean()
    np.testing.assert_allclose(predictions["majority class"].probability, share, rtol=1e-6)
    np.testing.assert_allclose(predictions["item mean"].score, test.dense[:, 2])
    np.testing.assert_allclose(
        predictions["user mean + item mean"].score, test.dense[:, 1] + test.dense[:, 2]
    )
    for name, columns in (
        ("item mean", [2]),
        ("user mean + item mean", [1, 2]),
        ("logistic regression", list(range(7))),
    ):
        mean, deviation = train.dense[:, columns].mean(0), train.dense[:, columns].std(0)
        fit = LogisticRegression().fit((train.dense[:, columns] - mean) / deviation, train.label)
        expected = fit.predict_proba((test.dense[:, columns] - mean) / deviation)[:, 1]
        np.testing.assert_allclose(predictions[name].probability, expected, atol=1e-3, err_msg=name)
    # the item's quality is in its mean rating: the baseline that sees it must find it
    assert sk.roc_auc_score(test.label, predictions["item mean"].score) > 0.65


def test_baselines_without_their_feature_are_left_out_with_a_reason(tmp_path):
    folder = write_shards(tmp_path / "shards", rows=(200, 20, 50), dense=2)  # item_count and user_mean
    predictions, skipped = baseline_predictions(
        read_rows(folder, "train"), read_rows(folder, "test"), ["item_count", "user_mean"]
    )
    assert set(predictions) == {"majority class", "logistic regression"}
    assert skipped == {
        "item mean": "the shards have no dense feature item_mean",
        "user mean + item mean": "the shards have no dense feature item_mean",
    }


def test_a_calibration_that_turned_round_is_said():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400).astype(np.float32)
    dense = (-label + rng.normal(size=400))[:, None].astype(np.float32)
    zero = np.zeros(400, np.int32)
    rows = Rows(label, label, zero, zero, dense)
    predictions, _ = baseline_predictions(rows, rows, ["item_mean"])
    assert "fall as item_mean rises" in predictions["item mean"].note
    assert np.corrcoef(predictions["item mean"].score, predictions["item mean"].probability)[0, 1] < 0


def test_one_class_in_the_training_rows_and_no_test_rows():
    zero = np.zeros(5, np.int32)
    one_class = Rows(np.ones(5, np.float32), zero, zero, zero, np.random.default_rng(0).random((5, 1)))
    none = Rows(zero[:0], zero[:0], zero[:0], zero[:0], np.zeros((0, 1), np.float32))
    predictions, _ = baseline_predictions(one_class, one_class, ["item_mean"])
    assert all((m.probability == 1).all() for m in predictions.values())
    two_classes = Rows(np.array([0, 1, 0, 1, 1], np.float32), zero, zero, zero, one_class.dense)
    assert all(
        len(m.probability) == 0 for m in baseline_predictions(two_classes, none, ["item_mean"])[0].values()
    )
