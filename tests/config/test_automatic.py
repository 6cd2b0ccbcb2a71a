"""Settings left open: what the rule chooses, that it leaves the others, and that it is what is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ModelConfig, TrainConfig, load_config, variant
from dlrrec_torchrec.config.automatic import MOST_DECAY, DataSize, automatic, chosen_text
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.store.errors import DataError

ROOT = Path(__file__).parents[2]
SIZES = {  # of the shipped configurations' training rows
    "demo": DataSize(4_783, 575, 600, 250),
    "zomato": DataSize(7_000, 2_300, 3_600, 100),
    "movielens-100k": DataSize(71_855, 31_400, 943, 1_600),
}
sizes = st.tuples(st.integers(2, 10**9), st.floats(0, 0.5), st.integers(1, 10**8), st.integers(1, 10**8))


@given(sizes, st.integers(2, 1 << 16), st.booleans())
@settings(max_examples=60)
def test_every_size_gives_settings_that_can_be_used(numbers, batch, category):
    rows, share, users, items = numbers
    size = DataSize(rows, int(rows * share), users, items)
    model, train, chosen = automatic(ModelConfig(category=category), TrainConfig(batch_size=batch), size)
    check_settings(model, train)
    given_ = {f"{s}.{f.name}" for s, c in (("model", model), ("train", train)) for f in dataclasses.fields(c)}
    assert chosen.keys() <= given_ and len(chosen) == 13
    for name, value in chosen.items():
        section, field = name.split(".")
        assert getattr({"model": model, "train": train}[section], field) == value
    assert model.user_id or category
    assert automatic(model, train, size) == (model, train, {})  # nothing is left open
    steps = -(-rows // batch)
    assert train.weight_decay == MOST_DECAY or 0.055 < train.lr * train.weight_decay * steps < 0.065


def test_what_is_given_stays():
    model, train, chosen = automatic(
        ModelConfig(dropout=0.0, user_id=False), TrainConfig(lr=0.5, epochs=3), SIZES["movielens-100k"]
    )
    assert (model.dropout, model.user_id, train.lr, train.epochs) == (0.0, False, 0.5, 3)
    assert model.item_id is True and "train.lr" not in chosen and chosen["train.weight_decay"] == 0.0017


def test_without_data_it_is_the_papers_model():
    model, train, _ = automatic(ModelConfig(), TrainConfig())
    assert (model.text_tower, model.image_tower, model.over_arch) == ([256, 32], [64, 32], [256, 16, 1])
    assert (model.dropout, model.tower_dropout, model.user_id, model.item_id) == (0.1, 0.0, False, False)
    assert (train.lr, train.weight_decay, train.epochs) == (0.01, 0.0, 30)
    assert model.residual == []


@pytest.mark.parametrize("name", SIZES)
def test_it_comes_near_what_validation_chose(name):
    """The shipped configurations are where the rule is from: within a factor of about three of them."""
    config, size = load_config(ROOT / "configs" / f"{name}.yaml"), SIZES[name]
    tuned = variant(config, next(iter(config.variants)))
    width, batch = tuned.model.embedding_dim, tuned.train.batch_size
    model, train, _ = automatic(ModelConfig(embedding_dim=width), TrainConfig(batch_size=batch), size)
    assert model.text_tower == tuned.model.text_tower
    assert bool(model.user_id) == bool(tuned.model.user_id)
    assert model.over_arch[0] == pytest.approx(tuned.model.over_arch[0], rel=1.01)
    tuned_step, step = (t.lr * t.weight_decay for t in (tuned.train, train))
    assert tuned_step / 3.2 < step < tuned_step * 3.2
    if name != "zomato":  # its learning rate is of ten epochs
        assert tuned.train.lr / 3 < train.lr < tuned.train.lr * 3


def test_the_residual_path_needs_the_wide_one():
    for size in SIZES.values():
        model, train, _ = automatic(ModelConfig(), TrainConfig(), size)
        assert model.residual == [512, 128] and train.residual_lr in (0.006, 0.001)
        assert automatic(ModelConfig(wide=False), TrainConfig(), size)[0].residual == []
    check_settings(ModelConfig(residual=[], wide=False))
    with pytest.raises(DataError, match=r"model.residual .*model.wide=true, or this to \[\]"):
        check_settings(ModelConfig(residual=[8], wide=False))


def test_the_line_says_from_what_and_what():
    chosen = automatic(ModelConfig(), TrainConfig(), SIZES["demo"])[2]
    line = chosen_text(chosen, SIZES["demo"])
    assert "4,783 training rows, 575 of the rarer label; 8.0 a user, 19.1 an item" in line
    assert "model.text_tower=[32]," in line and "model.user_id=false" in line and "train.lr=0.0006" in line


def test_the_line_says_why_there_are_no_id_embeddings():
    for size, words in (
        (SIZES["demo"], "(no id embeddings: fewer than 20 training rows a user or item)"),
        (
            dataclasses.replace(SIZES["movielens-100k"], affinity=True),
            "(no id embeddings: affinity features say",
        ),
    ):
        *_, chosen = automatic(ModelConfig(), TrainConfig(), size)
        assert words in chosen_text(chosen, size)
    *_, chosen = automatic(ModelConfig(), TrainConfig(), SIZES["movielens-100k"])
    assert "no id" not in chosen_text(chosen, SIZES["movielens-100k"])
