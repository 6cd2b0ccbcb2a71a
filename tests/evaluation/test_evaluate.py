import json
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
import torch

from dlrrec_torchrec.config import ModelConfig
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.evaluation import lists
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.stage import evaluate
from dlrrec_torchrec.metrics import binary_metrics
from dlrrec_torchrec.models.calibration import Calibration
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.serving import score
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import write_shards

MODEL = ModelConfig(modalities=["user_text", "item_image"], item_id=True)


class Linear(torch.nn.Module):
    """A model whose logits are easily made again: a sum over what a row holds."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(7, dtype=torch.float32))
        towers = dict.fromkeys(("user_text", "item_image"), lambda vectors: vectors.float()[:, :9])
        self.dense_arch = types.SimpleNamespace(towers=towers)

    def score(self, batch):
        return self(batch.dense, batch.sparse, batch.vectors)

    def forward(self, dense, sparse, vectors):
        named = sparse["category"]
        categories = torch.segment_reduce(
            named.values().float(), "sum", lengths=named.lengths().long(), initial=0
        )
        return (
            dense @ self.weight
            + 5 * (vectors["user_text"].float()[:, 0] - vectors["item_image"].float()[:, 1])
            + categories / 179
            + sparse["item"].values() / 50
            - 4
        )


def linear_logits(shards):
    """The same from the Parquet files, in plain numpy."""
    rows = read_table(shards / "test", ShardFacts.read(shards).row_schema()).to_pylist()
    return np.array(
        [
            np.arange(7) @ np.array(r["dense"])
            + 5 * (float(r["user_text"][0]) - float(r["item_image"][1]))
            + sum(c for c in r["category"] if c != 179) / 179
            + r["item"] / 50
            - 4
            for r in rows
        ]
    )


def write_training(folder, protocol="strict", model=MODEL, seed=0):
    """What evaluation reads of a finished training besides its checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    Manifest("train", {"model": jsonable(model), "protocol": protocol, "seed": seed}, {}).write(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("evaluate") / "shards", rows=(600, 50, 300))


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setattr(score, "load_trained", lambda train_dir, shards_dir, device: Linear().eval())


def write_truth(shards, path, drop=0):
    """A truth table in another order than the rows, with pairs and ids that are not in the shards."""
    rows = read_rows(shards, "test")
    pairs = sorted({(int(u), int(i)) for u, i in zip(rows.user, rows.item, strict=True)}, reverse=True)[drop:]
    p = {pair: 0.05 + 0.9 * np.random.default_rng(pair).random() for pair in pairs}
    table = pa.table(
        {
            "user_id": ["stranger", *(f"user-{u}" for u, _ in p)],
            "item_id": ["item-0", *(f"item-{i}" for _, i in p)],
            "probability": [0.5, *p.values()],
        }
    )
    pq.write_table(table, path)
    return np.array([p.get((int(u), int(i)), np.nan) for u, i in zip(rows.user, rows.item, strict=True)])


def test_predictions_are_the_models_in_the_rows_order(shards, tmp_path, linear):
    out = tmp_path / "evaluation"
    train_dir = write_training(tmp_path / "train" / "a")
    manifest = evaluate({"a": train_dir}, shards, out, batch_size=37)
    expected, rows = linear_logits(shards), read_rows(shards, "test")
    table = pq.read_table(out / "predictions" / "a.parquet")
    for name in ("user", "item", "label", "rating"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(rows, name))
    np.testing.assert_allclose(table["score"].to_numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(table["probability"].to_numpy(), 1 / (1 + np.exp(-expected)), atol=1e-5)

    metrics = json.loads((out / "metrics.json").read_text())
    assert (
        metrics["protocol"] == "strict"
        and metrics["rows"] == 300
        and metrics["positives"] == rows.label.sum()
    )
    assert metrics["reachable_auc"] is None and metrics["truth"] is None
    label, score, p = (table[c].to_numpy() for c in ("label", "score", "probability"))
    assert metrics["models"]["a"]["auc"] == pytest.approx(sk.roc_auc_score(label, score))
    assert metrics["models"]["a"]["loss"] == pytest.approx(sk.log_loss(label, p))
    assert metrics["models"]["a"]["accuracy"] == pytest.approx(np.mean((p >= 0.5) == label))
    assert metrics["models"]["a"] == pytest.approx(binary_metrics(label, p, rows.user))
    assert set(metrics["baselines"]) == {
        *("majority class", "item mean", "user mean + item mean", "logistic regression")
    }
    assert manifest.rows == {"test": 300} and manifest.facts["auc/a"] == metrics["models"]["a"]["auc"]


@pytest.fixture(scope="module")
def with_lists(shards, tmp_path_factory):
    """An evaluation of one variant with everything, and its metrics."""
    out = tmp_path_factory.mktemp("lists") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "load_trained", lambda train_dir, shards_dir, device: Linear().eval())
        evaluate({"a": write_training(out.parent / "train")}, shards, out)
    return out, json.loads((out / "metrics.json").read_text())


