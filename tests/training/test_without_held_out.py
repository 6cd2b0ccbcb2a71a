"""A training without held-out rows is the evaluated one to its best epoch, and takes over what that chose."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.training.selection import Evaluated, Selection
from dlrrec_torchrec.training.stage import train
from dlrrec_torchrec.training.steps import PlainPipeline
from dlrrec_torchrec.training.trainer import SHARES, Trainer, cross_entropy
from tests.helpers.shards import write_shards

LISTS = ListConfig(dim=8, id_dropout=0.2)
# The rate falls with the steps of all epochs, not of those that are left.
SETTINGS = TrainConfig(epochs=4, batch_size=100, lr=0.01, schedule="cosine", device="cpu", patience=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "shards"
    return write_shards(folder, rows=(500, 150, 20), users=40, items=30, dims={"item_image": 64})


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory) -> Path:
    """The same shards, without any row but the training rows."""
    folder = tmp_path_factory.mktemp("alone") / "shards"
    shutil.copytree(shards, folder)
    for split in ("val", "test"):
        shutil.rmtree(folder / split)
    return folder


def run(shards: Path, out: Path, lists=None, evaluated: Evaluated | None = None) -> Manifest:
    terms = ContrastiveConfig(num_negatives=8)
    return train(ModelConfig(), terms, SETTINGS, "strict", shards, out, lists, evaluated)


def scores(out: Path, shards: Path) -> list[np.ndarray]:
    """Logits and probabilities of all pairs of some users, and list scores where there are any."""
    scorer, users = Scorer(out, shards), np.arange(5)
    entities = load_entities(shards, scorer.spec.in_rows)
    logits = scorer.logits(scorer.pairs(entities, np.repeat(users, 30), np.tile(np.arange(30), 5)))
    lists = [scorer.list_scores(users)] if scorer.has_lists else []
    return [logits, scorer.calibration.probability(logits), *lists]


@pytest.mark.parametrize(
    ("lists", "best"), [(None, 2), (LISTS, 2), (None, 0)], ids=["rating", "list", "start"]
)
def test_it_is_the_best_epochs_model(shards, alone, tmp_path, monkeypatch, lists, best):
    plain = Selection.update

    def best_is_known(self, epoch, metrics):
        rigged = dict.fromkeys(("auc", "ndcg@20", "recall@20"), -abs(epoch - best))
        return plain(self, epoch, metrics | rigged)

    with monkeypatch.context() as patched:
        patched.setattr(Selection, "update", best_is_known)
        before = run(shards, tmp_path / "evaluated", lists)
    assert before.facts["best_epoch"] == best < before.facts["epochs"]
    evaluated = Evaluated.of(before)

    def refuse(*_):
        raise AssertionError("there is nothing to evaluate")

    monkeypatch.setattr(Trainer, "evaluate", refuse)
    after = run(alone, tmp_path / "all", lists, evaluated)
    assert after.facts["epochs"] == after.facts["best_epoch"] == best
    assert after.rows == {"train": 500} and after.facts["split"] is None
    assert after.facts["start"]["C"] == before.facts["start"]["C"]
    assert after.facts["start"]["profiles"] == before.facts["start"]["profiles"]
    for name in ("calibration", "list", "share", "base_epoch"):
        assert after.facts[name] == before.facts[name]
    assert evaluated.calibration.temperature != 1
    for one, other in zip(
        scores(tmp_path / "all", alone), scores(tmp_path / "evaluated", shards), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len((tmp_path / "all" / "metrics.jsonl").read_text().splitlines()) == best + 1
    assert run(alone, tmp_path / "all", lists, evaluated).reused
    other = dataclasses.replace(evaluated, fingerprint="another")
    assert not run(alone, tmp_path / "all", lists, other).reused


def test_a_killed_one_goes_on_as_the_same(alone, tmp_path, monkeypatch):
    facts = {"start": {"C": 0.01, "profiles": "none"}, "best_epoch": 3, "list": None, "share": 0.5}
    with pytest.raises(DataError, match=r"of an earlier version; run `dlrrec train`"):
        Evaluated.of(Manifest("train", {}, {}, facts=facts | {"start": None}))
    facts["base_epoch"] = 2
    evaluated = Evaluated.of(Manifest("train", {}, {}, facts=facts))
    run(alone, tmp_path / "whole", None, evaluated)
    plain, steps = PlainPipeline.progress, []

    def kill(self, batches):
        steps.append(1)
        if len(steps) == 8:  # in the second epoch
            raise KeyboardInterrupt
        return plain(self, batches)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PlainPipeline, "progress", kill)
        run(alone, tmp_path / "killed", None, evaluated)
    run(alone, tmp_path / "killed", None, evaluated)
    for one, other in zip(scores(tmp_path / "killed", alone), scores(tmp_path / "whole", alone), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    epochs = [
        json.loads(line)["epoch"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()
    ]
    assert epochs == [0, 1, 2, 3]


def test_wide_and_residual_path_are_kept_as_of_their_own_best_epoch(shards, tmp_path, monkeypatch):
    plain, seen = Trainer._chosen, []

    def recorded(self, label, now, kept, deep):
        seen.append([cross_entropy(label.double().numpy(), part.double().numpy()) for part in (now, kept)])
        return plain(self, label, now, kept, deep)

    monkeypatch.setattr(Trainer, "_chosen", recorded)
    settings = dataclasses.replace(SETTINGS, residual_lr=0.05, epochs=6, patience=0, select="loss")
    terms = ContrastiveConfig(num_negatives=8)
    out = tmp_path / "out"
    trained = train(ModelConfig(residual=[16]), terms, settings, "strict", shards, out)
    losses = [now for now, _ in seen]
    assert len(losses) == 7 and losses[-1] > min(losses)  # it over-fits these few rows
    for epoch, (_, kept) in enumerate(seen[1:], 1):
        assert kept == pytest.approx(min(losses[:epoch]), rel=1e-6)
    best = trained.facts["best_epoch"]
    assert trained.facts["base_epoch"] == int(np.argmin(losses[: best + 1]))
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert trained.facts["share"] == history[best]["share"] in SHARES
