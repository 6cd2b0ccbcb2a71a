"""V0's two steps against plain torch, and what a training of two steps owes its user."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig, from_dict
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.models.build import build_model
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.reduction import STEP_ONE, VECTORS, step_one
from dlrrec_torchrec.training.selection import Evaluated
from dlrrec_torchrec.training.stage import train
from dlrrec_torchrec.training.steps import PlainPipeline
from tests.helpers.shards import papers_model, write_shards
from tests.helpers.threads import one_thread  # noqa: F401

PAIR = "user_text+item_text"
OFF = ContrastiveConfig(item_weight=0.0, user_weight=0.0)
V0 = papers_model(
    reduction="upstream",
    joined=[PAIR],
    interaction="pairwise",
    dense_arch=[8, 4],
    over_arch=[12, 6, 1],
    text_tower=[16, 5],
    image_tower=[6, 3],
    wide=False,
    category=False,
    user_id=False,
    item_id=False,
    dropout=0.0,
)
SETTINGS = TrainConfig(
    epochs=3, batch_size=100, lr=0.01, weight_decay=0.0, device="cpu", patience=0, select="loss"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    dims = {"user_text": 24, "item_text": 24, "item_image": 40}
    folder = tmp_path_factory.mktemp("v0") / "shards"
    return write_shards(folder, rows=(520, 150, 90), users=50, items=30, dims=dims)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "v0"
    train(V0, OFF, SETTINGS, "strict", shards, folder)
    return folder


def in_memory(shards: Path, split: str, epoch: int = 1, shuffle: bool = False):
    """The batches of a split in an epoch: dense, joined text, image, label."""
    spec = batch_spec(dataclasses.replace(V0, joined=[]), ShardFacts.read(shards))
    rows = make_loader(shards, split, 100, spec, seed=SETTINGS.seed, shuffle=shuffle)
    rows.set_epoch(epoch)
    for batch in rows:
        text = torch.cat([batch.vectors["user_text"], batch.vectors["item_text"]], dim=1).float()
        yield batch.dense, text, batch.vectors["item_image"].float(), batch.label


class PlainTower(nn.Module):
    """Linear, ReLU, linear, batch normalisation of the rows that have a vector."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:], bias=False)
        self.norm = nn.BatchNorm1d(sizes[2])

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        present = vectors.any(1)
        reduced = torch.zeros(len(vectors), self.out.out_features)
        reduced[present] = self.norm(self.out(torch.relu(self.hidden(vectors[present]))))
        return reduced

    def load(self, tower: nn.Module) -> None:
        state = tower.state_dict()
        linear = {k: v for k, v in state.items() if k.startswith("layers.")}
        first, second = sorted({k.split(".")[1] for k in linear}, key=int)
        self.hidden.weight.data.copy_(state[f"layers.{first}.weight"])
        self.hidden.bias.data.copy_(state[f"layers.{first}.bias"])
        self.out.weight.data.copy_(state[f"layers.{second}.weight"])


class PlainStepOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = PlainTower((48, 16, 5)), PlainTower((40, 6, 3))
        self.logit = nn.Linear(8, 1)

    def forward(self, dense, text, image) -> torch.Tensor:
        return self.logit(torch.cat([self.text(text), self.image(image)], dim=1)).squeeze(1)


class PlainStepTwo(nn.Module):
    """The DLRM on what step one wrote: bottom MLP, all products of scalars, top MLP."""

    def __init__(self, dense: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(dense, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        width = 4 + 5 + 3
        inputs = width + width * (width - 1) // 2
        self.top = nn.Sequential(
            nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1)
        )

    def forward(self, dense, text, image) -> torch.Tensor:
        x = torch.cat([self.bottom(dense), text, image], dim=1)
        products = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1, x.shape[1])]
        return self.top(torch.cat([x, torch.stack(products, dim=1)], dim=1)).squeeze(1)


