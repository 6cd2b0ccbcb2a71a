"""What a model asks of its batches, by its settings and the shards: derived once."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TableConfig, TrainConfig
from dlrrec_torchrec.data.draws import permuted_positives
from dlrrec_torchrec.data.entities import entity_positives
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.models.spec import batch_spec, with_draws
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import build, make_facts, write_shards

AUDIO = {"modalities": ["user_text", "item_text", "item_audio"], "dims": {"item_audio": 16}}


def test_keys_follow_the_tables():
    def keys(**model):
        spec = batch_spec(ModelConfig(**model), make_facts())
        return spec.sparse, spec.managed, spec.hashed

    assert keys() == (("category",), (), {})
    assert keys(user_id=True, item_id=True) == (("category", "user", "item"), (), {})
    tables = {"user": TableConfig(ids="managed"), "item": TableConfig(ids="hash", rows=7)}
    assert keys(user_id=True, item_id=True, tables=tables) == (("category", "item"), ("user",), {"item": 7})
    assert keys(category=False, item_id=True) == (("item",), (), {})


def test_all_modalities_unless_some_are_named():
    facts = make_facts(**AUDIO)
    spec = batch_spec(ModelConfig(), facts)
    assert spec.in_rows == facts.modalities == spec.modalities and not spec.in_tables
    spec = batch_spec(ModelConfig(modalities=["item_audio"]), facts)
    assert [(m.name, m.dim, m.side, m.kind) for m in spec.in_rows] == [("item_audio", 16, "item", "other")]
    spec = batch_spec(ModelConfig(vectors="table"), make_facts(modalities=[]))
    assert [m.name for m in spec.in_tables] == ["user_text", "item_text", "item_image"] and not spec.in_rows
    assert batch_spec(ModelConfig(modalities=[]), make_facts(modalities=[])).modalities == ()


def test_draws_and_positives_only_where_a_term_needs_them():
    facts = make_facts(users=9, items=8, **AUDIO)
    spec = batch_spec(ModelConfig(), facts, ContrastiveConfig(user_weight=0.0, num_negatives=4), seed=3)
    assert [(d.side, d.entities, d.negatives, d.seed) for d in spec.draws] == [("item", 8, 4, 3)]
    assert spec.positives == facts.positives > 0
    assert spec.to_predict().draws == () and spec.to_predict().positives == 0
    off = batch_spec(ModelConfig(), facts, ContrastiveConfig(item_weight=0.0, user_weight=0.0))
    assert off.draws == () and off.positives == 0
    within = batch_spec(ModelConfig(), facts, ContrastiveConfig(negatives="batch"))
    assert [d.negatives for d in within.draws] == [0, 0]


@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        ({"modalities": ["item_video"]}, AUDIO, "model.modalities: there is no 'item_video' .*item_audio"),
        ({}, {"modalities": []}, "model.vectors=row: the rows of these shards hold no vectors.*=table"),
        ({"vectors": "cloud"}, {}, "model.vectors.*'cloud' is not one of row, table"),
        ({"towers": {"item_audio": [32]}}, {}, "model.towers: there is no modality 'item_audio'"),
        (
            {"towers": {"item_audio": [32, 9]}},
            AUDIO,
            "model.towers.*item_audio: .32, 9. must end in model.embedding_dim",
        ),
        ({"other_tower": []}, AUDIO, "model.other_tower.*must have at least one layer"),
    ],
)
def test_what_there_is_not_is_named(model, facts, words):
    with pytest.raises(DataError, match=words):
        build(ModelConfig(**model), **facts)


def test_each_kind_has_its_tower_and_a_modality_may_have_its_own():
    config = ModelConfig(other_tower=[8, 32], towers={"item_text": [32]})
    towers = build(config, **AUDIO).dense_arch.towers
    shapes = {n: [tuple(layer.weight.shape) for layer in t.layers[::2]] for n, t in towers.items()}
    assert shapes == {
        "user_text": [(256, 384), (32, 256)],
        "item_text": [(32, 384)],
        "item_audio": [(8, 16), (32, 8)],
    }
    assert towers["item_audio"](torch.randn(3, 16)).shape == (3, 32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 4))
def test_permuted_lists_are_other_entities_lists(seed, entities, most):
    """Against the plain way: who has a list gets one of those lists, each once, without itself in it."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(entities)[: rng.integers(0, most + 1)].tolist() for _ in range(entities)]
    lists = [[other for other in found if other != code] for code, found in enumerate(lists)]
    positives = torch.tensor([row + [-1] * (most - len(row)) for row in lists]).reshape(entities, most).long()
    moved = permuted_positives(positives, "user", seed)
    assert torch.equal(moved, permuted_positives(positives, "user", seed))
    found = [[code for code in row if code >= 0] for row in moved.tolist()]
    assert moved.tolist() == [listed + [-1] * (most - len(listed)) for listed in found]
    owners = [code for code, row in enumerate(lists) if row]
    assert all(code in owners for code, row in enumerate(found) if row)
    for code in owners:
        assert any([other for other in row if other != code] == found[code] for row in lists if row)
    if entities > 2 and most and all(len(row) == most for row in lists):  # nothing is left over or used twice
        taken = sorted(code for row in found for code in row)
        every = sorted(code for row in lists for code in row)
        assert not set(taken) - set(every) and len(every) - len(taken) <= entities