def test_lists_rank_all_unseen_items_by_the_models_logits(shards, with_lists):
    """The lists of the linear model, made again row by row from the entity tables and the shards."""
    out, metrics = with_lists
    facts = ShardFacts.read(shards)
    scorer = score.Scorer.__new__(score.Scorer)
    scorer._model, scorer._device, scorer._batch_size = Linear().eval(), torch.device("cpu"), 100
    scorer.spec = batch_spec(MODEL, facts)
    entities = load_entities(shards, scorer.spec.in_rows)
    seen, relevant = {}, {}
    for name, into in (("train", seen), ("val", seen), ("test", relevant)):
        rows = read_rows(shards, name)
        for user, item, label in zip(rows.user.tolist(), rows.item.tolist(), rows.label, strict=True):
            if name != "test" or label:
                into.setdefault(user, set()).add(item)
    relevant = {user: items - seen.get(user, set()) for user, items in relevant.items()}
    users = sorted(user for user, items in relevant.items() if items)
    recalls = []
    for user in users:
        unseen = np.array([i for i in range(facts.items) if i not in seen.get(user, set())])
        logits = scorer.logits(scorer.pairs(entities, np.full(len(unseen), user), unseen))
        top = unseen[np.argsort(-logits.astype(np.float32), kind="stable")[:10]]
        recalls.append(len(relevant[user] & set(top.tolist())) / len(relevant[user]))
    table = pq.read_table(out / "lists" / "a.parquet")
    assert table["user"].to_pylist() == users and len(users) > 20
    np.testing.assert_allclose(table["recall@10"].to_numpy(), recalls)
    assert metrics["lists"]["models"]["a"]["recall@10"] == pytest.approx(np.mean(recalls))
    assert metrics["lists"]["users"] == metrics["lists"]["all_users"] == len(users)
    assert metrics["lists"]["items"] == facts.items


def test_peers_and_intervals_are_in_the_metrics(with_lists):
    out, metrics = with_lists
    assert set(metrics["peers"]) == {"SVD++", "item kNN", "LightGBM"}
    label = pq.read_table(out / "predictions" / "a.parquet")["label"].to_numpy()
    for name, of_peer in metrics["peers"].items():
        scores = pq.read_table(out / "peers" / f"{name.replace(' ', '-')}.parquet")["score"].to_numpy()
        assert of_peer["auc"] == pytest.approx(sk.roc_auc_score(label, scores))
    rivals = {n: m["auc"] for n, m in (metrics["baselines"] | metrics["peers"]).items()}
    assert set(metrics["differences"]["a"]) == set(rivals)
    for name, found in metrics["differences"]["a"].items():
        gap = metrics["models"]["a"]["auc"] - rivals[name]
        assert found["difference"] == pytest.approx(gap) and found["low"] < gap < found["high"]
    peers = metrics["lists"]["peers"]
    assert {"popularity", "SWING", "EASE", "ALS", "BPR"} < set(peers)
    of_lists = metrics["lists"]["differences"]["ndcg@20"]["a"]
    assert set(of_lists) == set(peers)
    for name, found in of_lists.items():
        gap = metrics["lists"]["models"]["a"]["ndcg@20"] - peers[name]["ndcg@20"]
        assert found["difference"] == pytest.approx(gap)


