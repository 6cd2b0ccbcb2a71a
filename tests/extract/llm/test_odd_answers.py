"""What servers send that no client expects: keys in answers, odd numbers, escapes, endless texts."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec.config import LlmConfig
from dlrrec_torchrec.extract.llm import server as server_module
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.calls import CallHead, Reply, safe
from dlrrec_torchrec.extract.llm.server import server_key, without_key
from dlrrec_torchrec.extract.llm.spending import Budget, Prices
from dlrrec_torchrec.store.errors import DataError, Unfinished
from tests.extract.llm.test_asking import forget, run
from tests.helpers.model_server import ModelServer, _Handler, completion, honest, question

KEY = "sk-0123456789abcdef"


class Odd(_Handler):
    """Answers as `Odd.change` makes the right one."""

    change = staticmethod(lambda body, answer: answer)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.model.bodies.append(body)
        content = json.dumps(honest(*question(body)))
        answer = completion({"role": "assistant", "content": content})
        self._send(200, Odd.change(body, answer))


@pytest.fixture
def odd(monkeypatch):
    server = ModelServer()
    server.handler = Odd
    yield server
    Odd.change = staticmethod(lambda body, answer: answer)


def changed(change):
    Odd.change = staticmethod(change)


@pytest.mark.parametrize("key", ["sk-SECRETKEY\nfoo", "sk-é-accent-1234", "two words here", "sk\x00secret12"])
def test_what_is_no_key_is_refused_without_a_word_of_it(monkeypatch, key):
    monkeypatch.setattr(server_module.os, "environ", {"MINE": key})
    with pytest.raises(DataError, match="MINE holds is no key") as error:
        server_key(LlmConfig(base_url="http://x/v1", api_key_env="MINE"))
    assert not any(part in str(error.value) for part in ("SECRET", "accent", "words", "secret"))


def test_a_key_in_an_answer_is_not_kept(odd, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", KEY)

    def repeat(body, answer):
        message = answer["choices"][0]["message"]
        told = json.loads(message["content"])
        told["summary"] = f"The place has the key {KEY} and the food is good."
        message["content"] = json.dumps(told)
        return answer

    changed(repeat)
    with odd.running() as url:
        run(tmp_path, url, {"api_key_env": "MINE"})
    assert "***" in pq.read_table(tmp_path / "content/users")["summary"].to_pylist()[0]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_short_words_are_no_keys_to_be_masked():
    reply = Reply("the price is none", "stop", "", "")
    assert safe(reply, "none") is reply and safe(reply, "") is reply
    assert safe(Reply(f"a {KEY}", error=KEY), KEY) == Reply("a ***", error="***")


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "completion_tokens": None},
        {"prompt_tokens": "a", "completion_tokens": -5},
        None,
    ],
)
def test_answers_count_whatever_their_usage_says(odd, tmp_path, usage):
    changed(lambda body, answer: answer | {"usage": usage})
    with odd.running() as url:
        run(tmp_path, url)
        first = len(odd.bodies)
        forget(tmp_path)
        run(tmp_path, url)
    assert first > 0 and len(odd.bodies) == first  # no answer was lost
    store = AnswerStore(tmp_path / "cache")
    assert all(row["input_tokens"] >= 0 and row["output_tokens"] >= 0 for row in store.rows())
    store.close()


def test_an_answer_that_cannot_be_kept_is_an_error(tmp_path):
    store, head = AnswerStore(tmp_path), CallHead("k", "m", "p", ("summary",), 1)
    with pytest.raises(DataError, match="answers.sqlite"):
        store.put(head, Reply("text", output_tokens=None))
    store.put(head, Reply("text"))
    store.put(head, Reply("another"))
    assert store.get("k").text == "text"
    store.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [(5, "something else than a chat completion"), ("x" * 300_000, "answered with 300,000 characters")],
)
def test_contents_of_another_kind_are_failures(odd, tmp_path, content, words):
    def change(body, answer):
        answer["choices"][0]["message"]["content"] = content
        return answer

    changed(change)
    with odd.running() as url, pytest.raises(Unfinished, match=words):
        run(tmp_path, url, {"breaker": 2})


def test_words_of_a_server_are_fit_for_a_terminal():
    assert without_key("no\x1b[31m \u202ered\x07\nline", KEY) == "no [31m red line"


def test_a_budget_below_a_single_call_says_what_that_needs():
    budget = Budget(LlmConfig(budget_tokens=100), None)
    with pytest.raises(
        Unfinished, match=r"less than what the next call may use \(1,500\): .* --budget-tokens"
    ):
        budget.reserve(1000, 500)
    budget = Budget(LlmConfig(budget=0.001), Prices(1.0, 2.0, "given"))
    with pytest.raises(Unfinished, match=r"budget of 0.001 US dollars is less .*0.002.* --budget;"):
        budget.reserve(1000, 500)


def test_a_budget_tells_what_is_under_way():
    budget = Budget(LlmConfig(budget_calls=2), None)
    budget.reserve(10, 10)
    budget.settle((10, 10), (10, 5))
    budget.reserve(10, 10)
    with pytest.raises(Unfinished, match=r"1 calls used by 1 calls, 1 more under way"):
        budget.reserve(10, 10)
