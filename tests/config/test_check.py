"""Settings checked at the door: ranges, combinations, variants, all at once, before the first stage."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from pathlib import Path

import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import (
    ModelConfig,
    PrepareConfig,
    RunConfig,
    SplitConfig,
    TrainConfig,
    load_config,
)
from dlrrec_torchrec.config.check import check_settings, config_problems, range_words
from dlrrec_torchrec.config.names import flag_name, sections
from dlrrec_torchrec.stages import STAGES, run, settings_problems
from dlrrec_torchrec.store.errors import DataError

ROOT = Path(__file__).parents[2]


def bounded():
    """(section, field, a value just out of its range)"""
    for section, kind in sections().items():
        hints = typing.get_type_hints(kind)
        for known in dataclasses.fields(kind):
            for name, bound in known.metadata["bounds"].items():
                whole = int in (hints[known.name], *typing.get_args(hints[known.name]))
                many = list in (hints[known.name], *typing.get_args(hints[known.name]))
                whole |= many and known.name != "rating_range"
                step = 1 if whole else 1e-9
                wrong = {"least": bound - step, "most": bound + step}.get(name, bound)
                yield section, known.name, [wrong] if many else wrong


@pytest.mark.parametrize(("section", "name", "wrong"), bounded())
def test_a_value_just_out_of_its_range_is_named(section, name, wrong):
    config = load_config(None, {f"{section}.{name}": wrong})
    field = next(f for f in dataclasses.fields(sections()[section]) if f.name == name)
    with pytest.raises(DataError) as error:
        config.check()
    prefix = f"{section}.{name} ({flag_name(section, name)}): "
    assert prefix in str(error.value) and range_words(field) in str(error.value)


def test_every_number_has_a_range():
    """Except those that may be anything."""
    free = {("split", "positive_rating"), ("prepare", "rating_range")}
    for section, kind in sections().items():
        hints = typing.get_type_hints(kind)
        for known in dataclasses.fields(kind):
            default = known.default if known.default is not dataclasses.MISSING else known.default_factory()
            kinds = set(typing.get_args(hints[known.name])) or {hints[known.name]}
            numbers = isinstance(default, list) and default and not isinstance(default[0], str)
            if (kinds & {int, float} or numbers) and (section, known.name) not in free:
                assert known.metadata["bounds"], f"{section}.{known.name}"


@pytest.mark.parametrize(
    ("setting", "flag", "value", "words"),
    [
        ("train.seed", "--seed", 2**63, "an integer of 19 digits does not fit into 64 bits"),
        ("train.seed", "--seed", 2_000_000_001, "must be at least 0 and at most 2e\\+09"),
        ("train.epochs", "--epochs", 10**400, "an integer of 401 digits does not fit into 64 bits"),
        ("train.lr", "--lr", 10**400, "inf is not a finite number"),
        ("train.lr", "--lr", 1e300, "1e\\+300 is too large: no setting is above 1e\\+30"),
        ("train.lr", "--lr", 1e38, "1e\\+38 is too large"),
    ],
)
def test_numbers_that_nothing_can_hold_are_refused(setting, flag, value, words, tmp_path, capsys):
    for given in (["--set", f"{setting}={value}"], [flag, str(value)]):
        assert cli.main(["train", "--run-dir", str(tmp_path), *given]) == 2
        assert re.search(rf"{setting}\b.*: .*{words}", capsys.readouterr().err)


def test_counts_that_nothing_can_hold_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--world-size", "9" * 400])
    assert "--world-size: a number of 400 digits must be at most 2147483647" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(value):
    for setting in ("train.lr", "split.positive_rating", "prepare.rating_range"):
        given = [value, 5.0] if setting == "prepare.rating_range" else value
        with pytest.raises(DataError, match=rf"{setting} .*: {value} is not a finite number"):
            load_config(None, {setting: given}).check()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"model.dense_arch": [64, 33]},
            r"\(--dense-arch\): \[64, 33\] must end in .*\(32\)",
        ),
        ({"model.text_tower": [33]}, "model.text_tower .* must end in model.embedding_dim"),
        ({"model.image_tower": [33]}, "model.image_tower .* must end in model.embedding_dim"),
        (
            {"model.embedding_dim": 16, "model.text_tower": [32], "model.image_tower": [8, 32]},
            "(?s)dense_arch.*text_tower.*image_tower",
        ),
        (
            {"llm.local_options": {"model": "b.gguf", "port": "1"}},
            r"\(--local-options\): model, port: is set by",
        ),
        ({"model.over_arch": [16, 2]}, "model.over_arch .* must end in 1"),
        ({"model.over_arch": []}, "model.over_arch .* at least one layer"),
        (
            {"model.category": False, "model.tables": {k: {"ids": "managed"} for k in ("user", "item")}},
            "model.category .*all other tables are managed",
        ),
        ({"model.joined": ["user_text"], "list.weight": 0}, "model.joined .*two or more names"),
        ({"model.joined": ["user_text+"], "list.weight": 0}, "model.joined .*two or more names"),
        ({"model.joined": ["user_text+user_text"], "list.weight": 0}, "'user_text' is named twice"),
        (
            {"model.joined": ["user_text+item_text"], "model.modalities": ["user_text"], "list.weight": 0},
            "'item_text' is not among model.modalities",
        ),
        ({"model.joined": ["user_text+item_text"]}, "list.weight .*model.joined takes away; set it to 0"),
        (
            {"model.reduction": "upstream"},
            "contrastive.item_weight .*no tower to shape with model.reduction=upstream",
        ),
        ({"model.reduction": "both"}, "model.reduction .*joint, upstream, alone"),
        ({"model.tables.user.ids": "hash"}, "model.tables .*user.ids=hash: give the number of rows"),
        ({"model.tables.category.ids": "managed"}, "category.ids=managed is for the tables user and item"),
        ({"model.tables.user.rows": 0}, "model.tables.user.rows: 0 must be at least 1"),
        ({"model.tables.item.dim": 64}, "item.dim=64, while"),
        ({"train.accumulate": 600}, "train.accumulate .*1024 rows of a step"),
        ({"contrastive.refresh": 5, "train.epochs": 5}, "contrastive.refresh .*no epoch follows the first 5"),
        ({"train.comms": "bf16", "train.device": "cpu"}, "train.comms .*gloo.*fp16"),
        ({"split.fold": 5}, r"split.fold .*5 must be below split.folds \(5\)"),
        ({"swing.max_item_users": 1}, "swing.max_item_users .*2 or more"),
        ({"prepare.rating_range": [5, 1]}, "prepare.rating_range .*lowest and a highest"),
        ({"prepare.rating_range": [1]}, "prepare.rating_range .*lowest and a highest"),
        (
            {"split.positive_rating": 7, "prepare.rating_range": [1, 5]},
            "split.positive_rating .*one label only.*prepare.rating_range",
        ),
        ({"prepare.dense": []}, "prepare.dense .*names no feature"),
        ({"ingest.columns": {"user": "u"}}, r"ingest.columns \(--columns\): is for ingest.source=table"),
        ({"ingest.test": "x"}, "ingest.test .*the world is synthetic"),
        ({"seeds": 0}, r"seeds \(--seeds\): 0 must be at least 1"),
        ({"variants": {}}, "variants: names no model"),
        ({"variants": {"a": {"train": 3}}}, "variants.a: 'train' must be a section"),
        ({"variants": {"a": 3}}, "variants.a: must hold sections"),
        ({"variants": {"a": {"split": {"folds": 3}}}}, "variants.a: 'split' cannot differ"),
    ],
)
def test_combinations_are_refused(overrides, words):
    with pytest.raises(DataError, match=words):
        load_config(None, overrides).check()


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.interaction": "dcn", "model.dense_arch": [64, 33], "model.text_tower": [7]},
        {"model.image_tower": [5], "model.modalities": ["user_text", "item_text"]},
        {"model.category": False, "model.item_id": True},
        {"model.category": False, "model.user_id": False, "model.item_id": False},
        {
            "model.reduction": "upstream",
            "model.joined": ["user_text+item_text"],
            "contrastive.item_weight": 0,
            "contrastive.user_weight": 0,
            "list.weight": 0,
        },
        {"train.accumulate": 512},
        {"contrastive.refresh": 4, "train.epochs": 5},
        {"contrastive.refresh": 9},
        {"train.comms": "bf16", "train.device": "auto"},
        {"prepare.rating_range": [0, 10], "split.positive_rating": 7},
        {"swing.max_item_users": 0},
        {"train.table_lr": None, "train.lr": "1e-3"},
    ],
)
def test_what_can_be_is_not_refused(overrides):
    load_config(None, overrides).check()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_pass(path):
    load_config(path).check()


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys):
    """What cannot be read and what cannot be, in every section and variant."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "train: {lrr: 1, lr: -1, accumulate: 0}\nmodel: {text_tower: [32, big], dense_arch: [64, 33]}\n"
        "variants: {a: {}, b: {train: {epochs: 0, epoch: 3}}}\n"
    )
    flags = ["--config", str(path), "--run-dir", str(tmp_path / "out"), "--split.folds", "1"]
    assert cli.main(["run", *flags]) == 2
    printed = capsys.readouterr().err
    for words in (
        f"{path}: train: unknown key 'lrr'; did you mean 'lr'?",
        f"{path}: model.text_tower (--text-tower): 'big' is not of type int",
        "split.folds (--split.folds): 1 must be at least 2",
        "train.lr (--lr): -1.0 must be above 0",
        "train.accumulate (--accumulate): 0 must be at least 1",
        "model.dense_arch (--dense-arch): [64, 33] must end in",
        "variants.b.train.epochs: 0 must be at least 1",
        "variants.b.train: unknown key 'epoch'; did you mean 'epochs'?",
    ):
        assert printed.count(words) == 1, (words, printed)
    assert printed.startswith("dlrrec: 8 settings cannot be used:")
    assert not (tmp_path / "out").exists()


