"""Configuration: files, overrides, variants, flags, and what is refused."""

import dataclasses

import pytest
import yaml

from dlrrec_torchrec.cli import build_parser, main
from dlrrec_torchrec.config import RunConfig, for_seed, load_config, variant
from dlrrec_torchrec.config.flags import run_settings
from dlrrec_torchrec.config.names import sections
from dlrrec_torchrec.stages import STAGES
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import jsonable
from dlrrec_torchrec.store.paths import run_paths


def parse(*argv):
    return run_settings(build_parser().parse_args(argv))


def test_defaults_survive_a_round_trip_through_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(jsonable(RunConfig())))
    assert load_config(path) == RunConfig()


def test_file_then_set_then_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {lr: 1e-3, epochs: 7}\nsplit: {min_reviews: 4}\n")
    config, folder = parse(
        "run", "--config", str(path), "--set", "train.lr=0.5", "train.patience=2", "--epochs", "9"
    )
    assert (config.train.lr, config.train.epochs, config.train.patience) == (0.5, 9, 2)
    assert config.split.min_reviews == 4
    assert folder.as_posix() == "runs/c"


def test_the_runs_own_configuration_is_the_default(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {epochs: 3}\n")
    assert parse("train", "--run-dir", str(tmp_path))[0].train.epochs == 3


def test_columns_become_a_mapping():
    config, _ = parse(
        "ingest", "--source", "table", "--columns", "user=Reviewer Name", "item=R", "--run-dir", "x"
    )
    assert config.ingest.columns == {"user": "Reviewer Name", "item": "R"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.lrr": 1}, ["unknown key 'lrr'", "did you mean 'lr'"]),
        ({"trian.lr": 1}, ["unknown key 'trian'", "did you mean 'train'"]),
        ({"train.epochs": "many"}, ["epochs", "not of type int"]),
        ({"train.epochs": True}, ["epochs", "not of type int"]),
        ({"protocol": "loose"}, ["'loose' is not one of strict, paper"]),
        ({"train": 3}, ["'train' must be a section"]),
    ],
)
def test_what_is_refused_is_named(overrides, words):
    with pytest.raises(DataError) as error:
        load_config(None, overrides)
    for word in words:
        assert word in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(DataError, match="not valid YAML"):
        load_config(bad)
    bad.write_text("- a\n")
    with pytest.raises(DataError, match="must hold sections"):
        load_config(bad)


@pytest.mark.parametrize(
    "name", ["../../../precious", "a/b", "", ".", "..", "a b", "a\n", "ü", 7, None, "/x"]
)
def test_a_variants_name_is_a_folders_name(tmp_path, name):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"variants": {"fine_1.0-b": {}, name: {}}}))
    for call in (lambda: load_config(path), lambda: parse("run", "--config", str(path), "--run-dir", "x")):
        with pytest.raises(DataError) as error:
            call()
        assert f"c.yaml: variants: {name!r}" in str(error.value) and "A-Z and a-z, digits" in str(error.value)
    with pytest.raises(DataError, match="--variant: "):
        run_paths(tmp_path)[0].train(name)


def test_no_name_leads_out_of_the_run(tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "manifest.json").write_text('{"stage": "train"}')
    path = tmp_path / "c.yaml"
    path.write_text("variants: {'../../../precious': {}}")
    run = str(tmp_path / "runs" / "one")
    for command in (["run", "--force"], ["train"]):
        assert main([*command, "--config", str(path), "--run-dir", run]) == 2
        assert "variants: '../../../precious'" in capsys.readouterr().err
    for command in (["train"], ["recommend", "--user", "u"]):
        assert main([*command, "--variant", "../../../precious", "--run-dir", run]) == 2
        assert "'../../../precious'" in capsys.readouterr().err
    assert [p.name for p in precious.iterdir()] == ["manifest.json"]
    for name in ("..yaml", "...yaml", "a b.yaml"):  # these would be runs/., runs/.. and runs/a b
        path.rename(tmp_path / name)
        path = tmp_path / name
        path.write_text("seeds: 1")
        with pytest.raises(DataError, match="give --run-dir"):
            parse("run", "--config", str(path))
        assert parse("run", "--config", str(path), "--run-dir", "x")[1].name == "x"


