"""The list head in a training: what is selected, resumed, pipelined, and ranked afterwards."""

import dataclasses
import json
import logging
import math
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.listing import ListRows
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.list_sides import MIXES, ListSides, Reranked
from dlrrec_torchrec.models.spec import batch_spec, with_rows
from dlrrec_torchrec.ranking import second_stage
from dlrrec_torchrec.ranking.full_ranking import Relevant, rank_lists
from dlrrec_torchrec.serving.recommend import recommend
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.optimizers import make_optimizer, set_rates
from dlrrec_torchrec.training.selection import Selection, selection_for
from dlrrec_torchrec.training.stage import train
from dlrrec_torchrec.training.trainer import Trainer
from tests.helpers.shards import write_shards

LISTS = ListConfig(dim=8, id_dropout=0.2, recent=6)


def run(shards, out, lists=LISTS, **changes):
    settings = {"epochs": 3, "batch_size": 60, "device": "cpu", "patience": 0} | changes
    model = ModelConfig(tower_norm="layer", dropout=0.0)
    terms = ContrastiveConfig(num_negatives=8)
    return train(model, terms, TrainConfig(**settings), "strict", shards, out, lists)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("list") / "shards"
    return write_shards(folder, rows=(900, 150, 50), users=40, items=30, dims={"item_image": 64})


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, run(shards, out)


def test_the_best_epoch_is_that_of_the_mixture(trained):
    out, manifest = trained
    history = records(out)
    lowest = np.minimum.accumulate([r["loss"] for r in history])
    mixture = [
        r["ndcg@20"] + r["recall@20"] / 2 + r["auc"] if r["loss"] <= 1.01 * low else -1
        for r, low in zip(history, lowest, strict=True)
    ]
    assert manifest.facts["best_epoch"] == int(np.argmax(mixture))
    assert [r["epoch"] for r in history] == [0, 1, 2, 3]  # with what the wide path starts as
    assert history[-1]["train_loss_list"] < history[1]["train_loss_list"]
    assert json.loads((out / "best.json").read_text())["rule"] == "mixture"
    assert manifest.facts["list"]["mix"] >= 0


