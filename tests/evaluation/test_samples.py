import numpy as np
import pytest
import torch

from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.evaluation import lists
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.samples import SHOWN, example_lists
from dlrrec_torchrec.ranking.full_ranking import Relevant
from dlrrec_torchrec.serving import score
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import build, papers_model, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("samples") / "shards", rows=(600, 50, 300))


@pytest.fixture
def sampled(shards, tmp_path, monkeypatch):
    """A function that lists the examples of an untrained model, and what they are made of."""
    settings = papers_model(modalities=["user_text", "item_image"], item_id=True)
    model = build(settings).eval()
    torch.nn.init.normal_(model.over_arch.model[-1].weight)
    monkeypatch.setattr(score, "load_trained", lambda *_: model)
    Manifest("train", {"model": jsonable(settings)}, {}).write(tmp_path)
    scorer = score.Scorer(tmp_path, shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    train, validation, test = (read_rows(shards, name) for name in schema.SPLITS)
    facts = ShardFacts.read(shards)
    matrices = [
        lists.pair_matrix(rows.user, rows.item, facts.users, facts.items) for rows in (train, validation)
    ]
    task = Relevant.of(lists.liked_matrix(test, facts.users, facts.items), sum(matrices))

    def examples():
        return example_lists("a", scorer, entities, train, test, task)

    return examples, scorer, entities, (train, validation, test)


def test_examples_are_the_best_unseen_items_of_the_users_with_most_rows(sampled):
    listed, scorer, entities, (train, validation, test) = sampled
    examples = listed()
    assert examples["variant"] == "a" and examples["note"] == "" and len(examples["users"]) == 3
    rows = [user["training_rows"] for user in examples["users"]]
    assert rows == sorted(rows, reverse=True)
    for user in examples["users"]:
        code = entities.users.codes[user["user"]]
        assert user["training_rows"] == (train.user == code).sum()
        names = [title or key for title, key in zip(entities.items.titles, entities.items.ids, strict=True)]
        seen = {names[i] for rows in (train, validation) for i in rows.item[rows.user == code]}
        unseen = [i for i, name in enumerate(names) if name not in seen]
        logits = scorer.logits(scorer.pairs(entities, np.full(len(unseen), code), np.array(unseen)))
        best = [unseen[k] for k in np.argsort(-logits, kind="stable")[:SHOWN]]
        assert [item["title"] for item in user["recommended"]] == [names[i] for i in best]
        labels = dict(zip(test.item[test.user == code], test.label[test.user == code], strict=True))
        told = {None: None, 1.0: "liked", 0.0: "not liked"}
        assert [item["test_row"] for item in user["recommended"]] == [told[labels.get(i)] for i in best]
        probabilities = np.sort(1 / (1 + np.exp(-logits)))[::-1][: len(best)]
        np.testing.assert_allclose([i["probability"] for i in user["recommended"]], probabilities, rtol=1e-5)
        ratings = [item["rating"] for item in user["best_rated"]]
        assert ratings == sorted(train.rating[train.user == code].tolist(), reverse=True)[:SHOWN]


def test_a_model_that_cannot_list_says_so(sampled, monkeypatch):
    monkeypatch.setattr(lists, "MOST_PAIRS", 1)
    examples = sampled[0]()
    assert examples["users"] == [] and "no list head" in examples["note"]
