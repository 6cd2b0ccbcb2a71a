"""All questions about many entities at once: an event loop in a thread of its own, answers in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

from dlrrec_torchrec.extract.llm.asking import Answer, Asker, Pending
from dlrrec_torchrec.extract.llm.prompt_sets import Prompt
from dlrrec_torchrec.extract.llm.questions import History, Questions, joined
from dlrrec_torchrec.extract.llm.server import Server
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.store.errors import DataError

_AHEAD = 8  # entities of a block for each call at a time; two blocks are under way


@dataclasses.dataclass(frozen=True)
class PromptAnswer:
    """values: the fields of one prompt, {} where there is no answer, for `reason`."""

    prompt: Prompt
    values: dict[str, Any]
    keys: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Told:
    """All that was answered of one version of an entity; without a history there is nothing to ask about."""

    history: History | None
    answers: tuple[PromptAnswer, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        return {field: value for answer in self.answers for field, value in answer.values.items()}


async def told_of(asker: Asker, questions: Questions, entity: EntityReviews) -> Told:
    """Ask all prompts of the entity's side. Raises what `Asker.ask` does; Pending once all are collected."""
    history = questions.history(entity)
    if history is None:
        return Told(None)
    prompts = questions.of(entity.side)
    answers = await _all(*(_answer(asker, questions, prompt, history) for prompt in prompts))
    return Told(history, tuple(answers))


async def _answer(asker: Asker, questions: Questions, prompt: Prompt, history: History) -> PromptAnswer:
    parts: list[Answer] = await _all(*(asker.ask(call) for call in questions.calls(prompt, history)))
    values = [part.values for part in parts if part.values is not None]
    keys = [key for part in parts for key in part.keys]
    reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
    if len(parts) == 1 or not values:
        return PromptAnswer(prompt, values[0] if values else {}, tuple(keys), "; ".join(reasons))
    told = joined(values, prompt.fields)
    if "summary" in prompt.fields:
        whole = await asker.ask(questions.join_call(prompt, history, [part.values for part in parts]))
        keys += whole.keys
        told |= whole.values or {}
        reasons += [f"summary of parts: {whole.reason}"] if whole.reason else []
    return PromptAnswer(prompt, told, tuple(keys), "; ".join(reasons))


async def _all(*asked: Coroutine) -> list[Any]:
    """All results. All are awaited before the first exception is raised, Pending last."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Pending))
    return results


def answer_all(
    asker: Asker, server: Server, questions: Questions, entities: Iterable[EntityReviews]
) -> Iterator[tuple[EntityReviews, Told]]:
    """Each of `entities` with what was told of it, in order, some of them ahead.

    Raises DataError (and Unfinished) after the calls under way have ended and are kept; an interruption
    cancels them.
    """
    entities = iter(entities)
    size = _AHEAD * questions.settings.concurrency
    with _Loop() as loop:
        # Blocks, because every exchange between two threads takes milliseconds of Python's lock.
        under_way: deque[tuple[list[EntityReviews], Future[list[Told]]]] = deque()
        try:
            while True:
                if block := list(itertools.islice(entities, size)):
                    asked = [told_of(asker, questions, entity) for entity in block]
                    under_way.append((block, loop.submit(_all(*asked))))
                if len(under_way) > 1 or (under_way and not block):
                    first, future = under_way.popleft()
                    yield from zip(first, future.result(), strict=True)
                elif not block:
                    break
        except DataError:
            wait([future for _, future in under_way])
            raise
        finally:
            for _, future in under_way:
                future.cancel()
            loop.finish(server.close())


def in_a_loop(work: Coroutine) -> Any:
    """The result of a coroutine, in a loop of its own, whether or not this thread has one already."""
    with _Loop() as loop:
        return loop.submit(work).result()


class _Loop:
    """An event loop in a thread: it works on while this thread waits for a result, or for other things."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="language model", daemon=True)
        self._thread.start()
        return self

    def submit(self, coroutine: Coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def finish(self, last: Coroutine) -> None:
        """Let cancelled work end, then do the last thing."""
        with contextlib.suppress(CancelledError):
            self.submit(self._end(last)).result()

    async def _end(self, last: Coroutine) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await last

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
