"""Which model is served: the variant that validation prefers, refitted while that is current."""

import json
import math
import shutil

import numpy as np
import pytest

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.pairs import split_pairs
from dlrrec_torchrec.serving.choose import preferred, served
from dlrrec_torchrec.serving.recommend import example_user, recommend
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.stages import run
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.store.schema import REVIEWS, SPLITS


def trained(rule="auc", split="val", **best):
    return Manifest("train", {}, {}, facts={"rule": rule, "split": split, "best": best})


@pytest.mark.parametrize(
    ("variants", "best", "words"),
    [
        ({"a": trained(auc=0.7), "b": trained(auc=0.71)}, "b", "of 2 variants the best by validation AUC"),
        ({"a": trained(auc=0.7), "b": trained(auc=0.7)}, "a", "of 2 variants"),
        ({"a": trained(auc=None), "b": trained(auc=0.1)}, "b", "of 2 variants"),
        ({"a": trained(auc=math.nan), "b": trained(auc=None)}, "a", "of 2 variants"),
        ({"a": trained("loss", auc=0.9, loss=0.4), "b": trained("loss", auc=0.8, loss=0.3)}, "b", "loss"),
        (  # rules that differ: AUC
            {"a": trained("loss", auc=0.9, loss=0.4), "b": trained("auc", auc=0.8, loss=0.3)},
            "a",
            "validation AUC",
        ),
        (
            {
                "a": trained("mixture", auc=0.9, **{"ndcg@20": 0.1, "recall@20": 0.2}),
                "b": trained("mixture", auc=0.8, **{"ndcg@20": 0.3, "recall@20": 0.1}),
            },
            "b",
            "NDCG@20 + Recall@20 / 2 + AUC",
        ),
        (
            {
                "a": trained("paper", "test", auc=0.9, fpr=0.2),
                "b": trained("paper", "test", auc=0.5, fpr=0.1),
            },
            "b",
            "test false-positive rate",
        ),
        ({"a": trained(auc=0.7)}, "a", "'a'"),
    ],
)
def test_the_selections_own_rule_prefers(variants, best, words):
    name, text = preferred(variants)
    assert name == best and text.startswith(f"'{best}'") and words in text


@pytest.fixture(scope="module")
def paths(tiny_run):
    return run_paths(tiny_run[0])[0]


@pytest.fixture(scope="module")
def model(tiny_run, paths):
    return served(paths, tiny_run[1].variants)


def test_every_reviewer_is_known_to_the_refitted_model(paths, model):
    reviews = read_table(paths.reviews, REVIEWS, ["user_id", "item_id"])
    reviewers = set(reviews["user_id"].to_pylist())
    before, after = load_entities(paths.shards), load_entities(model.shards_dir)
    assert set(before.users.ids) < reviewers == set(after.users.ids), "or this proves nothing"
    assert set(after.items.ids) == set(reviews["item_id"].to_pylist())
    pairs = {name: split_pairs(model.shards_dir, name).nnz for name in SPLITS}
    assert pairs == {"train": reviews.num_rows, "val": 0, "test": 0}
    stranger = min(reviewers - set(before.users.ids))
    known = recommend(model.shards_dir, model.train_dir, stranger, model=model.text)
    assert known.known_user and all(0 < item.probability < 1 for item in known.items)
    assert not recommend(paths.shards, paths.train("dlrrec"), stranger).known_user


def test_it_is_trained_as_the_preferred_variant_was(tiny_run, paths, model):
    name, _ = preferred({name: Manifest.read(paths.train(name)) for name in tiny_run[1].variants})
    before, after = Manifest.read(paths.train(name)), Manifest.read(model.train_dir)
    assert model.train_dir.name == name and [f.name for f in paths.refitted.trainings.iterdir()] == [name]
    assert model.train_dir == paths.final / "train" / name
    for section in ("model", "contrastive", "list", "train"):
        assert after.config[section] == before.config[section]
    assert after.facts["epochs"] == after.facts["best_epoch"] == before.facts["best_epoch"]
    for fact in ("calibration", "list"):
        assert after.facts[fact] == before.facts[fact]
    scores = Scorer(model.train_dir, model.shards_dir).list_scores(np.arange(3))
    assert np.isfinite(scores).all()
    evaluated = json.loads((paths.evaluation / "manifest.json").read_text())["inputs"]
    assert Manifest.read(model.train_dir).fingerprint not in evaluated.values()