def test_without_peers_and_with_fewer_users(shards, tmp_path, linear):
    train_dir, out = write_training(tmp_path / "a"), tmp_path / "out"
    evaluate({"a": train_dir}, shards, out, peers=False, list_users=7)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["peers"] == metrics["lists"]["peers"] == metrics["lists"]["differences"] == {}
    assert metrics["lists"]["users"] == 7 < metrics["lists"]["all_users"]
    assert set(metrics["differences"]["a"]) == set(metrics["baselines"])
    assert not evaluate({"a": train_dir}, shards, out, peers=False, list_users=8).reused


def test_a_model_that_lists_by_itself_is_asked(shards, tmp_path, linear, monkeypatch):
    items = ShardFacts.read(shards).items
    asked = lambda self, users: np.tile(np.arange(items, dtype=np.float32), (len(users), 1))  # noqa: E731
    monkeypatch.setattr(score.Scorer, "list_scores", asked)
    monkeypatch.setattr(
        score.Scorer, "content_scores", lambda self, users, vectors, category: asked(self, users)
    )
    monkeypatch.setattr(Linear, "list_head", True, raising=False)
    monkeypatch.setattr(lists, "MOST_PAIRS", 0)  # no bound for such a model
    evaluate({"a": write_training(tmp_path / "a")}, shards, tmp_path / "out", peers=False)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # all get the last items that they have not seen
    assert metrics["lists"]["models"]["a"]["coverage@10"] < 0.5


def test_too_many_pairs_are_not_scored_one_by_one(shards, tmp_path, linear, monkeypatch):
    monkeypatch.setattr(lists, "MOST_PAIRS", 100)
    evaluate({"a": write_training(tmp_path / "a")}, shards, tmp_path / "out", peers=False)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["lists"]["models"] == {}
    (note,) = metrics["lists"]["notes"]
    assert "lists of 'a' left out" in note and "more than 100 pairs" in note and "--list-users" in note


def test_probabilities_are_the_trainings_calibrated_ones_and_no_rank_changes(shards, tmp_path, linear):
    plain, calibrated = (write_training(tmp_path / name, seed=k) for k, name in enumerate(("a", "b")))
    manifest = Manifest.read(calibrated)
    manifest.facts["calibration"] = vars(Calibration(temperature=2.5, bias=-0.5, rows=200))
    manifest.write(calibrated)
    note = "probabilities are not calibrated: why"
    manifest = Manifest.read(plain)
    manifest.facts["calibration"] = vars(Calibration(note=note))
    manifest.write(plain)
    evaluate({"a": plain, "b": calibrated}, shards, tmp_path / "out")
    a, b = (pq.read_table(tmp_path / "out" / "predictions" / f"{name}.parquet") for name in ("a", "b"))
    assert a["score"] == b["score"]
    score = b["score"].to_numpy()
    np.testing.assert_allclose(b["probability"].to_numpy(), 1 / (1 + np.exp(0.5 - score / 2.5)), atol=1e-9)
    np.testing.assert_allclose(a["probability"].to_numpy(), 1 / (1 + np.exp(-score)), atol=1e-9)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    models = metrics["models"]
    for name in ("auc", "auprc", "user_auc"):
        assert models["a"][name] == models["b"][name]
    assert models["a"]["loss"] != models["b"]["loss"] and f"a: {note}" in metrics["notes"]


def test_batch_size_does_not_change_the_predictions(shards, tmp_path, linear):
    train_dir = write_training(tmp_path / "a")
    for size in (1, 4096):
        evaluate({"a": train_dir}, shards, tmp_path / f"out-{size}", batch_size=size, peers=False)
    single_rows, all_rows = (
        pq.read_table(tmp_path / f"out-{s}" / "predictions" / "a.parquet") for s in (1, 4096)
    )
    np.testing.assert_allclose(single_rows["score"].to_numpy(), all_rows["score"].to_numpy(), atol=1e-5)


