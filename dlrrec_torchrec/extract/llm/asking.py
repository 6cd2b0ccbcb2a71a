"""Asking questions: answers from the store or from a server, again while they cannot be used."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from dlrrec_torchrec.extract.llm.answer_forms import Unusable, read_answer
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.calls import Call, Reply

Send = Callable[[Call], Awaitable[Reply]]


class Unanswered(Exception):
    """A call that brought no answer this time; the message is the reason."""


class Pending(Exception):
    """A call that is left to a batch."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """values: the fields of the answer, None where there is none, which `reason` explains. keys: of all calls
    that were made for it, the one with the answer last."""

    values: dict[str, Any] | None
    keys: tuple[str, ...]
    reason: str = ""


class Asker:
    """Answers questions by way of the store; equal calls under way are made once.

    Args:
        send: makes a call that the store does not know.
        attempts: of a question, while its answer cannot be used.
        language: of the summaries.
    """

    def __init__(self, store: AnswerStore, send: Send, attempts: int, language: str):
        self.store, self.attempts, self.language = store, attempts, language
        self._send = send
        self._under_way: dict[str, asyncio.Future[Reply]] = {}

    async def ask(self, call: Call) -> Answer:
        """The answer to a question, whose first attempt is `call`.

        Raises Pending where the calls are collected, and DataError where asking has to end.
        """
        keys: list[str] = []
        trying = AsyncRetrying(
            retry=retry_if_exception_type(Unusable), stop=stop_after_attempt(self.attempts), reraise=True
        )
        try:
            async for attempt in trying:
                with attempt:
                    keys.append(call.key)
                    reply = await self._reply(call)
                    try:
                        values = self._values(reply, call)
                    except Unusable as error:
                        call = call.again(reply, str(error))
                        raise
                    return Answer(values, tuple(keys))
        except (Unusable, Unanswered) as error:
            return Answer(None, tuple(keys), str(error))
        raise AssertionError("tenacity ends by an answer or an error")

    def _values(self, reply: Reply, call: Call) -> dict[str, Any]:
        if reply.error:
            raise Unanswered(f"rejected by the server: {reply.error}")
        if reply.refusal or reply.finish == "content_filter":
            raise Unusable("refused")
        if reply.finish == "length":
            raise Unusable("cut at the limit of tokens")
        return read_answer(reply.text, call.fields, self.language)

    async def _reply(self, call: Call) -> Reply:
        if (known := self.store.get(call.key)) is not None:
            return known
        if (same := self._under_way.get(call.key)) is not None:
            return await asyncio.shield(same)
        self._under_way[call.key] = future = asyncio.ensure_future(self._send_and_keep(call))
        try:
            return await future
        finally:
            del self._under_way[call.key]

    async def _send_and_keep(self, call: Call) -> Reply:
        reply = await self._send(call)
        self.store.put(call.head, reply)
        return reply