def test_recommended_are_the_best_list_scores_with_calibrated_probabilities(shards, trained):
    out, _ = trained
    scorer = Scorer(out, shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    users = np.array([3, 0, 39])
    ratings = scorer.logits(scorer.pairs(entities, np.repeat(users, 30), np.tile(np.arange(30), 3)))
    shown = recommend(shards, out, "user-3", n=4)
    assert len(shown.items) == 4
    order = [scorer.list_scores(users)[0, entities.items.codes[item.item_id]] for item in shown.items]
    assert order == sorted(order, reverse=True) and "order: what this user" in shown.to_text()
    for item in shown.items:
        logit = ratings.reshape(3, 30)[0, entities.items.codes[item.item_id]]
        assert item.probability == pytest.approx(float(scorer.calibration.probability(logit)), abs=1e-5)


def test_the_measured_lists_are_those_of_the_kept_model(shards, trained):
    """best.json's recall again, from the checkpoint."""
    out, _ = trained
    scorer = Scorer(out, shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    sides = ListSides(scorer._model, scorer.spec, entities, torch.device("cpu"))
    seen = split_pairs(shards, "train")
    task = Relevant.of(split_pairs(shards, "val", liked=True), seen)
    means = rank_lists(sides.scores, task, np.asarray(seen.sum(0))[0], cutoffs=(20,)).means()
    best = json.loads((out / "best.json").read_text())["metrics"]
    assert best["recall@20"] == pytest.approx(means["recall@20"])
    assert best["ndcg@20"] == pytest.approx(means["ndcg@20"], abs=1e-6)


def test_a_user_is_ranked_by_the_latest_items_as_in_a_step(shards, trained):
    """The sides of serving are those of a training row whose item the user does not have."""
    out, _ = trained
    scorer = Scorer(out, shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    model, users = scorer._model, torch.arange(40)
    sides = ListSides(model, scorer.spec, entities, torch.device("cpu"))
    spec = dataclasses.replace(
        scorer.spec, lists=ListRows("catalogue", 30, padding=scorer.spec.facts.category_types)
    )
    lists = dataclasses.replace(spec.lists, recent=model.list_head.recent, content=True)
    spec = with_rows(dataclasses.replace(spec, lists=lists), entities.items.category, entities.sequences)
    listed = spec.lists.of_batch(users, torch.full((40,), -1), 0)
    with torch.no_grad():
        reduced = {
            name: model.dense_arch.towers[name](torch.from_numpy(vectors)).float()
            for name, vectors in entities.vectors.items()
        }
        of_rows = reduced | {name: reduced[name][:1].expand(40, -1) for name in model.list_head.sides["item"]}
        mine, _, items = model.list_head(listed, torch.zeros(40, dtype=torch.int64), of_rows, reduced)
    expected = (mine @ items.T / model.list_head.temperature).numpy()
    np.testing.assert_allclose(sides.scores(np.arange(40)), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.list_head.recent_weight.zero_()
    assert not np.allclose(sides.scores(np.arange(40)), expected, atol=1e-3)


@pytest.mark.parametrize(("later", "latest"), [(0.95, 27), (0.4, 0)])
def test_the_latest_items_count_where_held_out_rows_come_later(tmp_path, later, latest):
    shards = write_shards(tmp_path / "shards", rows=(200, 60, 20), users=20, items=15)
    manifest = Manifest.read(shards)
    manifest.facts["later"] = later
    manifest.write(shards)
    done = run(shards, tmp_path / "out", dataclasses.replace(LISTS, recent=None), epochs=1)
    assert done.config["list"]["recent"] == latest == done.facts["chosen"]["list.recent"]
    assert done.config["list"]["tau"] == (0.2 if latest else 0.3) == done.facts["chosen"]["list.tau"]
    assert bool(Scorer(tmp_path / "out", shards)._model.list_head.recent) == bool(latest)


def test_an_item_without_training_rows_counts_by_its_content_alone(shards, trained):
    out, _ = trained
    scorer = Scorer(out, shards)
    entities = load_entities(shards, scorer.spec.in_rows)
    tables = scorer._model.list_head.tables.embedding_bags
    known_of = entities.sequences
    users = np.array(
        [u for u in range(40) if 7 not in known_of.items[known_of.offsets[u] : known_of.offsets[u + 1]]]
    )

    def scores():
        return ListSides(scorer._model, scorer.spec, entities, torch.device("cpu")).scores(users)

    known = scores()
    entities.items.count = entities.items.count.copy()
    entities.items.count[7] = 0
    cold = scores()
    with torch.no_grad():
        tables["t_list_item"].weight[7] += 1.0
    assert not np.allclose(cold[:, 7], known[:, 7]) and np.array_equal(scores(), cold)
    np.testing.assert_array_equal(np.delete(cold, 7, 1), np.delete(known, 7, 1))
    scorer._model.list_head.log_count[7] = 0
    entities.items.category[7] = scorer.spec.facts.category_types
    for name in ("item_text", "item_image"):
        entities.vectors[name][7] = 0
    assert not scores()[:, 7].any()  # nothing is known of it at all


@pytest.mark.parametrize("content", [True, False])
def test_an_interrupted_training_goes_on_as_the_same(shards, trained, tmp_path, monkeypatch, content):
    lists = dataclasses.replace(LISTS, content=content)
    if content:
        expected = records(trained[0])
    else:
        run(shards, tmp_path / "whole", lists)
        expected = records(tmp_path / "whole")
    plain, calls = Trainer.evaluate, []

    def killed(self, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "evaluate", killed)
        run(shards, tmp_path / "out", lists)
    run(shards, tmp_path / "out", lists)
    for name in ("train_loss_list", "train_loss_rec", "auc", "ndcg@20", "recall@20"):
        got, wanted = ([r.get(name, 0.0) for r in rows] for rows in (records(tmp_path / "out"), expected))
        assert got == pytest.approx(wanted)


def test_a_list_head_trains_in_bf16_with_vectors_as_shards_have_them(shards, trained, tmp_path):
    run(shards, tmp_path / "out", epochs=1, precision="bf16")
    half, exact = records(tmp_path / "out")[1], records(trained[0])[1]
    for name in ("train_loss_list", "train_loss_rec"):
        assert half[name] != exact[name] and half[name] == pytest.approx(exact[name], rel=0.02)


def test_a_list_head_without_weight_is_none(shards, tmp_path):
    manifest = run(shards, tmp_path / "out", dataclasses.replace(LISTS, weight=0.0), epochs=1)
    assert manifest.facts["list"] is None and not any("list" in t for t in manifest.facts["tables"])
    assert manifest.config["list"] is None and not Scorer(tmp_path / "out", shards).has_lists
    with pytest.raises(ValueError, match="no list head"):
        Scorer(tmp_path / "out", shards).list_scores(np.array([0]))


def test_labels_that_are_all_positive_train_the_list_alone(tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", rows=(300, 60, 10), users=20, items=15)
    facts = ShardFacts.read(shards)
    for split in ("train", "val"):
        table = read_table(shards / split, facts.row_schema())
        ones = pa.array(np.ones(len(table), np.float32))
        table = table.set_column(0, table.schema.field("label"), ones)
        write_table(table, shards / split, 1000)
        for part in sorted((shards / split).glob("part-*"))[1:]:
            part.unlink()
    manifest = Manifest.read(shards)
    manifest.facts["label_counts"] = {"negative": 0, "positive": 300}
    manifest.write(shards)
    trained = run(shards, tmp_path / "out", epochs=2)
    assert "the list head learns alone" in capsys.readouterr().err
    history = records(tmp_path / "out")
    assert history[-1]["train_loss_list"] < history[-2]["train_loss_list"]
    assert history[-1]["auc"] is None and trained.facts["list"]["mix"] == 0.0
    assert trained.facts["alarms"] == []  # nothing that could be mended
    assert "share of likes" in trained.facts["calibration"]["note"]
    shown = recommend(shards, tmp_path / "out", "user-3", n=2)
    assert all(item.probability == pytest.approx(301 / 302, abs=1e-3) for item in shown.items)
    by_lists = [r["ndcg@20"] + r["recall@20"] / 2 for r in history]
    assert trained.facts["best_epoch"] == int(np.argmax(by_lists))


def test_torchrec_pipelines_the_list_heads_tables(shards, caplog):
    config, terms = ModelConfig(dropout=0.0, residual=[8]), ContrastiveConfig(num_negatives=8)
    entities = load_entities(shards)
    spec = batch_spec(config, ShardFacts.read(shards), terms, 0, LISTS)
    spec = with_rows(spec, entities.items.category, entities.sequences)
    corpus = {m: torch.from_numpy(v) for m, v in entities.vectors.items()}
    with process_group("cpu") as ranks:
        model = build_model(config, spec, device="meta", lists=LISTS)
        wrapper = build_wrapper(model, terms, corpus=corpus, lists=LISTS, list_rows=spec.lists)
        sharded = shard_tables(wrapper, ranks, batch_size=60, table_optimizer="rowwise_adagrad")
        optimizer = make_optimizer(sharded, 0.01)
        set_rates(optimizer, lr=0.1, table_lr=0.2, list_lr=0.3, residual_lr=0.4)
        rates = {
            name: group["lr"]
            for _, part in optimizer.optimizers
            for name, group in zip(part.params, part.param_groups, strict=False)
        }
        of_parts = {n: {group["lr"] for group in part.param_groups} for n, part in optimizer.optimizers}
        pipeline = TrainPipelineSparseDist(sharded, optimizer, ranks.device)
        with caplog.at_level(logging.INFO, "torchrec"):
            assert float(pipeline.progress(iter(make_loader(shards, "train", 60, spec)))["loss_list"]) > 0
    assert {rate for name, rate in rates.items() if "t_list" in name} == {0.3}
    assert {rate for name, rate in rates.items() if "t_category" in name} == {0.2}
    assert of_parts["dense"] == {0.1} and of_parts["residual"] == {0.4}
    messages = [r.getMessage() for r in caplog.records]
    assert not any("NOT be pipelined" in m for m in messages)
    assert any("will be pipelined" in m and "list_head.tables" in m for m in messages), messages


def test_items_that_are_not_rated_again_count_as_the_worst_of_those_that_are(monkeypatch):
    monkeypatch.setattr("dlrrec_torchrec.models.list_sides.RERANKED", 2)
    scores = np.array([[3.0, 2.0, 1.0, 9.0]], np.float32)
    seen = np.array([[False, False, False, True]])
    reranked = Reranked(scores, lambda rows, items: np.array([-1.0, 5.0])[items], seen)
    np.testing.assert_allclose(reranked.at(0.5), [[2.5, 4.5, 0.5, 8.5]])
    np.testing.assert_allclose(reranked.at(0.0), scores)


def test_the_rule_of_selection():
    assert selection_for("strict", "auto", 3, lists=True).rule == "mixture"
    assert selection_for("strict", "auto", 3).rule == "auc"
    selection = Selection("mixture", 0)
    for epoch, (ndcg, recall, auc, best) in enumerate(
        [(0.1, 0.2, 0.7, True), (0.2, 0.1, 0.7, True), (0.2, 0.2, 0.6, False), (0.2, 0.1, 0.71, True)], 1
    ):
        found = {"ndcg@20": ndcg, "recall@20": recall, "auc": auc, "loss": 0.5}
        assert selection.update(epoch, found) is best
    better = {"ndcg@20": 0.4, "recall@20": 0.4, "auc": 0.71}
    assert not selection.update(5, better | {"loss": 0.506})  # the rating over-fits
    resumed = Selection("mixture", 0)
    resumed.restore(json.loads(json.dumps(selection.state())))
    assert not resumed.update(6, better | {"loss": 0.506}) and resumed.update(7, better | {"loss": 0.504})
    unrated = Selection("mixture", 0)
    assert unrated.update(1, {"ndcg@20": 0.1, "recall@20": 0.1, "auc": math.nan, "loss": 0.1})
    assert unrated.update(2, {"ndcg@20": 0.2, "recall@20": 0.1, "auc": math.nan, "loss": 0.9})


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_lists_have_their_share_of_ease(shards, trained, tmp_path, share):
    """What `Scorer` ranks by, against the formula in NumPy."""
    out, manifest = trained
    copied = tmp_path / "out"
    shutil.copytree(out, copied)
    manifest = Manifest.read(copied)
    manifest.facts["list"] |= {"mix": 0.25, "ease": share}
    manifest.write(copied)
    scorer, users = Scorer(copied, shards), np.array([5, 0, 17])
    sides = ListSides(scorer._model, scorer.spec, scorer.entities, torch.device("cpu"))
    seen = split_pairs(shards, "train")[users].toarray() > 0
    ratings = sides.ratings(np.repeat(users, 30), np.tile(np.arange(30), 3)).reshape(3, 30)
    expected = sides.scores(users) + 0.25 * ratings
    liked = (split_pairs(shards, "train", liked=True) > 0).astype(np.float64).toarray()
    inverse = np.linalg.inv(liked.T @ liked + 300 * np.eye(30))
    other = liked[users] @ (np.eye(30) - inverse / np.diag(inverse))
    for row, unseen in enumerate(~seen):
        z = (other[row] - other[row][unseen].mean()) / other[row][unseen].std()
        expected[row] += share * expected[row][unseen].std() * z
    np.testing.assert_allclose(scorer.list_scores(users), expected, atol=1e-4)


def test_shares_are_the_best_on_validation_rows(shards, trained):
    """Each share of the rating, and then of EASE, is measured again from the kept model."""
    out, manifest = trained
    chosen = manifest.facts["list"]
    scorer = Scorer(out, shards)
    sides = ListSides(scorer._model, scorer.spec, scorer.entities, torch.device("cpu"))
    train = split_pairs(shards, "train")
    task = Relevant.of(split_pairs(shards, "val", liked=True), train)
    counts, seen = np.asarray(train.sum(0))[0], task.seen.toarray() > 0
    reranked = Reranked(
        sides.scores(task.users), lambda rows, items: sides.ratings(task.users[rows], items), seen
    )

    def worth(scores):
        place = {user: row for row, user in enumerate(task.users)}
        means = rank_lists(
            lambda users: scores[[place[u] for u in users]], task, counts, cutoffs=(20,)
        ).means()
        return means["ndcg@20"] + means["recall@20"] / 2

    by_mix = [worth(reranked.at(mix)) for mix in MIXES]
    assert chosen["mix"] == MIXES[int(np.argmax(by_mix))]
    other = second_stage.fit(split_pairs(shards, "train", liked=True))(task.users)
    mixed = reranked.at(chosen["mix"])
    by_share = [worth(second_stage.added(mixed, other, seen, share)) for share in second_stage.SHARES]
    assert chosen["ease"] == second_stage.SHARES[int(np.argmax(by_share))]
    assert len(set(by_share)) > 1  # else this test could not fail


def test_ease_is_left_out_on_demand_and_where_it_is_too_large(shards, tmp_path, monkeypatch, capsys):
    off = run(shards, tmp_path / "off", dataclasses.replace(LISTS, ease=False), epochs=1)
    assert off.facts["list"]["ease"] == 0.0 and "EASE" not in capsys.readouterr().err
    monkeypatch.setattr(second_stage, "_LARGEST", 20)
    large = run(shards, tmp_path / "large", epochs=1)
    assert large.facts["list"]["ease"] == 0.0
    assert "list.ease: no EASE is added to the lists: with 40 users and 30 items" in capsys.readouterr().err
