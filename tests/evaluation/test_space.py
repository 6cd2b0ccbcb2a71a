"""Measures of the reduced space against plain loops."""

import types

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.evaluation import space
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.space import ReducedSpace, distances, groups, kept_variance
from dlrrec_torchrec.metrics import effective_rank
from dlrrec_torchrec.store import schema
from tests.helpers.shards import modalities_of, write_shards


def cosine_distance(a, b):
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), number=st.integers(2, 8), width=st.integers(0, 4), drawn=st.integers(0, 4))
def test_distances_equal_the_loop(seed, number, width, drawn):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(number, 3)).astype(np.float32)
    anchors = rng.integers(0, number, 5)
    neighbours, others, random = (rng.integers(-1, number, (5, n)) for n in (width, drawn, drawn))
    found = distances(vectors, anchors, neighbours, others, random)
    expected = []
    for anchor, listed, rest, drawn_ones in zip(anchors, neighbours, others, random, strict=True):
        near, far, away = (
            [cosine_distance(vectors[anchor], vectors[c]) for c in codes if c >= 0]
            for codes in (listed, rest, drawn_ones)
        )
        if near and far and away:
            # an entity drawn as both is as near to itself, up to rounding
            wins = [
                0.5 if c == d else float(a < b)
                for c, a in zip([c for c in listed if c >= 0], near, strict=True)
                for d, b in zip([d for d in rest if d >= 0], far, strict=True)
            ]
            expected.append((np.mean(near), np.mean(far), np.mean(away), np.mean(wins)))
    got = np.stack([found.neighbours, found.others, found.random, found.nearer], axis=1)
    np.testing.assert_allclose(got, np.array(expected).reshape(-1, 4), atol=1e-5)


def test_kept_variance_is_that_of_a_regression():
    rng = np.random.default_rng(0)
    content = rng.normal(size=(60, 5)) @ np.diag([5, 3, 1, 1, 0.1]) + 7
    for reduced in (content[:, :2], content @ rng.normal(size=(5, 2)), rng.normal(size=(60, 3))):
        design = np.column_stack([np.ones(60), reduced])
        fitted = design @ np.linalg.lstsq(design, content, rcond=None)[0]
        rest = np.square(content - fitted).sum() / np.square(content - content.mean(0)).sum()
        kept, most = kept_variance(content, reduced)
        assert kept == pytest.approx(1 - rest) and kept <= most + 1e-9
    values = np.square(np.linalg.svd(content - content.mean(0), compute_uv=False))
    assert kept_variance(content, content[:, :2])[1] == pytest.approx(values[:2].sum() / values.sum())
    wide = content.T  # more numbers than rows
    assert kept_variance(wide, wide)[0] == pytest.approx(1)
    assert np.isnan(kept_variance(np.ones((4, 3)), np.ones((4, 2)))[0])
    assert kept_variance(content, np.ones((60, 2)))[0] == pytest.approx(0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("space") / "shards", rows=(600, 50, 50), signal=True)


class Made:
    """A scorer whose towers are given functions."""

    def __init__(self, towers):
        self.towers = towers
        self.spec = types.SimpleNamespace(modalities=modalities_of(list(towers)))

    def reduced(self, vectors):
        return {name: self.towers[name](found.astype(np.float32)) for name, found in vectors.items()}


def half(vectors):
    return vectors[:, :16]


def shuffled(vectors):
    """Content of others: nothing is left of who is near whom. What is missing stays so."""
    there = np.flatnonzero(vectors.any(1))
    out = np.zeros_like(vectors)
    out[there] = vectors[np.random.default_rng(0).permutation(there)]
    return out


def opened(shards):
    entities, train = load_entities(shards), read_rows(shards, "train")
    return entities, train, ReducedSpace(shards, modalities_of(), entities, train, schema.category_types())


