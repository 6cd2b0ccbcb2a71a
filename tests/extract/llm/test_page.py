"""docs/language-models.md is true: its commands run, against a server on this machine."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.extract.llm import local_server
from dlrrec_torchrec.extract.llm.prompt_sets import load_prompts
from dlrrec_torchrec.extract.providers.registry import make_provider
from dlrrec_torchrec.store.errors import DataError
from tests.extract.test_extract import FakeEncoder, write_split
from tests.helpers.batch_server import BatchServer, answer_line

PAGE = (Path(__file__).parents[3] / "docs" / "language-models.md").read_text(encoding="utf-8")
ROWS = [(f"u0001{n % 3}", f"i{n}", f"The pizza of visit {n} was cheap and good.", None) for n in range(6)]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-test")
    monkeypatch.setattr("dlrrec_torchrec.extract.stage.SentenceEncoder", lambda *_, **__: FakeEncoder())
    monkeypatch.setattr(local_server, "PROGRAM", "tests.programs.local_model")  # not the extra local-llm's
    monkeypatch.setattr(local_server, "_NEEDED", ())
    Path("small.gguf").write_bytes(b"GGUF")
    write_split(ROWS, tmp_path / "runs/demo/split")
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    commands = [
        shlex.split(line, comments=True)
        for block in blocks
        for line in block.replace("\\\n", "").splitlines()
    ]
    ran = []
    server = BatchServer(looks=1)
    with server.running() as url:
        for words in commands:
            if words[0] == "vllm" and words[1] == "run-batch":
                calls = [json.loads(line) for line in Path(words[3]).read_text().splitlines()]
                Path(words[5]).write_text("".join(json.dumps(answer_line(c)) + "\n" for c in calls))
            if words[0] != "dlrrec" or words[-1] != "runs/demo":  # others need the Zomato reviews
                continue
            if {"--batch", "write-batch"} & set(words):  # as if nothing had been asked before
                for name in ("cache", "content"):
                    shutil.rmtree(Path("runs/demo", name))
            words = [url if word.startswith("http://localhost") else word for word in words]
            words = ["local:small.gguf" if word == "local:gemma3-270m" else word for word in words]
            asks = words[1] == "extract" and "--provider" in words
            if asks and "--base-url" not in words:  # OpenAI, as this test has it
                words += ["--base-url", url, "--input-price", "1", "--output-price", "2"]
            if asks:
                words += ["--set", "llm.batch_poll=0.01"]
            assert cli.main(words[1:]) == 0, (words, capsys.readouterr().err)
            ran.append(words[1:3])
    said = capsys.readouterr().out
    assert "cross-fitted" in said and "user u00012, all training reviews" in said
    assert len(ran) == 12 and server.batches
    kept = re.search(r"(\d+) of \1 answers kept; 0 of these calls have none", said)
    assert kept and int(kept[1]) > 8


def test_the_prompts_of_the_page_are_prompts(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    assert [prompt.side for prompt in load_prompts(str(file))] == ["user", "item"]


def test_a_missing_package_is_named(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openai" else find(name, *rest)
    )
    with pytest.raises(DataError, match=r"need openai: pip install 'dlrrec-torchrec\[llm\]'"):
        make_provider("llm", ExtractConfig().summary_sentences)
    tmp_path.joinpath("cache").mkdir()
    assert cli.main(["cache", "stats", "--run-dir", str(tmp_path)]) == 2
    assert "dlrrec-torchrec[llm]" in capsys.readouterr().err