def test_evaluation_is_reused_until_something_changes(shards, tmp_path, linear):
    out, train_dir = tmp_path / "evaluation", write_training(tmp_path / "a")

    def evaluated(**options):
        return evaluate({"a": train_dir}, shards, out, peers=False, **options)

    assert not evaluated().reused
    assert evaluated().reused
    write_training(tmp_path / "a", seed=1)
    assert not evaluated().reused
    write_truth(shards, tmp_path / "truth.parquet")
    assert not evaluated(truth=tmp_path / "truth.parquet").reused
    assert not evaluate({"a": train_dir, "b": train_dir}, shards, out, peers=False).reused


def test_reachable_auc_is_of_the_test_rows_joined_by_id(shards, tmp_path, linear):
    p = write_truth(shards, tmp_path / "truth.parquet")
    evaluate(
        {"a": write_training(tmp_path / "a")}, shards, tmp_path / "out", truth=tmp_path / "truth.parquet"
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    order = (p[:, None] > p) + (p[:, None] == p) / 2
    weight = p[:, None] * (1 - p) * (1 - np.eye(len(p)))
    assert metrics["reachable_auc"] == pytest.approx((order * weight).sum() / weight.sum())
    label = read_rows(shards, "test").label
    assert metrics["truth"]["auc"] == pytest.approx(sk.roc_auc_score(label, p))
    np.testing.assert_allclose(pq.read_table(tmp_path / "out" / "truth.parquet")["probability"], p)


def test_a_row_without_truth_is_an_error(shards, tmp_path, linear):
    p = write_truth(shards, tmp_path / "truth.parquet", drop=2)
    missing = int(np.isnan(p).sum())
    with pytest.raises(
        DataError, match=f"truth.parquet: no probability for {missing} of 300 rows of the shards"
    ):
        evaluate(
            {"a": write_training(tmp_path / "a")}, shards, tmp_path / "out", truth=tmp_path / "truth.parquet"
        )
    assert not (tmp_path / "out").exists()


def test_one_class_in_the_test_rows(tmp_path, linear):
    folder = write_shards(tmp_path / "shards", rows=(200, 20, 60))
    for part in (folder / "test").glob("*.parquet"):
        table = pq.read_table(part)
        ones = pa.array(np.ones(table.num_rows, np.float32))
        pq.write_table(table.set_column(0, table.schema.field("label"), ones), part)
    evaluate({"a": write_training(tmp_path / "a")}, folder, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert any("all test rows are positive" in note for note in metrics["notes"])
    assert metrics["models"]["a"]["auc"] is None and metrics["models"]["a"]["fpr"] is None
    assert metrics["models"]["a"]["accuracy"] is not None and metrics["models"]["a"]["tp"] > 0


def test_variants_of_different_protocols_are_refused(shards, tmp_path, linear):
    a, b = write_training(tmp_path / "a"), write_training(tmp_path / "b", "paper")
    with pytest.raises(DataError, match="several protocols .a: strict, b: paper."):
        evaluate({"a": a, "b": b}, shards, tmp_path / "out")


def test_an_untrained_variant_is_named(shards, tmp_path, linear):
    with pytest.raises(DataError, match="train/a/manifest.json: not there"):
        evaluate({"a": tmp_path / "train" / "a"}, shards, tmp_path / "out")
    with pytest.raises(DataError, match="no variant to evaluate"):
        evaluate({}, shards, tmp_path / "out")


def test_logits_that_are_no_numbers_are_refused(shards, tmp_path, monkeypatch):
    class Broken(Linear):
        def forward(self, dense, sparse, vectors):
            return torch.where(
                sparse["item"].values() == 3, torch.nan, super().forward(dense, sparse, vectors)
            )

    monkeypatch.setattr(score, "load_trained", lambda *a: Broken().eval())
    bad = int((read_rows(shards, "test").item == 3).sum())
    with pytest.raises(DataError, match=f"{bad} of 300 predictions are not numbers"):
        evaluate({"a": write_training(tmp_path / "a")}, shards, tmp_path / "out")


def test_no_test_rows_give_undefined_metrics_and_a_note(tmp_path, linear):
    folder = write_shards(tmp_path / "shards", rows=(200, 20, 0))
    evaluate({"a": write_training(tmp_path / "a")}, folder, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["rows"] == 0 and metrics["models"]["a"]["accuracy"] is None
    assert "there are no test rows: no metric is defined" in metrics["notes"]
