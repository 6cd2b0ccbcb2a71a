"""Long histories: what is read, in which parts, and how the parts' answers become one."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec.config import LlmConfig
from dlrrec_torchrec.extract.llm.long_histories import reading
from dlrrec_torchrec.extract.llm.questions import Questions, joined
from dlrrec_torchrec.extract.llm.tokens import TokenCounter
from dlrrec_torchrec.extract.providers.base import NO_TIME, EntityReviews
from dlrrec_torchrec.extract.training_reviews import bare_corpus
from tests.extract.llm.test_asking import run
from tests.extract.test_extract import tables
from tests.helpers.model_server import ModelServer, question


@given(st.lists(st.integers(0, 90), max_size=40), st.integers(10, 100), st.integers(1, 5))
def test_parts_hold_the_newest_in_order(tokens, budget, most):
    read = reading(tokens, budget, most)
    flat = [position for part in read.parts for position in part]
    assert flat == list(range(read.left_out, len(tokens)))
    assert len(read.parts) <= most
    sizes = [sum(min(tokens[i], budget) for i in part) for part in read.parts]
    assert all(size <= budget for size in sizes)
    kept = sum(min(tokens[i], budget) for i in flat)
    assert sum(tokens) - kept == read.cut_tokens
    if read.left_out:  # no part had room for one more
        assert sizes[0] + min(tokens[read.left_out - 1], budget) > budget


def entity(texts, times=None, side="user"):
    times = None if times is None else np.asarray(times)
    return EntityReviews("x", side, -1, np.arange(len(texts)), bare_corpus(texts), times)


def history(texts, times=None, side="user", **settings):
    questions = Questions(LlmConfig(**settings), 5, texts)
    return questions.history(entity(texts, times, side))


def test_reviews_are_in_order_of_time():
    texts = ["third", "first", "unknown", "second"]
    assert history(texts, [30, 10, NO_TIME, 20]).texts == ("unknown", "first", "second", "third")
    assert history(texts).texts == tuple(texts)
    assert history(["...", None, ""]) is None


def test_a_description_stands_in_every_part():
    texts = [f"Review number {n} " + "word " * 30 for n in range(60)] + ["My own words. " * 400]
    read = history(texts, side="item", input_tokens=400, max_parts=3)
    counter = TokenCounter("mine", "http://x/v1")
    assert counter.count(read.description) <= 100 and len(read.read.parts) == 3
    assert read.read.left_out > 0 and read.read.cut_tokens > 0
    questions = Questions(LlmConfig(input_tokens=400, max_parts=3), 5, texts)
    for call in questions.calls(questions.of("item")[0], read):
        assert counter.count(call.messages[1][1]) < 400 * 1.1


def test_parts_are_joined_by_rule():
    parts = [
        {"price_tag": "cheap", "categories": ["Pizza", "Bar"], "likes": []},
        {"price_tag": "fair", "categories": ["bar", "Thai"], "likes": ["Tea"]},
        {"price_tag": "none", "categories": [], "likes": ["tea", "Rice"]},
    ]
    assert joined(parts, ("price_tag", "categories", "likes")) == {
        "price_tag": "fair",  # as often as cheap, and newer
        "categories": ["bar", "Pizza", "Thai"],
        "likes": ["tea", "Rice"],
    }
    assert joined(parts[2:], ("summary", "price_tag")) == {"price_tag": "none"}


def test_a_long_history_is_asked_in_parts_and_joined(tmp_path):
    texts = [f"The pizza of visit {n} was cheap " + "and tasty " * 40 + "." for n in range(30)]
    rows = [("u", f"i{n}", text, None) for n, text in enumerate(texts)]
    server = ModelServer()
    with server.running() as url:
        manifest = run(tmp_path, url, {"input_tokens": 600, "max_parts": 4}, rows=rows)
    row = next(
        row
        for row in pq.read_table(tmp_path / "content/provenance").to_pylist()
        if (row["side"], row["fold"]) == ("user", -1)
    )
    assert row["reviews"] == 30 and row["parts"] == 4 and row["left_out"] > 0
    assert len(row["calls"]) == 5 and manifest.facts["llm"]["reviews_left_out"] >= row["left_out"]
    summary = tables(tmp_path)[0]["users", "u", -1]["summary"]
    assert summary.startswith("All of the parts: There are")
    joins = [question(body) for body in server.bodies if "parts" in question(body)[1]]
    assert joins and all(fields == ["summary"] for fields, _ in joins)
    most = max((data["parts"] for _, data in joins), key=len)
    assert [part["texts"] for part in most] == [5] * 4  # 120 tokens each


def test_tokens_are_estimated_without_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    counter = TokenCounter("gpt-6-luna", LlmConfig().base_url)
    assert counter.name == "estimate: 4 bytes a token"
    assert (counter.count("12345"), counter.count(""), counter.cut("123456789", 2)) == (2, 0, "12345678")
    assert counter.cut("\U0001f60b" * 3, 1) == "\U0001f60b"
