"""`dlrrec tune`: the first trial is the configuration, trials survive a kill, and test rows are not read."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import yaml

from dlrrec_torchrec.cli import build_parser, main
from dlrrec_torchrec.config import RunConfig, load_config, variant
from dlrrec_torchrec.config.automatic import DataSize
from dlrrec_torchrec.config.read import with_values
from dlrrec_torchrec.evaluation.baselines import read_rows
from dlrrec_torchrec.evaluation.intervals import Interval
from dlrrec_torchrec.experiments import studies, tuning
from dlrrec_torchrec.experiments.search_space import DEFAULT, Choices, Range, search_space
from dlrrec_torchrec.experiments.studies import claimed
from dlrrec_torchrec.experiments.tuned import Trial, best_configuration
from dlrrec_torchrec.experiments.tuning import Budget, tune
from dlrrec_torchrec.experiments.validation_gain import validation_gain, validation_scores
from dlrrec_torchrec.metrics import selection_key
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.training.signals import Stopped
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import write_shards
from tests.helpers.threads import one_thread  # noqa: F401

SMALL = {"train.epochs": 2, "train.batch_size": 128, "model.embedding_dim": 8, "model.dense_arch": [16, 8]}
SMALL |= {"list.dim": 8, "contrastive.num_negatives": 16}
SEARCH = ("train.lr", "model.dropout", "list.tau")
SIZE = DataSize(rows=600, rarer=250, users=60, items=40)
DIMS = {"user_text": 24, "item_text": 24, "item_image": 12}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards without test rows: whoever reads them fails."""
    folder = write_shards(tmp_path_factory.mktemp("tune") / "shards", rows=(400, 150, 40), dims=DIMS)
    shutil.rmtree(folder / "test")
    return folder


@pytest.fixture(scope="module")
def done(shards, tmp_path_factory):
    """A tuning of three trials: its folders, what it found, and what it said."""
    paths, said = run_paths(tmp_path_factory.mktemp("done"))[0], []
    paths.shards.symlink_to(shards)
    return paths, search(paths, 3, say=said.append), said


@pytest.fixture
def paths(shards, tmp_path):
    """The folders of a run with shards alone."""
    (tmp_path / "shards").symlink_to(shards)
    return run_paths(tmp_path)[0]


@pytest.fixture
def copied(done, paths):
    """Those of `done`, to change."""
    shutil.copytree(done[0].tune, paths.tune)
    return paths


def config(**settings):
    return load_config(None, SMALL | settings)


def search(paths, trials, *, of=None, asked=SEARCH, say=lambda line: None, name="dlrrec"):
    return tune(of or config(), name, paths, Budget(trials=trials), asked=asked, say=say)


def trained(of, paths, folder):
    manifest = train(
        of.model, of.contrastive, of.train, of.protocol, paths.shards, paths.root / folder, of.list
    )
    return selection_key(manifest.facts["rule"], manifest.facts["best"])[0]


# --- a tuning


