"""docs/variants.md is true of the shipped configurations and of the commands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.config import RunConfig, load_config, variant

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
ABLATIONS = ROOT / "configs" / "ablations.yaml"


def changed(config: RunConfig, name: str) -> dict[str, object]:
    """What the variant changes: "section.field" -> its value."""
    other = variant(config, name)
    sections = ("model", "contrastive", "train")
    pairs = [(s, field, value) for s in sections for field, value in vars(getattr(other, s)).items()]
    return {f"{s}.{f}": value for s, f, value in pairs if getattr(getattr(config, s), f) != value}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_variant_of_a_shipped_configuration_applies(path):
    config = load_config(path)
    assert not changed(config, next(iter(config.variants)))  # the first one is the file itself
    for name in list(config.variants)[1:]:
        assert changed(config, name), name


def test_the_page_lists_the_ablations():
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.M)
    assert re.findall(r"`([\w-]+)`", " ".join(rows)) == list(load_config(ABLATIONS).variants)


def test_ablations_change_what_their_names_say():
    config = load_config(ABLATIONS)
    off = {"contrastive.user_weight": 0.0, "contrastive.item_weight": 0.0}
    assert changed(config, "bce") == off
    assert changed(config, "no-content") == {"model.modalities": [], **off}
    assert changed(config, "no-user-term") == {"contrastive.user_weight": 0.0}
    assert changed(config, "no-pictures") == {"model.modalities": ["user_text", "item_text"]}


def test_the_default_variants_are_those_of_the_page():
    block = re.search(r"```yaml\n(variants:.*?)```", PAGE, re.S).group(1)
    assert yaml.safe_load(block)["variants"] == RunConfig().variants


def test_a_flag_changes_all_variants_and_set_changes_one():
    overrides = {"train.lr": 0.5, "variants.bce.train.lr": 0.25}
    config = load_config(ABLATIONS, overrides)
    assert variant(config, "dlrrec").train.lr == 0.5 and variant(config, "bce").train.lr == 0.25
    assert changed(config, "bce").keys() == {
        "train.lr",
        "contrastive.user_weight",
        "contrastive.item_weight",
    }


def test_the_commands_of_the_page_are_commands():
    lines = [line for line in PAGE.splitlines() if line.startswith("dlrrec ")]
    assert len(lines) >= 6
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])