def test_variants_change_only_what_they_name():
    config = load_config(None)
    changed = variant(config, "bce")
    assert changed.contrastive.user_weight == changed.contrastive.item_weight == 0
    assert changed.train == config.train and changed.model == config.model
    assert config.contrastive.user_weight > 0
    with pytest.raises(DataError, match="unknown variant 'x'"):
        variant(config, "x")
    config.variants = {"v": {"split": {"seed": 1}}}
    with pytest.raises(DataError, match="'split' cannot differ"):
        variant(config, "v")


def test_a_seed_changes_split_and_weights_only():
    config = load_config(None, {"variants": {"a": {"train": {"seed": 5, "lr": 0.1}}, "b": {}}})
    other = for_seed(config, 2)
    assert (other.split.seed, other.train.seed) == (2, 2)
    assert other.variants == {"a": {"train": {"seed": 7, "lr": 0.1}}, "b": {}}
    assert other.ingest == config.ingest and config.split.seed == 0


def test_every_field_is_a_flag_with_help():
    parser = build_parser()
    for section, kind in sections().items():
        for known in dataclasses.fields(kind):
            assert known.metadata["help"], f"{section}.{known.name} has no help"
    for name in (*STAGES, "run", "recommend"):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([name, "--help"])
        assert ended.value.code == 0


def test_vectors_are_a_flag_of_prepare_and_of_run():
    """`model.vectors` has the same last name, so `run` knows that one by its whole name only."""
    for command in (["prepare", "--vectors"], ["run", "--vectors"], ["run", "--prepare.vectors"]):
        config, _ = run_settings(build_parser().parse_args([*command, "item_audio=a.npz", "user_x=b.npz"]))
        assert config.prepare.vectors == {"item_audio": "a.npz", "user_x": "b.npz"}
    config, _ = run_settings(build_parser().parse_args(["train", "--vectors", "table"]))
    assert config.model.vectors == "table"


def test_vectors_are_checked_before_the_first_stage(tmp_path, capsys):
    """Names, forms and files: not after the minutes that extraction takes."""
    for text, words in (
        ("item_text=a.npz", "`dlrrec extract` makes"),
        ("item_a=none.npz", "no file none.npz"),
    ):
        assert main(["run", "--run-dir", str(tmp_path / "run"), "--vectors", text]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "run" / "reviews").exists()


def test_towers_are_sizes_by_name(tmp_path):
    for body in ({"item_audio": "128,32"}, {"item_audio": [128, 32]}, {"item_audio": ["128", 32]}):
        assert load_config(None, {"model.towers": body}).model.towers == {"item_audio": [128, 32]}
    assert load_config(None, {"model.towers.item_audio": 32}).model.towers == {"item_audio": [32]}
    arguments = build_parser().parse_args(["train", "--towers", "item_audio=48,32", "user_text=32"])
    config, _ = run_settings(arguments)
    assert config.model.towers == {"item_audio": [48, 32], "user_text": [32]}
    for wrong in ({"item_audio": "big"}, {"item_audio": [None]}):
        with pytest.raises(DataError, match="model.towers.*item_audio: .* is not layer sizes, as 128,32"):
            load_config(None, {"model.towers": wrong})
    with pytest.raises(DataError, match="model.towers.*must name towers"):
        load_config(None, {"model.towers": [32]})


def test_bad_flags_say_what_they_want(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["ingest", "--columns", "user"])
    assert "KEY=VALUE" in capsys.readouterr().err
    with pytest.raises(DataError, match="SECTION.KEY=VALUE"):
        parse("run", "--set", "train.lr")