def test_the_first_trial_is_the_configuration_and_the_best_one_a_configuration(done):
    paths, found, said = done
    assert found.first.value == trained(config(), paths, "as-configured")
    assert found.first.values == search_space(config(), SIZE, SEARCH).own
    assert found.best.value >= found.first.value
    assert found.best.value == max(t.value for t in found.trials if t.value is not None)
    best = load_config(paths.tune / "best.yaml")
    best.check()
    assert trained(variant(best, "dlrrec"), paths, "best") == found.best.value
    assert len(said) == 2 + 3 and "as configured" in said[2]
    with open(paths.tune / "trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [0, 1, 2]
    assert len({row["train.lr"] for row in rows}) == 3
    assert not paths.trainings.exists() and not list(paths.tune.glob("trial-*"))
    assert len(list((paths.tune / "scores").iterdir())) == (2 if found.best.number else 1)


def test_the_same_call_does_nothing_more_and_a_larger_budget_goes_on(done, copied, monkeypatch):
    found = done[1]
    monkeypatch.setattr(tuning, "train", None)
    for budget in (Budget(trials=3), Budget(minutes=1e-9), Budget(minutes=60.0, trials=2)):
        assert tune(config(), "dlrrec", copied, budget, asked=SEARCH, say=str).trials == found.trials
    monkeypatch.undo()
    said = []
    more = Budget(minutes=sum(trial.seconds for trial in found.trials) / 60 + 1e-6)
    again = tune(config(), "dlrrec", copied, more, asked=SEARCH, say=said.append)
    assert again.trials[:3] == found.trials and len(again.trials) == 4  # the one under way is finished
    assert "goes on from 3 trials" in said[2]


def test_a_killed_tuning_goes_on_from_within_its_trial_as_if_nothing_had_been(done, paths, monkeypatch):
    class Killed(BaseException):
        pass

    calls = []

    def killed_in_the_second(*args, after_epoch, **kwargs):
        calls.append(args)

        def after(selection):
            after_epoch(selection)
            if len(calls) == 2 and selection.epoch == 1:
                raise Killed

        return train(*args, after_epoch=after, **kwargs)

    monkeypatch.setattr(tuning, "train", killed_in_the_second)
    with pytest.raises(Killed):
        search(paths, 2)
    with open(paths.tune / studies.JOURNAL, "a", encoding="utf-8") as file:
        file.write('{"op_code": 4, "half a li')
    (paths.tune / f"{studies.JOURNAL}.lock").symlink_to("gone")
    log = (paths.tune / "trainings.log").read_text()
    resumed = search(paths, 2)
    told = (paths.tune / "trainings.log").read_text()[len(log) :]
    assert "epoch 2:" in told and "epoch 1:" not in told  # from its checkpoint
    plain = [dataclasses.replace(trial, seconds=0.0) for trial in resumed.trials]
    assert plain == [dataclasses.replace(trial, seconds=0.0) for trial in done[1].trials[:2]]


def test_a_request_to_stop_keeps_what_was_found(copied, monkeypatch):
    def stopped(*args, **kwargs):
        raise Stopped

    said = []
    monkeypatch.setattr(tuning, "train", stopped)
    (copied.tune / "best.yaml").unlink()
    with pytest.raises(Stopped):
        search(copied, 5, say=said.append)
    assert (
        "3 trials, " in said[-2]
        and "goes on from here" in said[-1]
        and load_config(copied.tune / "best.yaml")
    )


def test_other_settings_and_shards_begin_a_study_of_their_own_and_the_old_one_is_kept(done, copied):
    first, said = done[1], []
    other = config(**{"model.embedding_dim": 12, "model.dense_arch": [12]})
    assert len(search(copied, 1, of=other, say=said.append).trials) == 1
    assert "a new study: the 3 trials in" in said[2]
    copied.shards.unlink()
    write_shards(copied.shards, rows=(400, 150, 40), dims=DIMS, seed=1)
    said = []
    other = search(copied, 1, say=said.append)
    assert "a new study: the 4 trials in" in said[2] and other.first.value != first.first.value
    shutil.rmtree(copied.shards)
    copied.shards.symlink_to(done[0].shards)
    assert search(copied, 3).trials == first.trials


def test_two_at_once_are_refused(copied):
    with claimed(copied.tune), pytest.raises(DataError, match=r"another `dlrrec tune` .* \(process \d+\)"):
        search(copied, 3)
    assert len(search(copied, 3).trials) == 3


def test_a_folder_of_something_else_is_left_alone(paths):
    paths.tune.mkdir()
    (paths.tune / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="was not written by it"):
        search(paths, 1)
    assert [path.name for path in paths.tune.iterdir()] == ["mine.txt"]


def test_a_trial_that_lags_behind_is_given_up(copied, monkeypatch):
    from optuna.pruners import MedianPruner

    monkeypatch.setattr(MedianPruner, "prune", lambda self, study, trial: True)
    found = search(copied, 4)
    assert found.trials[3].state == "pruned" and any("1 given up" in line for line in found.lines())
    assert not list(copied.tune.glob("trial-*"))


def test_failing_trials_are_told_and_end_it_when_none_succeeds(copied, monkeypatch):
    def failing(*args, **kwargs):
        raise DataError("the loss is not a number")

    said = []
    monkeypatch.setattr(tuning, "train", failing)
    with pytest.raises(DataError, match="5 trials in a row failed, the last one: the loss is not a number"):
        search(copied, 20, say=said.append)
    assert "failed" in said[-1] and "the loss is not a number" in said[-1]


# --- the gain


def test_scores_of_rows_and_users_add_up_to_what_was_selected_by(paths):
    of = config()
    trained(of, paths, "one")
    best = Manifest.read(paths.root / "one").facts["best"]
    label = read_rows(paths.shards, "val").label
    of_zeros = {"loss": -np.log(2), "auc": 0.5, "mixture": 0.5, "accuracy": float(label.mean())}
    for rule, base in of_zeros.items():
        one = validation_scores(paths.root / "one", paths.shards, rule, of.list.val_users, of.train.seed)
        zero = {name: np.zeros_like(values) for name, values in one.items()} | {"list_user": one["list_user"]}
        gain = validation_gain(rule, paths.shards, one, zero)
        assert gain.difference + base == pytest.approx(selection_key(rule, best)[0], abs=1e-6), rule
        assert gain.low < gain.difference < gain.high


@pytest.mark.parametrize(
    "low, said", [(-0.01, "caution: the interval holds zero"), (0.01, "note: it is the")]
)
def test_a_gain_within_chance_is_called_so(low, said, done):
    found = done[1]
    best = dataclasses.replace(found.first, number=1, values=found.first.values | {"train.lr": 0.5})
    told = dataclasses.replace(found, best=best, gain=Interval(0.02, low, 0.05))
    text = "\n".join(told.lines())
    assert said in text and "-> 0.5" in text and "+0.0200" in text and "the best of 3" in text


# --- what is searched


def test_what_the_configuration_fixes_is_not_searched_unless_named():
    fixed = config(**{"train.lr": 0.002, "list.tau": 0.3})
    space = search_space(fixed, SIZE)
    assert space.fixed == {"train.lr": 0.002, "list.tau": 0.3}
    assert space.searched.keys() == DEFAULT.keys() - space.fixed.keys()
    named = search_space(fixed, SIZE, ["train.lr"])
    assert named.searched == {"train.lr": Range(0.0002, 0.02)} and named.own == {"train.lr": 0.002}


def test_what_has_no_effect_is_not_searched():
    names = search_space(variant(config(), "bce"), SIZE).searched
    assert not any(name.startswith("contrastive.") for name in names)
    assert not any(n.startswith("list.") for n in search_space(config(**{"list.weight": 0}), SIZE).searched)


def test_values_of_ones_own():
    asked = [
        "model.dropout=0.4..0.5",
        "list.dim=16..64",
        "model.over_arch=[[8,1],[4,1]]",
        "train.lr=1e-4..1e-2",
    ]
    found = search_space(config(), SIZE, asked).searched
    assert found["model.dropout"] == Range(0.3, 0.5)  # holds the configuration's own
    assert found["list.dim"] == Range(8, 64, whole=True)
    assert found["model.over_arch"] == Choices(("[32, 1]", "[8, 1]", "[4, 1]"))
    assert found["train.lr"].log and not found["model.dropout"].log


@pytest.mark.parametrize(
    "asked, said",
    [
        ("train.lrr", "'train.lrr' is no setting that can be searched"),
        ("split.seed", "is no setting that can be searched"),
        ("train.select=[auc,loss]", "is no setting that can be searched"),
        ("train.batch_size", "say which values, as 'train.batch_size=LOW..HIGH'"),
        ("train.lr=0.1", "neither LOW..HIGH, two numbers, nor a list"),
        ("train.lr=0.1..0.01", "neither LOW..HIGH"),
        ("list.dim=8..12.5", "two whole numbers"),
        ("train.lr=[0.1]", "no list of two values or more"),
        ("model.dropout=0..1", "1.0 must be at least 0 and below 1"),
        ("model.tower_norm=[batch,big]", "'big' is not one of"),
        ("list.weight=[0,1]", "search above 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused(asked, said):
    with pytest.raises(DataError) as refused:
        search_space(config(), SIZE, [asked])
    assert said in str(refused.value) and f"--search {asked}" in str(refused.value)


def test_no_scale_for_a_zero_has_a_way_out():
    zero = config(**{"train.weight_decay": 0})
    for asked in ("train.weight_decay", "train.weight_decay=0.001..1"):
        with pytest.raises(DataError) as refused:
            search_space(zero, SIZE, [asked])
        way = str(refused.value).split("as --search '")[1].removesuffix("'")
        assert search_space(zero, SIZE, [way]).own == {"train.weight_decay": 0}
    with pytest.raises(DataError) as refused:  # open, and left open by `automatic`
        search_space(config(), SIZE, ["train.table_lr=1e-4..1e-2"])
    way = str(refused.value).split("as --search '")[1].removesuffix("'")
    assert search_space(config(), SIZE, [way]).searched["train.table_lr"].values() == [None, 0.0001, 0.01]
    everything = {name: values for name, values in search_space(config(), SIZE).own.items()}
    everything |= {name: value * 0.9 for name, value in everything.items() if isinstance(value, float)}
    with pytest.raises(DataError, match="--search train.lr model.dropout"):
        search_space(with_values(config(), everything | {"model.over_arch": [9, 1]}), SIZE)


def test_more_epochs_where_their_number_is_open(paths):
    of = dataclasses.replace(config(), train=dataclasses.replace(config().train, epochs=None))
    for asked, settings, more in (
        (SEARCH, {}, {"train.epochs": 2 * 60}),
        ((*SEARCH, "train.epochs=2..4"), {}, {}),
        (SEARCH, {"train.schedule": "cosine"}, {}),
        (SEARCH, {"train.patience": 0}, {}),
    ):
        tuned = with_values(of, settings)
        assert tuning.Tuning(tuned, tuned, "dlrrec", paths, asked, print).more_epochs == more


def test_each_value_goes_where_it_came_from(tmp_path):
    of = RunConfig(variants={"mine": {"train": {"lr": 0.5}}, "other": {}})
    best = Trial(3, "complete", 1.0, {"train.lr": 0.1, "list.tau": 0.4}, 1.0, 2, {}, "")
    changed = best_configuration(of, "mine", best)
    assert changed.variants == {"mine": {"train": {"lr": 0.1}}, "other": {}}
    assert changed.list.tau == 0.4 and changed.train == of.train
    assert best_configuration(of, "mine", dataclasses.replace(best, number=0)) == of


# --- the command


def test_the_command(shards, tmp_path, capsys):
    (tmp_path / "shards").symlink_to(shards)
    body = {}
    for name, value in (SMALL | {"train.epochs": 1}).items():
        section, _, key = name.partition(".")
        body.setdefault(section, {})[key] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(body))
    words = ["tune", "--config", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path), "--variant", "bce"]
    assert main([*words, "--trials", "1", "--search", "model.dropout=0..0.5", "--lr", "0.004"]) == 0
    out = capsys.readouterr()
    assert out.err == "" and "'bce' by validation" in out.out
    assert "dlrrec run --config" in out.out and "best.yaml" in out.out
    manifest = json.loads((tmp_path / "tune" / "manifest.json").read_text())
    assert manifest["config"]["train"]["lr"] == 0.004 and manifest["config"]["list"]["id_lr"] == 0.01


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give a budget: --minutes, --trials, or both"),
        (["--trials", "1", "--protocol", "paper"], "tune under --protocol strict"),
        (["--trials", "1", "--variant", "none"], "unknown variant 'none'"),
        (["--trials", "1", "--seed-number", "1"], "this run has the seeds 0 to 0"),
    ],
)
def test_what_cannot_be_is_refused(words, said, shards, tmp_path, capsys):
    (tmp_path / "shards").symlink_to(shards)
    assert main(["tune", "--run-dir", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "tune").exists()


def test_what_is_missing_is_named(shards, tmp_path, capsys, monkeypatch):
    assert main(["tune", "--run-dir", str(tmp_path), "--trials", "1"]) == 2
    assert f"`dlrrec run --until prepare --run-dir {tmp_path}` makes them" in capsys.readouterr().err
    (tmp_path / "shards").symlink_to(shards)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "--run-dir", str(tmp_path), "--trials", "1"]) == 2
    assert "pip install 'dlrrec-torchrec[tune]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "bound"),
    [
        (["tune", "--minutes"], "above 0"),
        (["audit", "leakage", "--tolerance"], "at least 0"),
    ],
)
@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "-1"])
def test_numbers_that_no_budget_or_tolerance_can_be_are_refused(capsys, flags, bound, text):
    with pytest.raises(SystemExit):
        build_parser().parse_args([*flags[:-1], f"{flags[-1]}={text}"])
    assert f"{flags[-1]}: {text} must be a finite number {bound}" in capsys.readouterr().err
    assert build_parser().parse_args([*flags[:-1], f"{flags[-1]}=0.5"])