def test_what_is_measured_of_a_space(shards, tmp_path):
    entities, train, measured = opened(shards)
    same = Made({"user_text": lambda v: v, "item_text": lambda v: v, "item_image": half})
    lost = Made({"user_text": shuffled, "item_text": shuffled, "item_image": lambda v: shuffled(v)[:, :16]})
    one_side = Made({"item_text": half})
    for name, scorer in (("same", same), ("lost", lost), ("one", one_side)):
        measured.measure(name, scorer)
    found = measured.result()
    assert list(found) == ["same", "lost", "one"] and list(found["one"]) == ["item"]
    user = found["same"]["user"]
    assert user["before"]["nearer"] == user["after"]["nearer"]
    assert user["before"]["nearer"]["low"] > 0.5 and user["after"]["gain"]["difference"] == 0
    assert user["before"]["neighbours"] < user["before"]["others"] and user["before"]["gap"]["low"] > 0
    assert user["kept"] == pytest.approx(1) and user["kept_most"] == pytest.approx(1)
    text = entities.vectors["user_text"]
    text = text[text.any(1)]
    assert user["entities"] == len(text)
    ranks = user["towers"]["user_text"]
    assert ranks["effective_rank"] == ranks["content_rank"] == pytest.approx(effective_rank(text))
    broken = found["lost"]["user"]
    assert broken["before"] == user["before"]  # the same users, the same others
    assert broken["after"]["nearer"]["low"] < 0.5 < broken["after"]["nearer"]["high"]
    assert broken["after"]["gain"]["high"] < 0 < broken["less"]["low"]
    assert broken["less"]["difference"] == pytest.approx(-broken["after"]["gain"]["difference"])
    assert "less" not in user and "less" not in found["one"]["item"]  # nothing alike to compare with
    item = found["same"]["item"]["towers"]
    assert item["item_image"]["width"] == 16 and list(item) == ["item_text", "item_image"]
    assert measured.notes == []

    measured.write(tmp_path / "vectors")
    table = pq.read_table(tmp_path / "vectors" / "same-items.parquet")
    codes, names = table["entity"].to_numpy(), schema.category_types()
    expected = np.concatenate([entities.vectors["item_text"], half(entities.vectors["item_image"])], axis=1)
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float16), expected[codes])
    first = entities.items.category[codes, 0]
    assert table["group"].to_pylist() == [names[c] if c < len(names) else "" for c in first]
    files = {path.stem for path in (tmp_path / "vectors").iterdir()}
    assert files == {"same-users", "same-items", "lost-users", "lost-items", "one-items"}


def test_collapse_and_bottleneck_are_said(shards):
    _, _, measured = opened(shards)
    point = Made({"user_text": lambda v: v[:, :16] * 1e-6 + v.any(1, keepdims=True), "item_text": half})
    measured.measure("flat", point)
    assert [note.split(":")[0] for note in measured.notes] == ["flat", "flat"]
    assert any("users' reduced vectors lie close together" in note for note in measured.notes)
    assert any("user_text tower's vectors have an effective rank of 1.0" in note for note in measured.notes)
    measured.measure("said", point, ["uniformity_user", "effective_rank_user_text"])
    assert len(measured.notes) == 2


def test_many_entities_are_sampled(shards, monkeypatch, tmp_path):
    for name, value in (("FIRST", 40), ("SAMPLE", 11), ("DRAWN", 7)):
        monkeypatch.setattr(space, name, value)
    _, _, measured = opened(shards)
    measured.measure("a", Made({"user_text": half}))
    facts = measured.result()["a"]["user"]
    assert facts["entities"] == 11 and 0 < facts["with_neighbours"] <= 11
    measured.write(tmp_path / "vectors")
    table = pq.read_table(tmp_path / "vectors" / "a-users.parquet")
    assert table.num_rows == 7 and table["entity"].to_numpy().max() < 40


def test_a_users_group_is_that_of_most_of_the_users_items(shards):
    entities, train = load_entities(shards), read_rows(shards, "train")
    names = schema.category_types()
    found = groups(entities, train, names)
    for user in range(len(entities.users)):
        codes = [entities.items.category[i, 0] for i in train.item[train.user == user]]
        known = [names[c] for c in codes if c < len(names)]
        if not known:
            assert found["user"][user] == ""
        else:
            assert known.count(found["user"][user]) == max(known.count(name) for name in known)
    entities.items.category[:] = len(names)
    entities.items.price_tag = np.array(["none", "cheap"] * (len(entities.items) // 2), object)
    assert groups(entities, train, names)["item"] == ["", "cheap"] * (len(entities.items) // 2)
