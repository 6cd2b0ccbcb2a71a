"""The settings in a run's folder: kept by every command, put back after a refusal, never another's file."""

import pytest
import yaml

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import RunConfig, load_config
from dlrrec_torchrec.config.saved import SAVED, kept_settings
from dlrrec_torchrec.store.errors import DataError


def test_a_refusal_puts_back_what_was_there(tmp_path):
    for previous in (None, "seeds: 2\n"):
        if previous:
            (tmp_path / SAVED).write_text(previous)
        with pytest.raises(DataError, match="no good"), kept_settings(tmp_path, RunConfig(seeds=3)):
            assert load_config(tmp_path / SAVED).seeds == 3
            raise DataError("no good")
        assert (tmp_path / SAVED).exists() == bool(previous)
        assert not previous or (tmp_path / SAVED).read_text() == previous
    with kept_settings(tmp_path, RunConfig(seeds=3)):
        pass
    assert load_config(tmp_path / SAVED).seeds == 3


@pytest.mark.parametrize("text", ["a: 1\n", "- x\n", "just words\n", "a: [\n"])
def test_another_programs_file_is_left_alone(tmp_path, text, capsys):
    (tmp_path / SAVED).write_text(text)
    with pytest.raises(DataError, match="give another --run-dir"), kept_settings(tmp_path, RunConfig()):
        pytest.fail("it was written")
    (tmp_path / "mine.yaml").write_text("ingest: {size: tiny}\n")
    command = [
        "run",
        "--config",
        str(tmp_path / "mine.yaml"),
        "--run-dir",
        str(tmp_path),
        "--until",
        "ingest",
    ]
    assert main(command) == 2 and "config.yaml" in capsys.readouterr().err
    assert (tmp_path / SAVED).read_text() == text and not (tmp_path / "reviews").exists()


def test_a_stages_own_command_keeps_its_settings(tmp_path):
    """So the next command without --config works with the same ones."""
    (tmp_path / "mine.yaml").write_text("split: {val_share: 0.2}\n")
    folder = tmp_path / "run"
    assert (
        main(["ingest", "--config", str(tmp_path / "mine.yaml"), "--run-dir", str(folder), "--size", "tiny"])
        == 0
    )
    saved = yaml.safe_load((folder / SAVED).read_text())
    assert saved["ingest"]["size"] == "tiny" and saved["split"]["val_share"] == 0.2


def test_folders_and_files_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for command, said in (
        (["run", "--run-dir", str(tmp_path / "file")], "is no folder"),
        (["run", "--config", str(tmp_path), "--run-dir", str(tmp_path / "r")], "cannot be read"),
        (["recommend", "--run-dir", str(tmp_path / "none"), "--user", "u"], "there is no such folder"),
    ):
        assert main(command) == 2 and said in capsys.readouterr().err


def test_a_misspelt_override_is_not_the_files_fault(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 2}\n")
    for key, hint in (("train.lrr", "'lr'"), ("trian.lr", "'train'"), ("lr", "train.lr")):
        with pytest.raises(DataError, match=f"^--set {key}: unknown key .*{hint}"):
            load_config(file, {key: 1})


def test_one_variant_changed_by_a_flag_leaves_the_others(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 2}\n")
    config = load_config(file, {"variants.bce.train.lr": 0.001})
    assert list(config.variants) == list(RunConfig().variants)
    assert config.variants["bce"]["train"] == {"lr": 0.001}
    assert config.variants["bce"]["contrastive"] == RunConfig().variants["bce"]["contrastive"]
    with pytest.raises(DataError, match="no variant 'bec'; did you mean 'bce'"):
        load_config(file, {"variants.bec.train.lr": 0.1})
    assert "bec" not in RunConfig().variants
