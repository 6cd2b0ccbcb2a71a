"""Files of calls and of their answers, a JSON object a line, as OpenAI's Batch API and `vllm run-batch` have
them alike."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.asking import Asker, Pending
from dlrrec_torchrec.extract.llm.calls import Call, Reply
from dlrrec_torchrec.extract.llm.questions import Questions
from dlrrec_torchrec.extract.llm.running import Told, in_a_loop, told_of
from dlrrec_torchrec.extract.llm.server import reply_of
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import write_named_file

URL = "/v1/chat/completions"
_LIMIT_NAME = "max_completion_tokens"
_MAY_PASS = (408, 409, 425, 429)  # refusals of a moment, among those of 4xx


def collected(
    store: AnswerStore, questions: Questions, entities: Iterable[EntityReviews]
) -> tuple[list[Told | None], dict[str, Call]]:
    """What the store has of each entity (None: not all that is needed), and the calls that are missing now.

    Answers to these may call for more: another attempt, or the summary of parts.
    """
    missing: dict[str, Call] = {}

    async def leave(call: Call) -> Reply:
        missing[call.key] = call
        raise Pending

    settings = questions.settings
    asker = Asker(store, leave, settings.attempts, settings.language)

    async def all_told() -> list[Told | None]:
        told: list[Told | None] = []
        for entity in entities:
            try:
                told.append(await told_of(asker, questions, entity))
            except Pending:
                told.append(None)
        return told

    return in_a_loop(all_told()), missing


def request_line(call: Call, structured: bool) -> str:
    """The line of one call; its key is the `custom_id`."""
    body = call.body(structured, _LIMIT_NAME)
    line = {"custom_id": call.key, "method": "POST", "url": URL, "body": body}
    return json.dumps(line, ensure_ascii=False) + "\n"


def write_requests(calls: Iterable[Call], structured: bool, file: Path) -> int:
    """Write the calls; returns how many. Raises DataError where that cannot be done."""
    lines = [request_line(call, structured) for call in calls]
    write_named_file(file, "".join(lines))
    return len(lines)


def read_replies(lines: Iterable[str], where: str, keys: Collection[str]) -> Iterator[tuple[str, Reply]]:
    """The replies to the calls with these keys, in lines of answers. Left out are answers to other calls, and
    what went wrong in a way that may pass.

    Raises DataError, naming the line after `where`, for what is no line of answers.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
            key, response, error = body["custom_id"], body.get("response") or {}, body.get("error")
            if not (isinstance(key, str) and isinstance(response, dict)):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(f"{where}, line {number}: is no answer to a call of a batch") from None
        if key in keys and (reply := _reply(response, error)) is not None:
            yield key, reply


def _reply(response: dict[str, Any], error: Any) -> Reply | None:
    status = response.get("status_code", 0)
    if not isinstance(status, int) or error or not 200 <= status < 500 or status in _MAY_PASS:
        return None
    if status >= 400:
        return Reply(error=f"Error code: {status} - {_message(response.get('body'))}")
    try:
        return reply_of(ChatCompletion.model_validate(response.get("body")))
    except (ValidationError, ValueError):
        return None


def _message(body: Any) -> str:
    told = body.get("error", body) if isinstance(body, dict) else body
    return " ".join(str(told.get("message", told) if isinstance(told, dict) else told).split())[:300]
