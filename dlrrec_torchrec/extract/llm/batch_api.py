"""Asking by the server's Batch API: submitted, looked at again and again, collected. A stop at any moment
loses nothing.

A batch is remembered beside the answers as soon as the server has it. One that a killed process submitted,
but did not get to remember, is found at the server by its mark: the hash of its calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import openai

from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.batch_files import URL, collected, read_replies, request_line
from dlrrec_torchrec.extract.llm.calls import Call, CallHead, safe
from dlrrec_torchrec.extract.llm.questions import Questions
from dlrrec_torchrec.extract.llm.running import Told
from dlrrec_torchrec.extract.llm.server import refused_key, server_key, without_key
from dlrrec_torchrec.extract.llm.spending import Budget
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.store.errors import DataError, Unfinished
from dlrrec_torchrec.store.manifest import digest
from dlrrec_torchrec.store.progress import Bar

_MOST_CALLS, _MOST_BYTES = 40_000, 150 * 2**20  # of a file; OpenAI takes 50,000 and 200 MB
_OPEN, _DONE = "open", "collected"
_ENDED = ("completed", "failed", "expired", "cancelled")
_MARK = "dlrrec_calls"
_LISTED = 100  # batches at the server among which a forgotten one is looked for


def answer_by_batches(
    settings: LlmConfig,
    budget: Budget,
    store: AnswerStore,
    questions: Questions,
    entities: Iterable[EntityReviews],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[EntityReviews, Told]]:
    """Each of `entities` with what was told of it, after as many batches as that takes.

    Raises Unfinished where a batch brings nothing or the budget is spent, DataError where settings are wrong.
    """
    entities = list(entities)
    told, missing = collected(store, questions, entities)
    if missing:
        batches = _Batches(settings, budget, store, questions, sleep)
        while missing:
            batches.work_on(missing)
            told, missing = collected(store, questions, entities)
    yield from zip(entities, told, strict=True)


class _Batches:
    def __init__(
        self,
        settings: LlmConfig,
        budget: Budget,
        store: AnswerStore,
        questions: Questions,
        sleep: Callable[[float], None],
    ):
        self._settings, self._budget, self._store = settings, budget, store
        self._questions, self._sleep = questions, sleep
        self._key = server_key(settings)
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.retries,
        )

    def work_on(self, missing: dict[str, Call]) -> None:
        """Collect the batches under way; without any, submit one of missing calls and collect that."""
        try:
            under_way = self._store.batches(_OPEN) or self._submit(missing)
            for batch, calls in under_way.items():
                self._collect(batch, calls)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise refused_key(self._settings, without_key(str(error), self._key)) from None
        except openai.OpenAIError as error:
            raise Unfinished(
                f"llm.batch (--batch): {self._settings.base_url}: {without_key(str(error), self._key)}; "
                "batches under way go on at the server, and the same command collects them"
            ) from None

    def _submit(self, missing: dict[str, Call]) -> dict[str, dict[str, CallHead]]:
        chosen = self._affordable(missing)
        lines, size = [], 0
        for call in chosen:
            line = request_line(call, self._settings.structured != "off").encode()
            if len(lines) == _MOST_CALLS or size + len(line) > _MOST_BYTES:
                break
            lines.append(line)
            size += len(line)
        calls = {call.key: call.head for call in chosen[: len(lines)]}
        mark = digest(list(calls))
        batch = next((b.id for b in self._recent() if (b.metadata or {}).get(_MARK) == mark), None)
        if batch is None:
            file = self._client.files.create(file=("calls.jsonl", b"".join(lines)), purpose="batch")
            made = self._client.batches.create(
                input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={_MARK: mark}
            )
            batch = made.id
        self._store.put_batch(batch, calls.values(), _OPEN)
        return {batch: calls}

    def _recent(self) -> Iterator[openai.types.Batch]:
        """Batches at the server whose answers are still to come, or to be collected."""
        collected_before = self._store.batches(_DONE)
        for batch in self._client.batches.list(limit=_LISTED).data:
            if batch.status not in ("failed", "expired", "cancelling", "cancelled"):
                if batch.id not in collected_before:
                    yield batch

    def _affordable(self, missing: dict[str, Call]) -> list[Call]:
        """As many calls as the budget allows. Raises Unfinished where that is none."""
        reserved, chosen = [], []
        try:
            for call in missing.values():
                inputs = sum(self._questions.counter.count(text) for _, text in call.messages)
                self._budget.reserve(inputs, call.output_tokens)
                reserved.append((inputs, call.output_tokens))
                chosen.append(call)
        except Unfinished:
            if not chosen:
                raise
        finally:
            for amount in reserved:
                self._budget.settle(amount, None)
        return chosen

    def _collect(self, batch: str, calls: dict[str, CallHead]) -> None:
        """Wait for the end of a batch and keep its answers."""
        state = self._wait(batch)
        answers = 0
        for file in filter(None, (state.output_file_id, state.error_file_id)):
            lines = self._client.files.content(file).text.split("\n")
            for key, reply in read_replies(lines, f"{self._settings.base_url}: file {file}", calls):
                answers += 1
                if self._store.get(key) is None:
                    self._store.put(calls[key], safe(reply, self._key))
                    self._budget.use(reply.input_tokens, reply.output_tokens)
        self._store.put_batch(batch, [], _DONE)
        if state.status == "failed" or not answers:
            errors = [error.message or "" for error in (state.errors.data or [] if state.errors else [])]
            told = without_key("; ".join(errors[:3]), self._key) or "no error was told"
            kind = DataError if state.status == "failed" else Unfinished
            raise kind(
                f"llm.batch (--batch): batch {batch} at {self._settings.base_url} ended as '{state.status}' "
                f"without an answer ({told}); the same command submits what is left once more"
            )

    def _wait(self, batch: str) -> openai.types.Batch:
        with Bar() as bar:
            task = bar.add_task(f"batch {batch}", total=None)
            while True:
                state = self._client.batches.retrieve(batch)
                if state.status in _ENDED:
                    return state
                if counts := state.request_counts:
                    bar.update(task, total=counts.total or None, completed=counts.completed + counts.failed)
                self._sleep(self._settings.batch_poll)
