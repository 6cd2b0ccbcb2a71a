"""Content alone: lists of items whose ids do not count, those of the shards and new ones."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.evaluation.stage import evaluate
from dlrrec_torchrec.models.list_sides import ListSides
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.schema import with_vectors
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import DIM, write_shards

USERS, ITEMS, NEW = 40, 30, 25


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("cold") / "shards", rows=(900, 150, 100), users=USERS, items=ITEMS
    )


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """Variants with and without a list head."""
    out = tmp_path_factory.mktemp("trained")
    settings = TrainConfig(epochs=2, batch_size=100, device="cpu", log_steps=0)
    terms = ContrastiveConfig(num_negatives=8)
    for name, weight in (("a", 1.0), ("b", 0.0)):
        train(ModelConfig(), terms, settings, "strict", shards, out / name, ListConfig(weight=weight, dim=8))
    return {"a": out / "a", "b": out / "b"}


def recalls(scores, liked, seen, k=20):
    """Recall@k of each user with something to find, the plain way."""
    found = []
    for user in np.flatnonzero((liked & ~seen).any(1)):
        order = [i for i in np.lexsort((np.arange(scores.shape[1]), -scores[user])) if not seen[user, i]]
        relevant = set(np.flatnonzero(liked[user] & ~seen[user]))
        found.append(len(relevant & set(order[:k])) / len(relevant))
    return found


def write_new(folder, entities, shards):
    """The outputs of split and extract for NEW new items: with one review they are items of the shards, in
    another order and by other names, with none they are nothing."""
    rng = np.random.default_rng(4)
    names = np.array([f"new-{n:02d}" for n in range(NEW)])
    like = rng.permutation(ITEMS)[:NEW]  # new item n is as item like[n]
    user, item = np.divmod(rng.choice(USERS * NEW, 300, replace=False), NEW)
    rows = [
        {"user_id": f"user-{u}", "item_id": names[i], "rating": 4.0, "label": float((u + i) % 2)}
        for u, i in zip(user, item, strict=True)
    ]
    write_table(pa.Table.from_pylist(rows, schema=schema.SPLIT), folder / "split" / "cold")
    types = (shards / "categories.txt").read_text().splitlines()
    shown, of = np.tile([1, 0], NEW), np.repeat(np.arange(NEW), 2)
    categories = [
        [types[c] for c in entities.items.category[like[i]] if c < len(types)] if k else []
        for i, k in zip(of, shown, strict=True)
    ]

    def column(name):
        vectors = entities.vectors[name][like[of]]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, DIM, mask=pa.array(shown == 0))

    kind = with_vectors(schema.COLD_CONTENT, {"text_vector": DIM, "image_vector": DIM})
    columns = [
        names[of].tolist(),
        pa.array(shown, pa.int8()),
        categories,
        *map(column, ("item_text", "item_image")),
    ]
    columns = [
        c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, kind, strict=True)
    ]
    write_table(pa.Table.from_arrays(columns, schema=kind), folder / "content" / "cold")
    liked = np.zeros((USERS, NEW), bool)
    liked[user, item] = (user + item) % 2 == 1
    return like, liked


def test_scores_are_those_of_items_without_ids(shards, trained):
    scorer = Scorer(trained["a"], shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    vectors = {name: entities.vectors[name] for name in ("item_text", "item_image")}
    users = np.array([3, 0, 39])
    found = scorer.content_scores(users, vectors, entities.items.category)
    entities.items.count = np.zeros_like(entities.items.count)  # neither ids nor popularity
    scorer._model.list_head.set_popularity(torch.zeros(ITEMS))
    expected = ListSides(scorer._model, scorer.spec, entities, torch.device("cpu")).scores(users)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    nothing = {name: np.zeros_like(matrix) for name, matrix in vectors.items()}
    empty = np.full_like(entities.items.category, scorer.spec.facts.category_types)
    assert not scorer.content_scores(users, nothing, empty).any()


def test_tasks_against_a_plain_reference(shards, trained, tmp_path):
    entities = load_entities(shards)
    like, liked_new = write_new(tmp_path, entities, shards)
    folders = {"split_dir": tmp_path / "split", "content_dir": tmp_path / "content"}
    evaluate(trained, shards, tmp_path / "out", peers=False, **folders)
    cold = json.loads((tmp_path / "out" / "metrics.json").read_text())["cold"]
    tasks = cold["tasks"]
    assert list(tasks) == ["all items", "new items, 0 reviews", "new items, 1 review"]
    assert "content alone, 'b', list head: left out, the model has none" in cold["notes"]
    assert tasks["new items, 1 review"]["chance"] == pytest.approx(20 / NEW)

    train_pairs = split_pairs(shards, "train").toarray() > 0
    seen = train_pairs | (split_pairs(shards, "val").toarray() > 0)
    liked = split_pairs(shards, "test", liked=True).toarray() > 0
    chosen = (split_pairs(shards, "train", liked=True).toarray() > 0).astype(float)
    for variant in trained:
        model = Scorer(trained[variant], shards)._model
        with torch.no_grad():
            towers = [
                model.dense_arch.towers[m](torch.from_numpy(entities.vectors[m])).numpy()
                for m in ("item_text", "item_image")
            ]
        reduced = np.concatenate(towers, axis=1)
        reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
        by_likes = chosen @ (reduced @ reduced.T)
        found = {name: task["models"][variant].get("likes") for name, task in tasks.items()}
        expected = np.mean(recalls(by_likes, liked, seen))
        assert found["all items"]["recall@20"]["mean"] == pytest.approx(expected)
        unseen = np.zeros_like(liked_new)
        expected = np.mean(recalls(by_likes[:, like], liked_new, unseen))
        assert found["new items, 1 review"]["recall@20"]["mean"] == pytest.approx(expected, abs=1e-6)
        assert found["new items, 0 reviews"] is None
        note = f"content alone, '{variant}', likes of new items, 0 reviews: no item has content"
        assert note in cold["notes"]
    scorer = Scorer(trained["a"], shards)
    vectors = {name: entities.vectors[name][like] for name in ("item_text", "item_image")}
    scores = scorer.content_scores(np.arange(USERS), vectors, entities.items.category[like])
    head = tasks["new items, 1 review"]["models"]["a"]["list head"]["recall@20"]
    assert head["mean"] == pytest.approx(np.mean(recalls(scores, liked_new, unseen)), abs=1e-6)
    assert head["low"] <= head["mean"] <= head["high"] and "gap" not in head
    gap = tasks["all items"]["models"]["b"]["likes"]["recall@20"]["gap"]
    means = [tasks["all items"]["models"][v]["likes"]["recall@20"]["mean"] for v in "ab"]
    assert gap["difference"] == pytest.approx(means[0] - means[1])
