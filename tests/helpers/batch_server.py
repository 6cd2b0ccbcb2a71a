"""A server with files and batches, of the OpenAI form: `outcome(n)` says how the n-th batch ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tests.helpers.model_server import ModelServer, _Handler, completion, honest, question

Outcome = Callable[[int], str]


class BatchServer(ModelServer):
    """Outcomes: "completed", "partial" (every third call has no answer), "expired" (after a half), "failed",
    "empty", "rejected" (the first call is refused for good). A batch ends at the `looks`-th look at it."""

    def __init__(self, outcome: Outcome = lambda n: "completed", looks: int = 2):
        super().__init__()
        self.outcome, self.looks = outcome, looks
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict] = {}
        self.handler = _BatchHandler


class _BatchHandler(_Handler):
    model: BatchServer

    def do_POST(self) -> None:
        if self.path.endswith("/completions"):
            super().do_POST()
            return
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        model = self.model
        model.headers.append(self.headers.get("Authorization", ""))
        if self.path.endswith("/files"):
            boundary = re.search("boundary=(.*)", self.headers["Content-Type"])[1].strip('"')
            part = next(p for p in raw.split(f"--{boundary}".encode()) if b"filename=" in p)
            name = f"file-{len(model.files)}"
            model.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n").decode()
            self._send(200, _file(name))
            return
        body = json.loads(raw)
        if self.path.endswith("/embeddings"):
            rows = [
                {"object": "embedding", "index": n, "embedding": [1, n]} for n in range(len(body["input"]))
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self._send(200, {"object": "list", "data": rows, "model": body["model"], "usage": usage})
            return
        name = f"batch-{len(model.batches)}"
        model.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": "24h",
            "created_at": 1,
            "input_file_id": body["input_file_id"],
            "metadata": body["metadata"],
            "status": "in_progress",
            "looks": 0,
        }
        self._send(200, model.batches[name])

    def do_GET(self) -> None:
        model, path = self.model, self.path.split("?")[0]
        if path.endswith("/batches"):
            self._send(200, {"object": "list", "data": list(model.batches.values()), "has_more": False})
        elif "/batches/" in path:
            batch = model.batches[path.split("/")[-1]]
            batch["looks"] += 1
            if batch["looks"] >= model.looks and batch["status"] == "in_progress":
                self._end(batch)
            self._send(200, batch)
        else:
            text = model.files[path.split("/")[-2]]
            self._raw(200, text.encode(), {"Content-Type": "application/jsonl"})

    def _end(self, batch: dict) -> None:
        model = self.model
        outcome = model.outcome(list(model.batches).index(batch["id"]))
        requests = [json.loads(line) for line in model.files[batch["input_file_id"]].splitlines()]
        batch["status"] = outcome if outcome in ("expired", "failed") else "completed"
        if outcome == "failed":
            batch["errors"] = {"object": "list", "data": [{"message": "the file is no good", "line": 1}]}
            return
        kept = {
            "expired": requests[: (len(requests) + 1) // 2],
            "partial": [r for n, r in enumerate(requests) if n % 3],
            "rejected": requests[1:],
            "empty": [],
        }.get(outcome, requests)
        lost = [request for request in requests if request not in kept]
        status = 400 if outcome == "rejected" else 500
        error = {"status_code": status, "body": {"error": {"message": "context too long"}}}
        errors = [{"id": "e", "custom_id": request["custom_id"], "response": error} for request in lost]
        for name, lines in (("output_file_id", map(answer_line, kept)), ("error_file_id", errors)):
            batch[name] = f"{batch['id']}-{name}"
            model.files[batch[name]] = "".join(json.dumps(line) + "\n" for line in lines)
        for request in kept:
            model.paid[request["custom_id"]] += 1


def answer_line(request: dict) -> dict:
    """What a batch, or `vllm run-batch`, answers to a line of calls."""
    text = json.dumps(honest(*question(request["body"])))
    body = completion({"role": "assistant", "content": text})
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}


def _file(name: str) -> dict:
    return {
        "id": name,
        "object": "file",
        "bytes": 1,
        "created_at": 1,
        "filename": "calls.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