def plain_training(model: nn.Module, batches, held_out) -> dict:
    """Adam for SETTINGS.epochs epochs; the state of the epoch with the lowest held-out loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS.lr)
    best, lowest = {}, np.inf
    for epoch in range(1, SETTINGS.epochs + 1):
        model.train()
        for *inputs, label in batches(epoch):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(*inputs), label).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            found = [(model(*inputs), label) for *inputs, label in held_out()]
        logit, label = (torch.cat(part) for part in zip(*found, strict=True))
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label).item()
        if loss < lowest:
            lowest, best = loss, {k: v.clone() for k, v in model.state_dict().items()}
    return best


def test_step_one_is_an_mlp_trained_on_the_outcome(shards, trained):
    torch.manual_seed(SETTINGS.seed)
    ours = build_model(step_one(V0), batch_spec(step_one(V0), ShardFacts.read(shards)))
    plain = PlainStepOne()
    plain.text.load(ours.dense_arch.towers[PAIR])
    plain.image.load(ours.dense_arch.towers["item_image"])
    plain.logit.load_state_dict(ours.logit.state_dict())
    best = plain_training(
        plain,
        lambda epoch: in_memory(shards, "train", epoch, shuffle=True),
        lambda: in_memory(shards, "val"),
    )
    plain.load_state_dict(best)
    plain.eval()
    reduction = load_trained(trained / STEP_ONE, shards)
    for dense, text, image, _ in in_memory(shards, "test"):
        with torch.no_grad():
            reduced = reduction.reduce({PAIR: text, "item_image": image})
            torch.testing.assert_close(reduced[PAIR], plain.text(text), atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(reduced["item_image"], plain.image(image), atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(
                reduction.predict(None, None, reduced), plain(dense, text, image), atol=2e-4, rtol=1e-3
            )


def written(trained: Path, split: str) -> dict[tuple[int, int], list[torch.Tensor]]:
    rows = pq.read_table(trained / STEP_ONE / VECTORS / split).to_pylist()
    sizes = {PAIR: 5, "item_image": 3}
    vectors = [[torch.tensor(r[name] or [0.0] * size) for name, size in sizes.items()] for r in rows]
    return {(r["user"], r["item"]): v for r, v in zip(rows, vectors, strict=True)}


def on_written(shards: Path, trained: Path, split: str, epoch: int = 1, shuffle: bool = False):
    """Batches as of `in_memory`, with what step one wrote for each row in place of its content vectors."""
    spec = batch_spec(dataclasses.replace(V0, joined=[]), ShardFacts.read(shards))
    rows = make_loader(shards, split, 100, spec, seed=SETTINGS.seed, shuffle=shuffle)
    rows.set_epoch(epoch)
    of_pair = written(trained, split)
    for batch in rows:
        pairs = zip(batch.user.tolist(), batch.item.tolist(), strict=True)
        columns = zip(*(of_pair[pair] for pair in pairs), strict=True)
        yield batch.dense, *(torch.stack(column) for column in columns), batch.label


def test_step_two_is_a_dlrm_on_the_vectors_that_step_one_wrote(shards, trained):
    torch.manual_seed(SETTINGS.seed)
    facts = ShardFacts.read(shards)
    ours = build_model(V0, batch_spec(V0, facts))
    plain = PlainStepTwo(facts.dense_width)
    for sequence, layers in (
        (plain.bottom, ours.dense_arch.model),
        (plain.top, ours.over_arch.model),
    ):
        linear = [part for part in layers.modules() if isinstance(part, nn.Linear)]
        mine = [part for part in sequence if isinstance(part, nn.Linear)]
        for one, other in zip(mine, linear, strict=True):
            one.load_state_dict(other.state_dict())
    best = plain_training(
        plain,
        lambda epoch: on_written(shards, trained, "train", epoch, shuffle=True),
        lambda: on_written(shards, trained, "val"),
    )
    plain.load_state_dict(best)
    plain.eval()
    with torch.no_grad():
        expected = torch.cat([plain(*inputs) for *inputs, _ in on_written(shards, trained, "test")])
    scorer = Scorer(trained, shards)
    np.testing.assert_allclose(scorer.logits(scorer.split("test")), expected.numpy(), atol=2e-3)


def test_frozen_towers_give_the_vectors_of_step_one(shards, trained):
    """DLRREC with towers frozen at V0's weights: bit for bit what step one gives, and what it wrote."""
    first, second = load_trained(trained / STEP_ONE, shards), load_trained(trained, shards)
    towers = second.dense_arch.towers
    assert not any(parameter.requires_grad for parameter in towers.parameters())
    second.train()
    assert second.training and not any(part.training for part in towers.modules())
    assert second.over_arch.training
    for split in ("train", "val", "test"):
        of_pair, seen = written(trained, split), 0
        for batch in make_loader(shards, split, 64, Scorer(trained, shards).spec):
            with torch.no_grad():
                one, other = first.reduce(batch.vectors), second.reduce(batch.vectors)
            assert set(one) == set(other) == {PAIR, "item_image"}
            for name, place in ((PAIR, 0), ("item_image", 1)):
                assert torch.equal(one[name], other[name])
                pairs = zip(batch.user.tolist(), batch.item.tolist(), strict=True)
                kept = torch.stack([of_pair[pair][place] for pair in pairs])
                torch.testing.assert_close(kept, one[name], atol=1e-6, rtol=1e-6)
            seen += len(batch)
        assert seen == Manifest.read(shards).rows[split]