def test_nothing_begins_before_every_variant_is_right(tmp_path, monkeypatch):
    began = []
    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, dataclasses.replace(stage, action=began.append))
    config = load_config(None, {"variants": {"a": {}, "b": {"train": {"lrr": 1}}}})
    with pytest.raises(DataError, match="variants.b.train: unknown key 'lrr'; did you mean 'lr'"):
        run(config, tmp_path / "run")
    assert not began and not (tmp_path / "run").exists()


def test_a_stage_checks_what_it_uses(tmp_path, capsys):
    wrong = ["--run-dir", str(tmp_path), "--set", "train.lr=-1", "split.folds=1"]
    assert cli.main(["split", *wrong]) == 2
    printed = capsys.readouterr().err
    assert "split.folds" in printed and "train.lr" not in printed
    assert cli.main(["train", *wrong]) == 2
    printed = capsys.readouterr().err
    assert "train.lr (--lr)" in printed and "split.folds" not in printed
    assert cli.main(["swing", *wrong]) == 2
    assert "run `dlrrec split --run-dir" in capsys.readouterr().err


def test_what_every_variant_changes_is_not_held_against_the_file():
    body = {"train": {"lr": 0.1}}
    config = load_config(None, {"train.lr": -1, "variants": {"a": body, "b": body}})
    assert not config_problems(config)
    config.variants["c"] = {}
    assert config_problems(config) == ["train.lr (--lr): -1.0 must be above 0"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"swing.preset": "flinc"}, "unknown preset 'flinc'.*'flink'"),
        ({"prepare.dense": ["age"]}, "unknown feature 'age'"),
        ({"extract.provider": "offlin"}, r"extract.provider \(--provider\): 'offlin'.*'offline'"),
        ({"train.comms": "bf16"}, "train.comms: gloo"),
        ({"variants": {"a": {}, "b": {"train": {"comms": "bf16"}}}}, "train.comms: gloo"),
    ],
)
def test_what_only_a_stage_can_judge_is_judged_at_the_door(overrides, words, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DataError, match=words):
        raise DataError("\n".join(settings_problems(load_config(None, overrides))))


