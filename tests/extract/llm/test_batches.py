"""Batches: submitted, collected, gone on with; and the same lines in files."""

from __future__ import annotations

import json

import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.extract.llm import batch_api
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.batch_files import read_replies
from dlrrec_torchrec.store.errors import DataError, Unfinished
from tests.extract.llm.test_asking import ROWS, forget, reasons, run
from tests.extract.test_extract import tables, write_split
from tests.helpers.batch_server import BatchServer, answer_line
from tests.helpers.model_server import ModelServer, question

BATCH = {"batch": True, "batch_poll": 0.01}


def right(root):
    content, _ = tables(root)
    assert content["items", "i", -1]["price_tag"] == "overpriced"
    assert content["users", "u", -1]["likes"] == ["Pizza", "Sushi"]
    assert content["users", "v", -1]["summary"].startswith("There are 1 texts")


@pytest.mark.parametrize("outcome", ["completed", "partial", "expired"])
def test_what_a_batch_does_not_answer_goes_into_the_next(tmp_path, outcome):
    server = BatchServer(lambda n: outcome if n == 0 else "completed")
    with server.running() as url:
        facts = run(tmp_path, url, BATCH).facts["llm"]
    right(tmp_path)
    assert len(server.batches) == (2 if outcome == "completed" else 3)  # users, items, and what was left
    assert set(server.paid.values()) == {1} and facts["calls"] == len(server.paid)
    line = json.loads(server.files["file-0"].splitlines()[0])
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert line["body"]["response_format"]["json_schema"]["strict"] is True
    with server.running() as url:
        forget(tmp_path)
        run(tmp_path, url, BATCH)
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("failed", "batch-0 at http.* ended as 'failed' .*the file is no good"),
        ("empty", "ended as 'completed' without an answer"),
    ],
)
def test_a_batch_that_brings_nothing_ends_the_run(tmp_path, outcome, words):
    server = BatchServer(lambda n: outcome if n == 0 else "completed")
    with server.running() as url:
        with pytest.raises(DataError, match=words):
            run(tmp_path, url, BATCH)
        assert not (tmp_path / "content").exists()
        run(tmp_path, url, BATCH)  # what is left is submitted once more
    right(tmp_path)


def test_a_call_that_is_refused_for_good_is_listed(tmp_path):
    server = BatchServer(lambda n: "rejected" if n == 0 else "completed")
    with server.running() as url:
        run(tmp_path, url, BATCH | {"max_failed": 1.0})
    assert "rejected by the server: Error code: 400 - context too long" in reasons(tmp_path).values()
    assert len(server.batches) == 2


class Killed(BaseException):
    pass


def test_a_batch_under_way_is_found_again(tmp_path, monkeypatch):
    """Stopped while it waits, and stopped between the server's answer and the note of it."""
    server = BatchServer(looks=3)

    def killed(*_):
        raise Killed

    with server.running() as url:
        with monkeypatch.context() as patch:
            patch.setattr(AnswerStore, "put_batch", killed)
            with pytest.raises(Killed):
                run(tmp_path, url, BATCH)
        with monkeypatch.context() as patch:
            patch.setattr(batch_api._Batches, "_wait", killed)
            with pytest.raises(Killed):
                run(tmp_path, url, BATCH)
        assert len(server.batches) == 1
        run(tmp_path, url, BATCH)
    right(tmp_path)
    assert len(server.batches) == 2 and set(server.paid.values()) == {1}


def test_answers_of_a_batch_are_kept_when_the_settings_have_changed(tmp_path, monkeypatch):
    server = BatchServer()

    def killed(*_):
        raise Killed

    with server.running() as url:
        with monkeypatch.context() as patch:
            patch.setattr(batch_api._Batches, "_wait", killed)
            with pytest.raises(Killed):
                run(tmp_path, url, BATCH)
        run(tmp_path, url, BATCH | {"temperature": 0.5})
        with AnswerStore(tmp_path / "cache") as store:
            assert sum(1 for _ in store.rows()) == len(server.paid)


def test_a_budget_makes_batches_smaller(tmp_path):
    server = BatchServer()
    with server.running() as url:
        sizes = []
        for _ in range(6):
            try:
                run(tmp_path, url, BATCH | {"budget_calls": 2})
                break
            except Unfinished as error:
                assert "the budget of 2 calls" in str(error)
        sizes = [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()]
    right(tmp_path)
    assert max(sizes) == 2 and sum(sizes) == len(server.paid)


def test_no_batches_at_the_server_is_said(tmp_path):
    server = ModelServer()
    with server.running() as url, pytest.raises(Unfinished, match=r"llm.batch \(--batch\): http"):
        run(tmp_path, url, BATCH | {"retries": 0})


def test_a_file_for_vllm_and_back(tmp_path, capsys):
    """The lines that `vllm run-batch` reads, and its answers."""
    write_split(ROWS, tmp_path / "split")
    (tmp_path / "config.yaml").write_text(
        "llm: {base_url: 'http://127.0.0.1:9/v1', input_tokens: 200}\nextract: {folds: 2, provider: llm}\n"
    )
    where = ["--run-dir", str(tmp_path)]
    calls, answers = tmp_path / "calls.jsonl", tmp_path / "answers.jsonl"
    assert cli.main(["extract", "write-batch", str(calls), *where]) == 0
    requests = [json.loads(line) for line in calls.read_text().splitlines()]
    assert capsys.readouterr().out == f"{len(requests)} calls: {calls}\n" and len(requests) > 4
    assert {tuple(request) for request in requests} == {("custom_id", "method", "url", "body")}
    assert all(question(request["body"])[0][0] == "summary" for request in requests)
    some = [answer_line(request) for request in requests[1:]]
    some += [{"custom_id": "unknown", "response": {"status_code": 200, "body": {}}}]
    answers.write_text("".join(json.dumps(line) + "\n" for line in some))
    assert cli.main(["extract", "read-batch", str(answers), *where]) == 0
    assert (
        f"{len(requests) - 1} of {len(some)} answers kept; 1 of these calls have none"
        in capsys.readouterr().out
    )
    assert cli.main(["extract", "write-batch", str(calls), *where]) == 0
    assert calls.read_text().count("\n") == 1
    answers.write_text(json.dumps(answer_line(requests[0])) + "\n")
    assert cli.main(["extract", "read-batch", str(answers), *where]) == 0
    run(tmp_path, "http://127.0.0.1:9/v1", {"input_tokens": 200})  # there is no server: all is known
    right(tmp_path)
    answers.write_text("{}\n")
    assert cli.main(["extract", "read-batch", str(answers), *where]) == 2
    assert "line 1: is no answer to a call of a batch" in capsys.readouterr().err
    odd = (
        json.dumps(answer_line(requests[0]), ensure_ascii=False)[:-1]
        + ', "note": "one\u2028two\u0085three"}\n'
    )
    answers.write_text(odd, encoding="utf-8")
    assert cli.main(["extract", "read-batch", str(answers), *where]) == 0


@pytest.mark.parametrize(
    "line", ['{"custom_id": [1]}', '{"custom_id": "a", "response": "text"}', "[" * 100_000, "[]", "7"]
)
def test_odd_lines_are_no_answers(line):
    with pytest.raises(DataError, match="here, line 2: is no answer"):
        list(read_replies(["", line], "here", {"a"}))


@pytest.mark.parametrize("status", ["200", None, [200]])
def test_a_status_that_is_no_number_is_no_answer(status):
    line = json.dumps({"custom_id": "a", "response": {"status_code": status}})
    assert list(read_replies([line], "here", {"a"})) == []