def test_the_manifest_says_what_step_one_was(shards, trained):
    facts, first = Manifest.read(trained).facts, Manifest.read(trained / STEP_ONE)
    assert facts["step_one"]["best_epoch"] == first.facts["best_epoch"] >= 1
    assert from_dict(ModelConfig, first.config["model"], "test").reduction == "alone"
    assert first.config["contrastive"]["item_weight"] == 0 and first.config["train"]["lr"] == SETTINGS.lr


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("step", [4, 20])  # of 18 steps of either half
def test_a_killed_one_goes_on_as_the_same(shards, trained, tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    plain, calls = PlainPipeline.progress, []

    def kill(self, batches):
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return plain(self, batches)

    out = tmp_path / "v0"
    settings = dataclasses.replace(SETTINGS, checkpoint_steps=2)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PlainPipeline, "progress", kill)
        train(V0, OFF, settings, "strict", shards, out)
    calls.clear()
    monkeypatch.setattr(PlainPipeline, "progress", lambda *given: (calls.append(1), plain(*given))[1])
    done = train(V0, OFF, settings, "strict", shards, out)
    assert len(calls) < 36
    assert losses(out) == losses(trained) and losses(out / STEP_ONE) == losses(trained / STEP_ONE)
    mine, other = load_trained(out, shards).state_dict(), load_trained(trained, shards).state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    whole = Manifest.read(trained).facts
    for facts in (done.facts, whole):
        del facts["step_one"]["seconds"]
    assert done.facts == whole and train(V0, OFF, settings, "strict", shards, out).reused


def test_other_settings_of_a_tower_train_step_one_again(shards, tmp_path):
    out = tmp_path / "v0"
    short = dataclasses.replace(SETTINGS, epochs=1)
    train(V0, OFF, short, "strict", shards, out)
    before = Manifest.read(out / STEP_ONE).fingerprint
    top = dataclasses.replace(V0, over_arch=[4, 1])
    train(top, OFF, short, "strict", shards, out)
    same = Manifest.read(out / STEP_ONE).fingerprint
    train(dataclasses.replace(V0, text_tower=[5]), OFF, short, "strict", shards, out)
    other = Manifest.read(out / STEP_ONE).fingerprint
    assert before == same != other
    assert load_trained(out, shards).dense_arch.towers[PAIR].layers[0].weight.shape == (5, 48)


def test_all_rows_are_trained_on_in_both_steps(shards, trained, tmp_path):
    """As `refit` does: no row is held out, and both steps take their epochs over."""
    alone = tmp_path / "alone"
    shutil.copytree(shards, alone)
    for split in ("val", "test"):
        shutil.rmtree(alone / split)
    evaluated = Evaluated.of(Manifest.read(trained))
    assert evaluated.step_one_epochs == Manifest.read(trained / STEP_ONE).facts["best_epoch"]
    done = train(V0, OFF, SETTINGS, "strict", alone, tmp_path / "all", None, evaluated)
    assert done.facts["step_one"]["epochs"] == evaluated.step_one_epochs
    assert sorted(p.name for p in (tmp_path / "all" / STEP_ONE / VECTORS).iterdir()) == ["train"]
    scorers = [Scorer(tmp_path / "all", alone), Scorer(trained, shards)]
    pairs = np.arange(50), np.arange(50) % 30
    one, other = (s.logits(s.pairs(s.entities, *pairs)) for s in scorers)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_there_must_be_something_to_reduce(shards, tmp_path):
    with pytest.raises(DataError, match="model.reduction: there is no content vector to reduce"):
        train(
            dataclasses.replace(V0, modalities=[], joined=[]), OFF, SETTINGS, "strict", shards, tmp_path / "x"
        )
