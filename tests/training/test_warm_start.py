"""A training with a wide path starts as scikit-learn's logistic regression, which is a candidate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.metrics import roc_auc
from dlrrec_torchrec.models.calibration import fit_calibration
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training import epochs, stage
from dlrrec_torchrec.training.steps import PlainPipeline
from dlrrec_torchrec.training.trainer import Trainer
from dlrrec_torchrec.training.warm_start import (
    DEFAULT_PENALTY,
    PENALTIES,
    PRODUCT_SCALE,
    Given,
    dense_rows,
    fit,
    scaling,
    strongest,
)
from tests.helpers.shards import plain_spec, write_shards
from tests.helpers.threads import one_thread  # noqa: F401

MODEL = ModelConfig(dropout=0.1)
OFF = ContrastiveConfig(item_weight=0, user_weight=0)
TRAIN = TrainConfig(epochs=1, batch_size=100, lr=0.003, device="cpu", patience=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "shards"
    return write_shards(folder, rows=(600, 150, 150), users=60, items=40, rows_per_shard=100)


def rows_of(shards: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    (batch,) = make_loader(shards, split, 1000, plain_spec(shards, modalities=[], positives=0))
    return batch.dense.numpy(), batch.label.numpy()


def train(shards: Path, out: Path, model=MODEL, contrastive=OFF, protocol="strict", **changes) -> Manifest:
    settings = TrainConfig(**vars(TRAIN) | changes)
    return stage.train(model, contrastive, settings, protocol, shards, out)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def oracle(x: np.ndarray, y: np.ndarray, penalty: float, weights=(1.0, 1.0)):
    """scikit-learn's scaler and regression, with the clipping between them: rows -> decision function."""
    scaler = StandardScaler().fit(x)

    def z(rows):
        return np.clip(scaler.transform(rows), -5, 5)

    # Its own default, lbfgs, stops a little earlier: within 1e-4 of these logits.
    model = LogisticRegression(
        C=penalty, solver="newton-cg", max_iter=5000, tol=1e-10, class_weight=dict(enumerate(weights))
    ).fit(z(x), y)
    return lambda rows: model.decision_function(z(rows))


def test_the_first_prediction_is_sklearns_decision_function(shards, tmp_path, monkeypatch):
    """The model that is kept, whose training brought nothing, and through the same path as at serving."""
    scored = []
    plain = Trainer.evaluate

    def evaluate(self, rows):
        metrics = plain(self, rows)
        scored.append(self.scored)
        return metrics | {"auc": metrics["auc"] if len(scored) == 1 else 0.0}

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    manifest = train(shards, tmp_path / "out", class_weights="normalized")
    (x, y), (x_val, y_val) = (rows_of(shards, split) for split in ("train", "val"))
    weights = [len(y) / (2 * (y == label).sum()) for label in (0, 1)]
    logits = {c: oracle(x, y, c, weights)(x_val) for c in PENALTIES}
    start = manifest.facts["start"]
    losses = {c: np.logaddexp(0, np.where(y_val > 0, -of, of)) for c, of in logits.items()}
    assert start["C"] == strongest(losses)
    assert start["grid"] == pytest.approx({f"{c:g}": loss.mean() for c, loss in losses.items()}, abs=1e-5)
    assert start["rows"] == 600 and start["features"] == 7 and start["chosen_by"] == "loss"
    assert scored[0][1] == pytest.approx(logits[start["C"]], abs=1e-5)
    ours = fit(x, y, (x_val, y_val), weights)
    z = np.clip((x_val - ours.mean) / ours.scale, -5, 5)
    assert scored[0][1] == pytest.approx(z @ ours.weight + ours.bias, abs=1e-5)

    assert (
        manifest.facts["best_epoch"] == 0
        and json.loads((tmp_path / "out/best.json").read_text())["epoch"] == 0
    )
    history = records(tmp_path / "out")
    assert [r["epoch"] for r in history] == [0, 1] and [r["best"] for r in history] == [True, False]
    assert history[0]["auc"] == pytest.approx(roc_auc(y_val, scored[0][1]))
    scorer = Scorer(tmp_path / "out", shards)  # best is epoch 0, with its standardisation
    assert scorer.logits(scorer.split("val")) == pytest.approx(scored[0][1], abs=1e-6)
    label, logit = scored[0]
    fitted = fit_calibration(label, logit)
    assert vars(scorer.calibration) == pytest.approx(vars(fitted)) and fitted.temperature != 1