def test_the_refitted_model_is_served_while_it_is_of_that_training(tiny_run, paths, model, tmp_path):
    _, config, _ = tiny_run
    name = model.train_dir.name
    (other,) = set(config.variants) - {name}
    assert model.text.endswith("refitted on all reviews")
    as_evaluated = served(paths, config.variants, evaluated=True)
    assert as_evaluated.train_dir == paths.train(name) and "refitted" not in as_evaluated.text
    assert served(paths, config.variants, other).train_dir == paths.train(other)
    assert served(paths, config.variants, name).train_dir == model.train_dir

    for folder in ("shards", "train", "final", "reviews"):
        shutil.copytree(paths.root / folder, tmp_path / folder)
    (copied,) = run_paths(tmp_path)
    assert served(copied, config.variants).train_dir == copied.final / "train" / name
    (copied.final / "train" / name).rename(tmp_path / "deleted")
    assert served(copied, config.variants).train_dir == copied.train(name)
    (tmp_path / "deleted").rename(copied.final / "train" / name)
    again = Manifest.read(copied.train(name))
    again.config["train"]["seed"] = 99
    again.write(copied.train(name))
    stale = served(copied, config.variants)
    assert stale.train_dir == copied.train(name) and "`dlrrec refit`" in stale.text
    for variant in config.variants:
        older = Manifest.read(copied.train(variant))
        older.inputs["shards"] = "of another run"
        older.write(copied.train(variant))
    with pytest.raises(DataError, match="not trained on .*shards; run `dlrrec train` again"):
        served(copied, config.variants)
    shutil.rmtree(copied.trainings)
    with pytest.raises(DataError, match="not there"):
        served(copied, config.variants)


def test_the_command_says_which(tiny_run, paths, model, capsys):
    root, _, _ = tiny_run
    user = example_user(paths.shards)
    call = ["recommend", "--run-dir", str(root), "--user", user, "-n", "2"]
    assert main(call) == 0
    assert f"Model: {model.text}:" in capsys.readouterr().out.replace("\n", " ")
    assert main([*call, "--evaluated", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["message"]
    assert f"Model: {model.text.removesuffix(', refitted on all reviews')}:" in said
    assert main([*call, "--variant", "none"]) == 2


def test_a_run_without_refit_makes_none_and_one_with_it_goes_on(tiny_run, tmp_path, monkeypatch):
    root, config, _ = tiny_run
    copied = tmp_path / "run"
    shutil.copytree(root, copied)
    shutil.rmtree(copied / "final")
    (paths,) = run_paths(copied)
    without = type(config)(**vars(config) | {"refit": False})
    said = []
    run(without, copied, say=said.append)
    assert not paths.final.exists() and not [line for line in said if line.startswith("refit")]
    assert served(paths, config.variants).train_dir.parent == paths.trainings

    paths.final.mkdir()
    (paths.final / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="final: is where the stage 'refit' writes"):
        run(config, copied, until="refit", say=said.append)
    (paths.final / "mine.txt").unlink()

    def fails(*_, **__):
        raise DataError("lower --fold-by")

    with monkeypatch.context() as patched, pytest.raises(DataError, match="lower --fold-by; .*`dlrrec run`"):
        patched.setattr("dlrrec_torchrec.stages.refit.extract", fails)
        run(config, copied, until="refit", say=said.append)

    # what a killed one has finished is kept
    assert (paths.final / "unfinished.json").exists() and (paths.final / "split").exists()
    for part in ("content", "swing", "shards"):
        shutil.copytree(root / "final" / part, paths.final / part)
    kept = (paths.final / "shards" / "manifest.json").stat().st_mtime_ns
    run(config, copied, until="refit", say=said.append)
    assert (paths.final / "shards" / "manifest.json").stat().st_mtime_ns == kept
    assert not (paths.final / "unfinished.json").exists()
    first, second = (run_paths(folder)[0].refitted for folder in (root, copied))
    name = next(first.trainings.iterdir()).name
    scores = [Scorer(p.train(name), p.shards).list_scores(np.arange(4)) for p in (first, second)]
    np.testing.assert_allclose(*scores, atol=1e-5)
