"""Providers of content by name: the project's, and one that this file defines."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.config.flags import run_settings
from dlrrec_torchrec.extract.providers.base import Content
from dlrrec_torchrec.extract.providers.offline import OfflineProvider
from dlrrec_torchrec.extract.providers.registry import PROVIDERS, make_provider
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.store.errors import DataError
from tests.extract.test_extract import FakeEncoder, tables, write_split

ROWS = [("u", "i", "Good soup.", None), ("u", "j", "Cheap tea.", None), ("v", "i", "Slow.", None)]
OWN = f"{__name__}:Shouting"


class Shouting:
    """Says what the reviews say, in capitals."""

    name, model = "shouting", "upper"
    tag, likes, answers = "fair", ("Tea", "Cake"), None

    def __init__(self, summary_sentences: int, mark: str = "!"):
        self.limit, self.mark = summary_sentences, mark
        self.fingerprint = f"{summary_sentences}{mark}"

    def read(self, corpus):
        self.corpus = corpus
        return self

    def describe(self, entities):
        for entity in list(entities)[: self.answers]:
            assert entity.corpus is self.corpus
            said = tuple(text.rstrip(".").upper() + self.mark for text in entity.texts[: self.limit])
            if entity.side == "user":
                yield Content(said, likes=self.likes, avoids=("Soup",))
            else:
                yield Content(said, self.tag, ("Soup",))


class Dear(Shouting):
    tag = "dear"


class Twice(Shouting):
    likes = ("Tea", "Tea")


class Silent(Shouting):
    answers = 0


def run(root, encoder=None, **settings):
    split = root / "split" if (root / "split").exists() else write_split(ROWS, root / "split")
    config = ExtractConfig(**({"folds": 2, "summary_sentences": 3} | settings))
    return extract(config, split, root / "none", root / "content", root / "cache", encoder or FakeEncoder())


def test_a_provider_of_ones_own_writes_the_content(tmp_path):
    manifest = run(tmp_path, provider=OWN, provider_options={"mark": "?"})
    content, _ = tables(tmp_path)
    assert content["users", "v", -1]["summary"] == "SLOW?"
    assert content["users", "v", -1]["likes"] == ["Tea", "Cake"]
    assert content["users", "v", -1]["avoids"] == ["Soup"]
    assert content["items", "i", -1]["summary"] == "GOOD SOUP? SLOW?"
    assert content["items", "i", -1]["price_tag"] == "fair"
    assert content["items", "i", -1]["categories"] == ["Soup"]
    known = {"provider": "shouting", "model": "upper", "fingerprint": "3?"}
    assert {key: manifest.facts[key] for key in known} == known
    assert json.loads((tmp_path / "content" / "manifest.json").read_text())["config"]["provenance"] == known


def test_another_identity_makes_the_content_again(tmp_path):
    assert not run(tmp_path, provider=OWN).reused
    assert run(tmp_path, provider=OWN).reused
    assert not run(tmp_path, provider=OWN, provider_options={"mark": "."}).reused
    assert not run(tmp_path).reused


def test_an_identity_is_known_before_a_text_is_read():
    known = {make_provider("offline", n).fingerprint for n in (2, 3)}
    assert len(known) == 2
    provider = make_provider("offline", 3)
    assert isinstance(provider, OfflineProvider)
    assert (provider.name, provider.model) == (
        "offline",
        "lexicon+mmr",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"provider": "offlin"},
            "did you mean 'offline'.*There are: offline.*MODULE:CLASS",
        ),
        ({"provider": "gpt"}, "'gpt' is not known; There are: offline"),
        ({"provider": "no_such_module:X"}, "cannot be imported: No module named 'no_such_module'"),
        ({"provider": f"{__name__}:Missing"}, "cannot be imported: .*no attribute 'Missing'"),
        ({"provider": f"{__name__}:ROWS"}, "makes no provider"),
        ({"provider": OWN, "provider_options": {"marks": "x"}}, "provider_options.*'marks'"),
        ({"provider_options": {"mark": "x"}}, "provider_options.*OfflineProvider.*'mark'"),
        ({"provider": f"{__name__}:Dear"}, "price tag 'dear' is not one of none"),
        ({"provider": f"{__name__}:Twice"}, r"likes \('Tea', 'Tea'\) must be .* each once"),
        ({"provider": f"{__name__}:Silent"}, r"answered 0 of \d+ requests"),
    ],
)
def test_providers_that_cannot_be_used_are_named(tmp_path, settings, words):
    with pytest.raises(DataError, match=words):
        run(tmp_path, **settings)
    assert not (tmp_path / "content").exists()


def test_the_command_takes_a_provider_and_refuses_an_unknown_one(tmp_path, capsys):
    arguments = ["extract", "--run-dir", str(tmp_path), "--provider"]
    assert cli.main([*arguments, "gpt"]) == 2
    assert "There are: " + ", ".join(PROVIDERS) in capsys.readouterr().err
    assert cli.main([*arguments, OWN, "--provider-options", "mark=?"]) == 2  # the provider is right
    assert "run `dlrrec split" in capsys.readouterr().err


def test_the_provider_of_the_page_works(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    (tmp_path / "my_content.py").write_text(re.search(r"```python\n(.*?)```", page, re.S)[1])
    command = shlex.split(re.search(r"```bash\n(.*?)```", page, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    config, _ = run_settings(cli.build_parser().parse_args(command[command.index("dlrrec") + 1 :]))
    chosen = config.extract
    assert chosen.provider_options == {"words": "12"}
    run(tmp_path, provider=chosen.provider, provider_options={"words": "1"})
    content, _ = tables(tmp_path)
    assert content["users", "u", -1]["summary"] == "Good. Cheap."