def test_functions_of_the_stages_refuse_the_same():
    with pytest.raises(DataError, match=r"(?s)2 settings.*split.folds.*split.min_reviews|min_reviews.*folds"):
        check_settings(SplitConfig(folds=1, min_reviews=0))
    with pytest.raises(DataError, match=r"model.text_tower .*'big' is not of type int"):
        check_settings(ModelConfig(text_tower=[32, "big"]), TrainConfig())
    for wrong in (TrainConfig(lr="1e-3"), TrainConfig(batch_size=64.0), PrepareConfig(rating_range=["1", 5])):
        with pytest.raises(DataError, match="is not of type (float|int|list), as .* is"):
            check_settings(wrong)
    check_settings(TrainConfig(lr=1), PrepareConfig(rating_range=[0, 10]))
    with pytest.raises(DataError, match=r"protocol \(--protocol\): 'loose' is not one of strict, paper"):
        check_settings(SplitConfig(), protocol="loose")


def test_the_ranges_stand_in_the_help(capsys):
    for words in (["train", "--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            cli.build_parser().parse_args(words)
        text = " ".join(capsys.readouterr().out.split())
        assert "learning rate of the dense part, Adam (default: by the size of the data) (above 0)" in text
        assert "columns of the embedding tables (default: 32; at least 1)" in text


@pytest.mark.parametrize("words", [["recommend", "--user", "x", "-n", "0"], ["run", "-n", "0"]])
def test_a_number_of_recommendations_is_at_least_one(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "-n: 0 must be at least 1" in capsys.readouterr().err


def test_a_seed_that_the_run_lacks_is_named(tmp_path, capsys):
    words = ["recommend", "--user", "x", "--run-dir", str(tmp_path), "--seed-number", "2"]
    assert cli.main(words) == 2
    assert "--seed-number 2: this run has the seeds 0 to 0" in capsys.readouterr().err


def test_defaults_are_right():
    assert not config_problems(RunConfig())


def test_the_transcript_of_the_page_is_true(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    command, shown = re.search(r"```text\n\$ dlrrec (.*?)\n(.*?)```", page, re.S).groups()
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(command)) == 2
    assert capsys.readouterr().err == shown and not list(tmp_path.iterdir())
