"""New positives against plain loops, and in a training."""

import dataclasses
import doctest
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ContrastiveConfig, TrainConfig
from dlrrec_torchrec.data.entities import entity_positives, load_entities
from dlrrec_torchrec.data.hard_negatives import second_neighbours
from dlrrec_torchrec.models.list_sides import content_directions
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training import epochs, refresh
from dlrrec_torchrec.training.refresh import FUSION, fused, nearest, new_share
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import papers_model, write_shards
from tests.helpers.threads import one_thread  # noqa: F401


def rows_of_codes(data, number, width):
    """Lists of different codes, padded with -1 at the end."""
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 9), max_size=width, unique=True), min_size=number, max_size=number)
    )
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows]).reshape(number, width).long()


@settings(max_examples=80)
@given(number=st.integers(0, 4), first=st.integers(0, 5), second=st.integers(0, 5), data=st.data())
def test_fusion_equals_the_loop(number, first, second, data):
    swing, near = rows_of_codes(data, number, first), rows_of_codes(data, number, second)
    found = fused(swing, near)
    assert found.shape == swing.shape
    for own, others, row in zip(swing.tolist(), near.tolist(), found.tolist(), strict=True):
        scores = {}
        for ranked in (own, others):
            for rank, code in enumerate(ranked):
                if code >= 0:
                    scores[code] = scores.get(code, 0) + 1 / (FUSION + 1 + rank)
        # the first list's come first among equals
        order = sorted(scores, key=lambda code: (-scores[code], code not in own, (own + others).index(code)))
        wanted = order[: sum(code >= 0 for code in own)]
        assert row == wanted + [-1] * (len(own) - len(wanted))


@settings(max_examples=40)
@given(number=st.integers(1, 9), wanted=st.integers(0, 12), seed=st.integers(0, 9999))
def test_nearest_equals_the_loop(number, wanted, seed):
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(number, 3, generator=rng)
    vectors[torch.rand(number, generator=rng) < 0.2] = 0
    expected = []
    for k in range(number):
        others = [n for n in range(number) if n != k and vectors[n].any() and vectors[k].any()]
        others.sort(key=lambda n, k=k: -float(F.cosine_similarity(vectors[k], vectors[n], dim=0)))
        expected.append((others + [-1] * wanted)[:wanted])
    assert nearest(vectors, wanted).tolist() == expected


def test_blocks_are_one_list(monkeypatch):
    torch.manual_seed(0)
    vectors, swing = torch.randn(20, 4), torch.randint(0, 20, (20, 3))
    near = nearest(vectors, 3)
    whole = fused(swing, near)
    monkeypatch.setattr(refresh, "_BLOCK", 7)
    assert nearest(vectors, 3).equal(near) and fused(swing, near).equal(whole)


def test_the_share_of_new_ones():
    before, after = torch.tensor([[1, 2], [3, -1]]), torch.tensor([[2, 5], [3, -1]])
    assert new_share(before, after) == pytest.approx(1 / 3)
    assert new_share(before[:0], after[:0]) == 0


MODEL = papers_model(dropout=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("refresh") / "shards", rows=(300, 80, 80), users=50, items=30)


def run(shards, out, vectors="row", **contrastive):
    settings = TrainConfig(epochs=3, batch_size=100, lr=0.003, weight_decay=0.0, device="cpu", patience=0)
    model = dataclasses.replace(MODEL, vectors=vectors)
    terms = ContrastiveConfig(**{"num_negatives": 16, "positive": "sample"} | contrastive)
    return train(model, terms, settings, "strict", shards, out)


@pytest.mark.parametrize("vectors", ["row", "table"])
def test_a_training_takes_over_what_its_towers_say(shards, tmp_path, monkeypatch, vectors):
    """The positives after the last epoch are SWING's fused with the nearest by the model as it is then."""
    kept = {}
    plain = epochs.Run._save

    def save(self, **options):
        kept["refresh"], kept["model"], kept["spec"] = self.refresh, self.assembly, self.refresh._spec
        plain(self, **options)

    monkeypatch.setattr(epochs.Run, "_save", save)
    run(shards, tmp_path / "out", vectors, refresh=1, negatives="swing_hard")
    entities = load_entities(shards)
    model = kept["model"].plain.eval()
    for side in ("user", "item"):
        swing = torch.from_numpy(entity_positives(shards, side))
        found = {m.name: entities.vectors[m.name] for m in model.modalities if m.side == side}
        directions = torch.from_numpy(content_directions(model, found, torch.device("cpu")))
        expected = fused(swing, nearest(directions, swing.shape[1]))
        used = kept["spec"].replaced[side]
        assert used.equal(expected) and used.is_shared() and not used.equal(swing)
        assert ((used >= 0) == (swing >= 0)).all()  # as many positives, of the same entities
        (near,) = [d.near for d in kept["spec"].draws if d.side == side]
        assert near.equal(torch.from_numpy(second_neighbours(expected.numpy())))
        assert getattr(kept["model"].wrapper, f"refreshed_{side}").equal(expected)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["new_positives_item"] < 1 for line in lines if line["epoch"])


def test_positives_change_at_the_borders_alone(shards, tmp_path):
    losses = {}
    for name, every in (("never", 0), ("second", 2)):
        run(shards, tmp_path / name, refresh=every)
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["train_loss_ii"] for line in lines if line["epoch"]]
        changed = [line["epoch"] for line in lines if "new_positives_item" in line]
        assert changed == [epoch for epoch in (1, 2, 3) if every and epoch % every == 0]
    assert losses["never"][:2] == losses["second"][:2] and losses["never"][2] != losses["second"][2]


def test_too_many_to_compare_are_named(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(refresh, "MOST", 40)
    with pytest.raises(DataError, match="contrastive.refresh: 50 users are too many.*--refresh 0"):
        run(shards, tmp_path / "out", refresh=1)
    run(shards, tmp_path / "items", refresh=1, user_weight=0.0)


def test_the_example_runs():
    assert not doctest.testmod(refresh).failed
