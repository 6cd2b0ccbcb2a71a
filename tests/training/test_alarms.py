"""Alarms: each where its cause is, once, and not where a measure flickers."""

from __future__ import annotations

import numpy as np
import pytest

from dlrrec_torchrec.metrics import roc_auc
from dlrrec_torchrec.training.alarms import (
    FIRST_STEPS,
    SETTLED,
    Alarms,
    auc_standard_error,
    effect_alarms,
    held_out_alarms,
    prediction_alarms,
    term_alarms,
)


def said_after(*found: bool, after: int = 2) -> tuple[list[str], list[dict]]:
    said: list[str] = []
    alarms = Alarms(said.append)
    for step, there in enumerate(found):
        alarms.measured(step, ["x", "y"], {"x": f"x is wrong at {step}"} if there else {}, after)
    return said, alarms.listed()


def test_what_flickers_is_quiet_and_what_stays_is_said_once():
    assert said_after(True, False, True, False, True) == ([], [])
    said, listed = said_after(False, True, True, True, False, True, False, True, True, True)
    assert said == ["warning: step 2: x is wrong at 2"]
    assert listed == [{"name": "x", "step": 2, "text": "x is wrong at 2", "over": False}]
    assert said_after(True, True, False)[1][0]["over"] is True
    assert said_after(True, after=1)[0] == ["warning: step 0: x is wrong at 0"]


def test_alarms_go_on_after_a_restart():
    said: list[str] = []
    first, second = Alarms(said.append), Alarms(said.append)
    first.measured(1, ["a", "b"], {"a": "a!", "b": "b!"}, after=1)
    first.measured(2, ["c"], {"c": "c!"})
    second.restore(first.state())
    second.measured(3, ["a", "c"], {"a": "a!", "c": "c!"})
    assert said == ["warning: step 1: a!", "warning: step 1: b!", "warning: step 3: c!"]
    assert [a["name"] for a in second.listed()] == ["a", "b", "c"]


def test_constant_and_saturated_predictions():
    rng = np.random.default_rng(0)
    assert not prediction_alarms(rng.normal(0, 3, 500), "val")
    assert list(prediction_alarms(np.full(500, 0.3), "val")) == ["constant"]
    found = prediction_alarms(1e6 + 1e4 * rng.normal(size=500), "val")
    assert list(found) == ["saturated"] and "100% of the val probabilities are 0.000 or 1.000" in str(found)
    assert "train.lr" in str(found)
    half = np.r_[np.full(250, 40.0), rng.normal(size=250)]
    assert not prediction_alarms(half, "val") and not prediction_alarms(np.zeros(0), "val")


def test_parts_without_effect():
    found = effect_alarms({"effect_item_text": 1e-5, "effect_user_text": 0.2, "effect_item_image": np.nan})
    assert list(found) == ["effect_item_text"] and "vectors of item_text hardly change" in str(found)
    assert not term_alarms({"loss_ii": (5.1, 4.9), "loss_uu": (5.1, 5.3)})
    found = term_alarms({"loss_ii": (5.1, 5.1001), "loss_uu": (0.0, 0.0)})
    assert "does not fall (5.1000 at first, 5.1001 now)" in found["loss_ii"]
    assert "no training row's user has both a content vector and a SWING neighbour" in found["loss_uu"]


def test_an_epoch_is_judged_by_its_first_steps_its_logits_and_its_effects():
    said: list[str] = []
    alarms, rng = Alarms(said.append), np.random.default_rng(0)
    fine = (np.arange(2000) % 2, rng.normal(size=2000))
    alarms.after_epoch({"epoch": 0, "step": 0}, {}, ["loss_ii"], {"effect_item_text": 0.0}, fine, "val")
    losses = np.r_[np.full(FIRST_STEPS, 5.0), np.full(40, 4.0)]
    for epoch, loss in ((1, 4.2), (2, 5.0), (3, 5.0)):
        record = {"epoch": epoch, "step": SETTLED * epoch, "train_loss_ii": loss}
        alarms.after_epoch(record, {"loss_ii": losses}, ["loss_ii"], {"effect_item_text": 0.0}, fine, "val")
    assert [line.split(":")[1] for line in said] == [" step 100", " step 150"]
    assert "item_text hardly" in said[0] and "5.0000 at first, 5.0000 now" in said[1]


def test_a_loss_that_need_not_fall_is_judged_by_whether_it_is_there():
    for falls, names in ((True, ["loss_ii", "loss_uu"]), (False, ["loss_uu"])):
        alarms = Alarms(lambda text: None, falls)
        for epoch in (1, 2):
            record = {"epoch": epoch, "step": epoch, "train_loss_ii": 2.1, "train_loss_uu": 0.0}
            steps = {"loss_ii": np.full(9, 2.1), "loss_uu": np.zeros(9)}
            alarms.after_epoch(record, steps, ["loss_ii", "loss_uu"], {}, None, None)
        assert [alarm["name"] for alarm in alarms.listed()] == names


@pytest.mark.parametrize(("positives", "negatives"), [(40, 300), (500, 30), (100, 100)])
def test_the_standard_error_of_an_auc_is_that_of_simulated_ones(positives, negatives):
    """Exponential scores, for which Hanley and McNeil's formula is exact, of AUC 3 / 4."""
    rng, label = np.random.default_rng(1), np.r_[np.ones(positives), np.zeros(negatives)]
    scales = np.where(label > 0, 3.0, 1.0)
    values = [roc_auc(label, rng.exponential(scales)) for _ in range(1500)]
    assert np.mean(values) == pytest.approx(0.75, abs=0.005)
    assert auc_standard_error(0.75, positives, negatives) == pytest.approx(np.std(values), rel=0.08)


def test_too_few_of_a_label_to_select_by():
    assert not held_out_alarms(5000, 900, "val")
    text = held_out_alarms(1000, 40, "val")["held_out"]
    assert "only 40 negatives among 1,040 rows" in text and "split.val_share" in text
    assert "only 30 positives" in held_out_alarms(30, 900, "val")["held_out"]
    assert "have one label" in held_out_alarms(0, 900, "val")["held_out"]
