"""What a model asks of its batches, by its settings and the shards: derived once."""

import pytest
import torch

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TableConfig
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.shards import build, make_facts

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
