"""Vectors of a server's embedding model: real HTTP, the real client, a server that misbehaves by plan."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ExtractConfig, LlmConfig
from dlrrec_torchrec.extract import stage
from dlrrec_torchrec.extract.cache import embed_cached
from dlrrec_torchrec.extract.llm import embeddings
from dlrrec_torchrec.extract.llm.embeddings import ServerEncoder
from dlrrec_torchrec.store.errors import DataError, Unfinished

DIM = 6


def vector(text):
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return (np.random.default_rng(seed).normal(size=DIM) * 3).tolist()


def unit(text):
    found = np.array(vector(text), np.float32)
    return found / np.linalg.norm(found)


class Embedding:
    """`plan(number of the request, texts)` names what happens to it."""

    def __init__(self):
        self.texts, self.keys, self.lock = [], [], threading.Lock()
        self.plan = lambda number, texts: "answer"

    def respond(self, texts):
        with self.lock:
            number = len(self.texts)
            self.texts.append(texts)
        action = self.plan(number, texts)
        rows = [{"object": "embedding", "index": n, "embedding": vector(t)} for n, t in enumerate(texts)]
        if action.isdecimal():
            return int(action), {"error": {"message": "no", "code": "no"}}
        if action == "shuffled":
            rows = rows[::-1]
        elif action == "short":
            rows = rows[1:]
        elif action == "zeros":
            rows[0]["embedding"] = [0.0] * DIM
        elif action == "wide":
            rows = [row | {"embedding": [*row["embedding"], 1.0]} for row in rows]
        elif action == "ragged":
            rows[0]["embedding"] = [1.0]
        body = {
            "object": "list",
            "data": rows,
            "model": "m",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }
        return 200, {"hello": 1} if action == "other" else body


@pytest.fixture(scope="module")
def http():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.server_of.keys.append(self.headers.get("Authorization"))
            assert self.path == "/v1/embeddings" and body["encoding_format"] == "float"
            status, told = Handler.server_of.respond(body["input"])
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("retry-after-ms", "5")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(http):
    handler, url = http
    handler.server_of = told = Embedding()
    told.settings = LlmConfig(base_url=url, retries=3, timeout=5, concurrency=2)
    return told


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=30), st.integers(1, 9))
def test_vectors_are_the_servers_in_any_batches(server, texts, most):
    server.texts.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_TEXTS", most)
        encoder = ServerEncoder("small", server.settings)
        found = np.zeros((len(texts), DIM), np.float32)
        for places, vectors in encoder.encode_batches(texts):
            found[places] = vectors
    np.testing.assert_allclose(found, [unit(text) for text in texts], atol=1e-6)
    assert encoder.dim == DIM and all(len(sent) <= most for sent in server.texts)
    assert sorted(text for sent in server.texts for text in sent) == sorted(texts)


def test_a_server_that_is_busy_for_a_while_and_rows_in_another_order(server):
    server.plan = lambda number, texts: {0: "429", 1: "500", 2: "503"}.get(number, "shuffled")
    ((places, vectors),) = ServerEncoder("small", server.settings).encode_batches(["a b", "c", "d e f"])
    np.testing.assert_allclose(vectors, [unit(t) for t in ("a b", "c", "d e f")], atol=1e-6)


@pytest.mark.parametrize("action", ["short", "zeros", "ragged", "other"])
def test_answers_that_are_no_vectors_end_it(server, action, tmp_path):
    server.plan = lambda number, texts: action
    with pytest.raises(Unfinished, match=r"--encoder\) server:small: the server answered with"):
        list(ServerEncoder("small", server.settings).encode_batches(["a", "b"]))


def test_another_width_half_way_is_an_error(server, monkeypatch):
    monkeypatch.setattr(embeddings, "_TEXTS", 1)
    server.plan = lambda number, texts: "wide" if number >= 2 else "answer"
    with pytest.raises(DataError, match="vectors of 6 numbers, and then of 7"):
        list(ServerEncoder("small", server.settings).encode_batches(["a", "b", "c", "d"]))


def test_what_was_embedded_before_a_failure_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_TEXTS", 4)
    server.settings.retries = 0
    texts = [f"text {n}" for n in range(24)]
    server.plan = lambda number, texts: "500" if "text 13" in texts else "answer"
    with pytest.raises(Unfinished, match="what is embedded is kept"):
        embed_cached(texts, ServerEncoder("small", server.settings), tmp_path)
    paid = {text for sent in server.texts for text in sent if "text 13" not in sent} - {"a word"}
    assert len(paid) >= 12
    server.plan = lambda number, texts: "answer"
    server.texts.clear()
    vectors, computed = embed_cached(texts, ServerEncoder("small", server.settings), tmp_path)
    again = {text for sent in server.texts for text in sent} - {"a word"}
    assert not again & paid and computed == len(again) == 24 - len(paid)
    np.testing.assert_allclose(vectors, [unit(text) for text in texts], atol=2e-3)
    server.texts.clear()
    embed_cached(texts, ServerEncoder("small", server.settings), tmp_path)
    assert not server.texts  # not even for the width


def test_budget_and_rejected_texts(server, monkeypatch):
    monkeypatch.setattr(embeddings, "_TEXTS", 1)
    server.settings.budget_calls = 2
    with pytest.raises(Unfinished, match="budget of 2 calls"):
        list(ServerEncoder("small", server.settings).encode_batches(["a", "b", "c", "d"]))
    server.settings.budget_calls, server.settings.concurrency = None, 1
    server.plan = lambda number, texts: "400" if texts == ["c"] else "answer"
    with pytest.raises(DataError, match="the server rejects texts"):
        list(ServerEncoder("small", server.settings).encode_batches(["a", "b", "c", "d"]))


def test_texts_are_masked_and_the_key_is_sent_but_not_in_the_identity(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.settings.redact, server.settings.api_key_env = True, "MY_KEY"
    encoder = ServerEncoder("small", server.settings)
    list(encoder.encode_batches(["Write to me@example.com or see www.example.com/x"]))
    assert server.texts == [["Write to [e-mail] or see [link]"]]
    assert server.keys == ["Bearer sk-secret"] and "secret" not in encoder.identity
    server.settings.redact = False
    assert ServerEncoder("small", server.settings).identity != encoder.identity


def test_the_setting_names_it(server, tmp_path):
    found = stage._encoder(ExtractConfig(encoder="server:small"), server.settings, None, tmp_path)
    assert isinstance(found, ServerEncoder) and found.dim == DIM
    with pytest.raises(DataError, match="name the model too, as server:MODEL"):
        stage._encoder(ExtractConfig(encoder="server:"), server.settings, None, tmp_path)


def test_vectors_beside_a_failed_call_are_kept(server, tmp_path, monkeypatch):
    """Two calls at a time, of which the first one fails."""
    monkeypatch.setattr(embeddings, "_TEXTS", 2)
    server.settings.retries = 0
    encoder = ServerEncoder("small", server.settings)
    assert encoder.dim == DIM
    server.plan = lambda number, texts: "500" if "a" in texts else "answer"
    with pytest.raises(Unfinished):
        embed_cached(["a", "b", "c", "d"], encoder, tmp_path)
    server.plan = lambda number, texts: "answer"
    server.texts.clear()
    embed_cached(["a", "b", "c", "d"], encoder, tmp_path)
    assert server.texts == [["a", "b"]]
