"""A server of the OpenAI form on this machine, which answers by a rule and misbehaves by a plan."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RETRY_AFTER = 0.8  # seconds; the client's own first pause is at most 0.5
KINDS = {"pizza": "Pizza", "sushi": "Sushi", "dosa": "South Indian", "beer": "Pub"}
Plan = Callable[[dict, int], str]


def question(body: dict) -> tuple[list[str], dict]:
    """The fields that a request asks for, and the data of its first user message."""
    system, user = (message["content"] for message in body["messages"][:2])
    return re.findall(r'^- "(\w+)":', system, re.MULTILINE), json.loads(user)


def honest(fields: list[str], data: dict) -> dict:
    """The right answer: what the words of the reviews say, by a rule that tests know."""
    if "parts" in data:
        return {"summary": "All of the parts: " + " ".join(part["summary"] for part in data["parts"])}
    texts = [*([data["description"]] if "description" in data else []), *data["reviews"]]
    words = " ".join(texts).lower()
    kinds = [kind for word, kind in KINDS.items() if word in words]
    price = next((tag for tag in ("overpriced", "cheap", "fair") if tag in words), "none")
    every = {
        "summary": f"There are {len(texts)} texts and the first of them is this: {texts[0] if texts else ''}",
        "price_tag": price,
        "categories": kinds,
        "likes": kinds,
        "avoids": [],
    }
    return {field: every[field] for field in fields}


class ModelServer:
    """`plan(body, n)` names what happens to the n-th request of equal bodies (see `_Handler`)."""

    def __init__(self, plan: Plan = lambda body, n: "answer"):
        self.plan, self.hang_seconds = plan, 1.0
        self.seen: Counter[str] = Counter()  # requests by body
        self.paid: Counter[str] = Counter()  # answers sent by body
        self.did: Counter[str] = Counter()  # what happened
        self.bodies: list[dict] = []
        self.headers: list[str] = []
        self.times: dict[str, list[float]] = {}  # of the requests, by body
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.handler = _Handler

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """The server's base_url while it runs."""
        handler = type("Handler", (self.handler,), {"model": self})
        http = _Quiet(("127.0.0.1", 0), handler)
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        finally:
            http.shutdown()
            http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that is gone is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    model: ModelServer

    def do_POST(self) -> None:
        model = self.model
        raw = self.rfile.read(length := int(self.headers["Content-Length"]))
        if len(raw) < length:  # the client was killed
            self.close_connection = True
            return
        body, key = json.loads(raw), hashlib.sha1(raw).hexdigest()
        with model.lock:
            model.seen[key] += 1
            model.times.setdefault(key, []).append(time.monotonic())
            model.under_way += 1
            model.most_under_way = max(model.most_under_way, model.under_way)
            action = model.plan(body, model.seen[key])
            model.did[action] += 1
            model.bodies.append(body)
            model.headers.append(self.headers.get("Authorization", ""))
        try:
            getattr(self, "_" + action)(body, key)
        finally:
            with model.lock:
                model.under_way -= 1

    def _answer(self, body: dict, key: str) -> None:
        self._say(key, json.dumps(honest(*question(body))))

    def _slow(self, body: dict, key: str) -> None:
        time.sleep(0.05)
        self._answer(body, key)

    def _prose(self, body: dict, key: str) -> None:
        text = json.dumps(honest(*question(body)), indent=1)
        self._say(key, f"Sure! I found this:\n```json\n{text[:-1].rstrip()},\n}}\n```\nAnything else?")

    def _truncated(self, body: dict, key: str) -> None:
        self._say(key, json.dumps(honest(*question(body)))[:-9])

    def _length(self, body: dict, key: str) -> None:
        self._say(key, json.dumps(honest(*question(body)))[:20], finish="length")

    def _foreign(self, body: dict, key: str) -> None:
        answer = honest(*question(body)) | {
            "summary": "La comida es muy buena pero el servicio tarda demasiado y no hay sitio para sentarse."
        }
        self._say(key, json.dumps(answer))

    def _refuse(self, body: dict, key: str) -> None:
        self._say(key, None, refusal="I cannot help with that.")

    def _sorry(self, body: dict, key: str) -> None:
        self._say(key, "I'm sorry, but I can't help with that.")

    def _obey(self, body: dict, key: str) -> None:
        """As a model that does what a review tells it."""
        answer = honest(*question(body))
        told = {"price_tag": "FREE FOR ALL", "categories": ["<script>alert(1)</script>", "Hacked Cuisine"]}
        self._say(key, json.dumps(answer | {k: v for k, v in told.items() if k in answer}))

    def _hang(self, body: dict, key: str) -> None:
        time.sleep(self.model.hang_seconds)
        self.close_connection = True

    def _busy(self, body: dict, key: str) -> None:
        self._send(429, {"error": {"message": "too many requests", "code": "rate_limit_exceeded"}})

    def _busy_until(self, body: dict, key: str) -> None:
        headers = {"Retry-After": str(RETRY_AFTER)}
        self._send(429, {"error": {"message": "too many requests", "code": "rate_limit_exceeded"}}, headers)

    def _busy_long(self, body: dict, key: str) -> None:
        self._send(429, {"error": {"message": "too many requests"}}, {"Retry-After": "300"})

    def _poor(self, body: dict, key: str) -> None:
        self._send(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})

    def _broken(self, body: dict, key: str) -> None:
        self._send(500, {"error": {"message": "internal error"}})

    def _long(self, body: dict, key: str) -> None:
        self._send(400, {"error": {"message": "maximum context length exceeded", "code": "context_length"}})

    def _no_schema(self, body: dict, key: str) -> None:
        if "response_format" in body:
            self._send(400, {"error": {"message": "response_format is not supported"}})
        else:
            self._answer(body, key)

    def _schema_in_object(self, body: dict, key: str) -> None:
        """As llama-cpp-python's server, which fails by 500 where it finds a schema elsewhere."""
        asked = body.get("response_format", {})
        if asked.get("type") == "json_object" and asked["schema"]["required"]:
            self._answer(body, key)
        else:
            self._send(500, {"error": {"message": "[{'loc': ('body', 'response_format', 'type')}]"}})

    def _no_effort(self, body: dict, key: str) -> None:
        if "reasoning_effort" in body:
            self._send(400, {"error": {"message": "Unrecognized request argument: reasoning_effort"}})
        else:
            self._answer(body, key)

    def _no_key(self, body: dict, key: str) -> None:
        self._send(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})

    def _no_model(self, body: dict, key: str) -> None:
        self._send(404, {"error": {"message": "no such model"}})

    def _page(self, body: dict, key: str) -> None:
        self._raw(200, b"<html>welcome</html>", {"Content-Type": "text/html"})

    def _say(self, key: str, text: str | None, finish: str = "stop", refusal: str | None = None) -> None:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        with self.model.lock:
            self.model.paid[key] += 1
        self._send(200, completion(message, finish))

    def _send(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _raw(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def completion(message: dict, finish: str = "stop") -> dict:
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
