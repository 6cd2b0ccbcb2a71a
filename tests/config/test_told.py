"""What a report says of the settings: those that differ from the defaults, and the command."""

import shlex

import pytest

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.config.flags import given_settings
from dlrrec_torchrec.config.read import load_config
from dlrrec_torchrec.config.saved import changed_settings, described_run

CHANGES = {
    "train.epochs": 3,
    "train.lr": 0.003,
    "ingest.source": "movielens",
    "ingest.reviews": "my data/u1.base",
    "prepare.dense": ["item_mean", "price"],
    "model.item_id": True,
    "seeds": 2,
}


def test_only_what_differs_is_told_and_the_command_makes_the_same_settings():
    config = load_config(None, CHANGES)
    settings, command = described_run("runs/my run", config)
    assert settings == CHANGES
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert arguments.run_dir == "runs/my run"
    assert load_config(None, given_settings(arguments)) == config
    assert described_run("runs/x", load_config(None)) == ({}, "dlrrec run --run-dir runs/x")


@pytest.mark.parametrize("value", ["yes", "1", "null", "a: b", "", "~", "[x"])
def test_words_that_yaml_would_take_for_something_else(value):
    config = load_config(None, {"extract.encoder": value})
    _, command = described_run("r", config)
    assert given_settings(build_parser().parse_args(shlex.split(command)[1:])) == {"extract.encoder": value}


def test_variants_are_told_by_name_and_read_from_the_folder():
    changed = {"contrastive": {"item_weight": 1.0}}
    config = load_config(None, {"variants": {"dlrrec": {}, "new": changed}})
    settings, command = described_run("r", config)
    assert settings == changed_settings(config) == {"variants.new": changed, "variants.bce": None}
    assert command == "dlrrec run --config r/config.yaml --run-dir r"