def test_training_can_only_leave_it_by_validation(shards, tmp_path):
    """A learning rate that ruins every epoch leaves the start, which is kept: the ruins have no share."""
    manifest = train(shards, tmp_path / "out", lr=1.0, epochs=2)
    history = records(tmp_path / "out")
    assert manifest.facts["best_epoch"] == 0 and history[0]["auc"] >= max(r["auc"] for r in history[1:])
    assert manifest.facts["base_epoch"] == 0 and {record["share"] for record in history} == {0.0}
    scorer = Scorer(tmp_path / "out", shards)
    logits = scorer.logits(scorer.split("val"))
    assert roc_auc(rows_of(shards, "val")[1], logits) == pytest.approx(history[0]["auc"], abs=1e-6)


def test_going_on_does_not_fit_again(shards, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    whole = train(shards, tmp_path / "whole")
    for name, owner, method in (("first", Trainer, "evaluate"), ("step", PlainPipeline, "progress")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, method, kill)
            with pytest.raises(Killed):
                train(shards, tmp_path / name)
        with monkeypatch.context() as patched:
            if name == "step":  # epoch 0 is saved
                patched.setattr(epochs, "warm_start", kill)
            manifest = train(shards, tmp_path / name)
        assert manifest.facts == whole.facts
        timeless = ("seconds", "rows_per_second")
        both = [[{k: v for k, v in r.items() if k not in timeless} for r in records(tmp_path / n)]
                for n in ("whole", name)]  # fmt: skip
        assert both[0] == both[1] and len(both[0]) == 2


def test_scaling_leaves_constant_columns(shards):
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(3, 2, 500), np.full(500, 1e4), np.zeros(500), np.full(500, 0.1)].astype(np.float32)
    mean, scale = scaling(x)
    assert mean == pytest.approx(x.astype(float).mean(0)) and scale[1:].tolist() == [1, 1, 1]
    assert scale[0] == pytest.approx(x[:, 0].astype(float).std(), rel=1e-6)


def test_rows_that_cannot_choose_or_be_fitted(shards):
    x, y = rows_of(shards, "train")
    for held_out in (None, (x[:20], y[:20]), (x[y == 1][:100], y[y == 1][:100])):
        start = fit(x, y, held_out, (1.0, 1.0))
        assert start.facts["C"] == DEFAULT_PENALTY and start.facts["chosen_by"] == "default"
    by_loss = fit(x, y, (x[:300], y[:300]), (1.0, 1.0)).facts
    assert by_loss["chosen_by"] == "loss"
    assert by_loss["C"] <= float(min(by_loss["grid"], key=by_loss["grid"].get))
    alone = fit(x, np.ones(len(x)), None, (1.0, 1.0))
    assert not alone.weight.any() and alone.bias == 0 and "one label" in alone.facts["note"]