def test_permuted_lists_are_not_ones_own():
    positives = torch.arange(400).reshape(200, 2) % 200
    positives = torch.where(positives == torch.arange(200).unsqueeze(1), (positives + 7) % 200, positives)
    moved = permuted_positives(positives, "item", 1)
    assert (moved == positives).all(1).float().mean() < 0.05
    assert not torch.equal(moved, permuted_positives(positives, "item", 2))
    assert not torch.equal(moved, permuted_positives(positives, "user", 1))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("permuted") / "shards"
    return write_shards(folder, rows=(200, 60, 20), users=30, items=20, dims={"item_image": 16})


@pytest.mark.parametrize("vectors", ["row", "table"])
def test_batches_bring_permuted_positives(shards, vectors):
    """The same positives, whether vectors come with the rows or from tables."""
    config, terms = ModelConfig(vectors=vectors), ContrastiveConfig(num_negatives=4, permuted=True)
    spec = batch_spec(config, ShardFacts.read(shards), terms, seed=3)
    plain = list(make_loader(shards, "train", 64, spec))
    moved = list(make_loader(shards, "train", 64, with_draws(spec, shards, terms, 3)))
    for side in ("user", "item"):
        table = permuted_positives(torch.from_numpy(entity_positives(shards, side)), side, 3)
        for before, after in zip(plain, moved, strict=True):
            codes, found = getattr(after, side), getattr(after, f"{side}_positives")
            known = codes >= 0
            assert torch.equal(found[known], table[codes[known]]) and (found[~known] == -1).all()
            assert not torch.equal(found, getattr(before, f"{side}_positives"))
            if vectors == "table":
                lookup = after.lookup
                places = lookup.places[side]["positive"]
                present = found[:, 0] >= 0
                assert torch.equal(lookup.codes[side][places[present]], found[present, 0])
    assert with_draws(spec, shards, terms, 3).to_predict().replaced == {}


def test_a_training_can_be_permuted(shards, tmp_path):
    settings = TrainConfig(epochs=1, batch_size=50, device="cpu", log_steps=0)
    losses = {}
    for permuted in (False, True):
        out = tmp_path / str(permuted)
        terms = ContrastiveConfig(num_negatives=8, permuted=permuted)
        train(ModelConfig(), terms, settings, "strict", shards, out, ListConfig(weight=0.0))
        losses[permuted] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("train_loss_ii", "train_loss_uu"):
        assert losses[True][name] != losses[False][name]
