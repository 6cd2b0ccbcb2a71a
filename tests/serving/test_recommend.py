import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.entities import load_entities, pair_batch
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.stage import evaluate
from dlrrec_torchrec.models.calibration import Calibration
from dlrrec_torchrec.serving import score
from dlrrec_torchrec.serving.recommend import example_user, recommend, seen_items, similar_ids
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable
from dlrrec_torchrec.store.schema import REVIEWS, category_types
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import build, plain_spec, write_shards

SETTINGS = ModelConfig(user_id=True, item_id=True)
KEYS = ("category", "user", "item")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(
        tmp_path_factory.mktemp("recommend") / "shards", rows=(300, 20, 20), users=30, items=45
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build(SETTINGS, users=30, items=45)
    for parameter in model.parameters():  # as drawn, all items score nearly alike
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def trained(tmp_path, shards, model, monkeypatch):
    inputs = {"shards": Manifest.read(shards).fingerprint}
    Manifest("train", {"model": jsonable(SETTINGS), "protocol": "strict"}, inputs).write(tmp_path)
    monkeypatch.setattr(score, "load_trained", lambda train_dir, shards_dir, device: model)
    return tmp_path


def score_alone(model, shards, user, item):
    """One pair by itself."""
    batch = pair_batch(load_entities(shards), [user], [item], plain_spec(shards, sparse=KEYS))
    with torch.no_grad():
        return model(batch.dense, batch.sparse, batch.vectors).sigmoid().item()


def reviewed(shards, user):
    """The item codes of the user's rows in all splits."""
    splits = [read_rows(shards, split) for split in ("train", "val", "test")]
    return {int(i) for rows in splits for u, i in zip(rows.user, rows.item, strict=True) if u == user}


@pytest.mark.parametrize(("user", "batch_size"), [(0, 4096), (7, 4), (29, 1)])
def test_order_is_that_of_scoring_every_unseen_pair_alone(shards, trained, model, user, batch_size):
    seen = reviewed(shards, user)
    probabilities = {item: score_alone(model, shards, user, item) for item in range(45) if item not in seen}
    best = sorted(probabilities, key=probabilities.get, reverse=True)
    recommended = recommend(shards, trained, f"user-{user}", n=len(best), batch_size=batch_size)
    assert [r.item_id for r in recommended.items] == [f"item-{i}" for i in best]
    np.testing.assert_allclose(
        [r.probability for r in recommended.items], [probabilities[i] for i in best], atol=1e-5
    )
    assert [r.rank for r in recommended.items] == list(range(1, len(best) + 1))
    assert recommended.known_user and recommended.seen == len(seen)
    assert max(probabilities.values()) - min(probabilities.values()) > 0.01  # the order is worth something


def test_the_probability_is_calibrated_and_the_order_stays(shards, trained, model):
    before = recommend(shards, trained, "user-3", n=40).items
    manifest = Manifest.read(trained)
    manifest.facts["calibration"] = vars(Calibration(temperature=4.0, bias=1.0))
    manifest.write(trained)
    after = recommend(shards, trained, "user-3", n=40).items
    assert [item.item_id for item in after] == [item.item_id for item in before]
    p = np.array([item.probability for item in before])
    expected = 1 / (1 + np.exp(-(np.log(p / (1 - p)) / 4 + 1)))
    np.testing.assert_allclose([item.probability for item in after], expected, atol=1e-9)


def test_serving_agrees_with_the_evaluation_of_a_trained_model(tmp_path):
    """The same pair has the same probability as a test row and as a recommendation."""
    folder = write_shards(tmp_path / "shards", rows=(256, 64, 128), users=20, items=30)
    settings = TrainConfig(epochs=1, batch_size=64, device="cpu")
    train(SETTINGS, ContrastiveConfig(), settings, "strict", folder, tmp_path / "train")
    evaluate({"a": tmp_path / "train"}, folder, tmp_path / "evaluation", device="cpu")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["protocol"] == "strict"
    rows = pq.read_table(tmp_path / "evaluation" / "predictions" / "a.parquet").to_pylist()
    for user in (2, 11):
        recommended = recommend(folder, tmp_path / "train", f"user-{user}", n=30, include_seen=True).items
        served = {item.item_id: item.probability for item in recommended}
        mine = [row for row in rows if row["user"] == user]
        assert mine and len(served) == 30
        for row in mine:
            assert served[f"item-{row['item']}"] == pytest.approx(row["probability"], abs=1e-5)


def test_include_seen_ranks_everything_and_n_cuts(shards, trained):
    every = recommend(shards, trained, "user-3", n=1000, include_seen=True)
    assert sorted(r.item_id for r in every.items) == sorted(f"item-{i}" for i in range(45))
    short = recommend(shards, trained, "user-3", n=5, include_seen=True)
    assert [r.item_id for r in short.items] == [r.item_id for r in every.items[:5]]
    unseen = recommend(shards, trained, "user-3", n=1000)
    names = {f"item-{i}" for i in reviewed(shards, 3)}
    assert [r.item_id for r in unseen.items] == [r.item_id for r in every.items if r.item_id not in names]


def test_rows_of_all_splits_count_as_seen(shards):
    for user in range(30):
        assert seen_items(shards, user).tolist() == sorted(reviewed(shards, user))
    pairs = {}
    for split in ("train", "val", "test"):
        rows = read_rows(shards, split)
        pairs[split] = set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
    assert pairs["val"] - pairs["train"] and pairs["test"] - pairs["train"]  # or this proves nothing


def test_dropped_rows_are_seen_through_the_review_table(shards, trained, capsys):
    """A run whose split dropped two reviews of user-3 and all of an unknown user's."""
    dropped = sorted(set(range(45)) - reviewed(shards, 3))[:1]
    pairs = [("user-3", f"item-{k}") for k in dropped] + [("user-3", "closed"), ("guest", "item-1")]
    rows = [{"user_id": u, "item_id": i, "rating": 1.0} for u, i in pairs]
    run = trained / "run"
    shutil.copytree(shards, run / "shards")
    shutil.copytree(trained, run / "train" / "dlrrec", ignore=shutil.ignore_patterns("run"))

    def served(user, *flags):
        assert main(["recommend", "--run-dir", str(run), "--user", user, "-n", "99", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    def codes(body):
        return {int(item["item_id"].split("-")[1]) for item in body["items"]}

    assert codes(served("user-3")) == set(range(45)) - reviewed(shards, 3)  # without a table
    assert codes(served("guest")) == set(range(45))

    write_table(pa.Table.from_pylist(rows, REVIEWS), run / "reviews")
    assert codes(served("guest")) == set(range(45))  # not a table that ingest wrote
    Manifest("ingest", {}, {}).write(run / "reviews")
    recommended = served("user-3")
    assert codes(recommended) == set(range(45)) - reviewed(shards, 3) - set(dropped)
    assert recommended["seen"] == len(reviewed(shards, 3)) + 2
    assert f"of {len(codes(recommended))} items" in recommended["message"]
    assert f"reviewed {recommended['seen']}. Model: 'dlrrec':" in recommended["message"]
    guest = served("guest")
    assert codes(guest) == set(range(45)) - {1} and guest["seen"] == 1 and not guest["known_user"]
    assert "The most reviewed items that are new to this user:" in guest["message"]
    for user in ("user-3", "guest"):
        assert codes(served(user, "--include-seen")) == set(range(45))


def test_items_are_described(shards, trained):
    entities = load_entities(shards)
    for item in recommend(shards, trained, "user-3", n=45).items:
        code = int(item.item_id.split("-")[1])
        assert item.title == f"Item {code}" and item.reviews == entities.items.count[code]
        codes = [c for c in entities.items.category[code] if c != 179]
        assert item.categories == [category_types()[c] for c in codes]


def test_unknown_user_gets_popular_items_and_similar_ids(shards, trained):
    recommended = recommend(shards, trained, "USER-12", n=4)
    assert not recommended.known_user and recommended.seen == 0
    assert recommended.similar_ids[0] == "user-12"
    assert (
        "USER-12" in recommended.message
        and "no training reviews" in recommended.message
        and "user-12" in recommended.message
    )
    counts = load_entities(shards).items.count
    best = np.argsort(-counts, kind="stable")[:4]
    assert [r.item_id for r in recommended.items] == [f"item-{i}" for i in best]
    assert [r.reviews for r in recommended.items] == counts[best].tolist()
    assert all(r.probability is None for r in recommended.items)
    assert "probability" not in recommended.to_text()
    assert "Similar" not in recommend(shards, trained, "?", n=1).message


def test_json_holds_what_was_found(shards, trained):
    recommended = recommend(shards, trained, "user-3", n=3)
    body = json.loads(recommended.to_json())
    assert body["known_user"] is True and body["user_id"] == "user-3" and body["similar_ids"] == []
    assert [i["item_id"] for i in body["items"]] == [r.item_id for r in recommended.items]
    assert [i["probability"] for i in body["items"]] == [r.probability for r in recommended.items]
    assert json.loads(recommend(shards, trained, "nobody", n=1).to_json())["items"][0]["probability"] is None


def test_text_lists_titles_or_ids_in_order(shards, trained, tmp_path):
    recommended = recommend(shards, trained, "user-3", n=3)
    lines = recommended.to_text().splitlines()
    assert "user-3" in lines[0] and "probability" in lines[1]
    for line, item in zip(lines[2:], recommended.items, strict=True):
        assert line.split()[0] == str(item.rank) and item.title in line and f"{item.probability:.3f}" in line

    untitled = shutil.copytree(shards, tmp_path / "untitled")
    (part,) = (untitled / "entities" / "items").glob("*.parquet")
    table = pq.read_table(part)
    ids = pa.array([f"[bold]item-{k}" for k in range(45)])  # not to be taken for markup
    table = table.set_column(1, table.schema.field("id"), ids)
    place = table.schema.get_field_index("title")
    pq.write_table(table.set_column(place, table.schema.field("title"), pa.nulls(45, pa.string())), part)
    recommended = recommend(untitled, trained, "user-3", n=2)
    assert recommended.items[0].title == "" and recommended.items[0].item_id in recommended.to_text()


def test_a_user_who_has_reviewed_everything(tmp_path, trained, model):
    folder = write_shards(tmp_path / "full", rows=(8000, 5, 5), users=30, items=45)
    full = [u for u in range(30) if len(reviewed(folder, u)) == 45]
    assert full
    recommended = recommend(folder, trained, f"user-{full[0]}")
    assert (
        recommended.items == []
        and "every item" in recommended.message
        and "--include-seen" in recommended.to_text()
    )
    assert len(recommend(folder, trained, f"user-{full[0]}", n=9, include_seen=True).items) == 9


def test_example_user_is_the_most_active(shards):
    counts = load_entities(shards).users.count
    assert example_user(shards) == f"user-{int(np.argmax(counts))}"


def test_similar_ids_among_many():
    ids = [f"{k:x} someone" for k in range(60_000)] + ["Annapurna Rao"]
    assert similar_ids("annapurna roa", ids) == ["Annapurna Rao"]
    assert similar_ids("nothing like it", ids) == []


def test_bad_requests_are_named(shards, trained, tmp_path):
    with pytest.raises(DataError, match="-n 0: must be at least 1"):
        recommend(shards, trained, "user-3", n=0)
    with pytest.raises(DataError, match="run the stage that writes 'nowhere' first"):
        recommend(shards, tmp_path / "nowhere", "user-3")