def test_profiles_are_used_only_where_held_out_rows_gain_from_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 5)).astype(np.float32)
    groups = (range(1, 3), range(3, 5))
    product = 2 * x[:, 1] * x[:, 3] - x[:, 2] * x[:, 4]
    with_them = np.c_[x, (x[:, 1:3, None] * x[:, None, 3:5]).reshape(len(x), 4)]
    for logit, useful, number in (
        (x[:, 0], "none", 1),
        (x[:, 0] + x[:, 3], "alone", 5),
        (product, "products", 9),
    ):
        y = (rng.random(6000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        held_out = x[4000:], y[4000:]
        start = fit(x[:4000], y[:4000], held_out, (1.0, 1.0), products=groups)
        assert start.facts["profiles"] == useful and len(start.weight) == 9
        assert np.isinf(start.scale[number:]).all() and not start.weight[number:].any()
        best = {name: min(grid.values()) for name, grid in start.facts["grids"].items()}
        assert start.facts["grid"] == start.facts["grids"][useful]
        assert best[useful] <= min(best.values()) + 0.003
        z = np.clip((with_them - start.mean) / start.scale, -5, 5)
        seen = z[:, :number]
        decide = LogisticRegression(C=start.facts["C"], tol=1e-10, max_iter=5000).fit(seen[:4000], y[:4000])
        expected = decide.decision_function(seen[4000:])
        assert z[4000:] @ start.weight + start.bias == pytest.approx(expected, rel=1e-3, abs=1e-3)
        deviations = with_them[:4000].std(0)[:number] * np.where(np.arange(number) < 5, 1, PRODUCT_SCALE)
        assert start.scale[:number] == pytest.approx(deviations, rel=1e-5)
        again = fit(x[:4000], y[:4000], None, (1.0, 1.0), Given(start.facts["C"], useful), groups)
        assert again.weight == pytest.approx(start.weight, abs=1e-4)
        assert np.array_equal(again.scale, start.scale)
    without = fit(x[:4000], y[:4000], None, (1.0, 1.0), Given(0.1, "products"))  # the columns are not there
    assert without.facts["profiles"] == "none" and np.isfinite(without.scale).all()


def test_the_strongest_penalty_that_few_rows_cannot_tell_from_the_best():
    rng = np.random.default_rng(0)
    noise, base = rng.normal(size=400), rng.random(400)
    best = base - 0.2 * noise.std()
    # differences of mean 0.2 and 1 standard errors of the mean
    level, worse = (best + noise - noise.mean() + share * noise.std() / 20 for share in (0.2, 1.0))
    assert strongest({0.001: worse, 0.01: level, 0.1: best, 1.0: best + 1}) == 0.01
    assert strongest({0.001: best, 0.01: best}) == 0.001 and strongest({1.0: base}) == 1.0


def test_a_large_split_is_read_in_part(shards):
    facts = ShardFacts.read(shards)
    x, y = dense_rows(shards, "train", facts, seed=0)
    all_x, all_y = rows_of(shards, "train")
    assert np.array_equal(x, all_x) and np.array_equal(y, all_y)
    part, label = dense_rows(shards, "train", facts, seed=0, most=250)
    assert part.shape == (250, 7) and len(label) == 250
    known = {row.tobytes() for row in all_x}
    assert all(row.tobytes() in known for row in part)
    again = dense_rows(shards, "train", facts, seed=0, most=250)[0]
    other = dense_rows(shards, "train", facts, seed=1, most=250)[0]
    assert np.array_equal(part, again) and not np.array_equal(part, other)


def test_the_papers_protocol_takes_no_test_row_to_fit(shards, tmp_path):
    facts = train(shards, tmp_path / "out", protocol="paper").facts
    assert facts["start"]["chosen_by"] == "default" and "no validation rows" in facts["calibration"]["note"]


def test_what_goes_wrong_is_kept_in_the_manifest(shards, tmp_path):
    few = write_shards(tmp_path / "shards", rows=(200, 40, 10), users=20, items=10)
    alarms = {a["name"]: a for a in train(few, tmp_path / "out", lr=30.0, epochs=8).facts["alarms"]}
    assert "saturated" in alarms and "held_out" in alarms
    assert "probabilities are 0.000 or 1.000" in alarms["saturated"]["text"]
    history = records(tmp_path / "out")
    assert all(0 < r["auc"] < 1 and r["auc"] != 0.5 for r in history)  # ranked by logits, not by 1.000


def test_settings_left_open_are_chosen_and_kept(shards, tmp_path, capsys):
    settings = TrainConfig(batch_size=100, device="cpu", epochs=1)
    manifest = stage.train(ModelConfig(dropout=0.2), OFF, settings, "strict", shards, tmp_path / "out")
    chosen = manifest.facts["chosen"]
    assert manifest.config["model"]["text_tower"] == chosen["model.text_tower"] == [32]
    assert manifest.config["train"]["lr"] == chosen["train.lr"] and "model.dropout" not in chosen
    assert "train.epochs" not in chosen and "600 training rows" in capsys.readouterr().err
    scorer = Scorer(tmp_path / "out", shards)  # the model that was trained
    assert len(scorer.logits(scorer.split("val"))) == 150
    again = stage.train(ModelConfig(dropout=0.2), OFF, settings, "strict", shards, tmp_path / "out")
    assert again.reused
