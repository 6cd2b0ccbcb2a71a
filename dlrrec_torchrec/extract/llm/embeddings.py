"""Sentence vectors of an embedding model behind any server of the OpenAI form."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai

from dlrrec_torchrec.config import LlmConfig
from dlrrec_torchrec.extract.llm.asking import Unanswered
from dlrrec_torchrec.extract.llm.calls import Reply
from dlrrec_torchrec.extract.llm.masking import masked
from dlrrec_torchrec.extract.llm.server import Server
from dlrrec_torchrec.extract.llm.spending import Budget, known_prices
from dlrrec_torchrec.extract.llm.tokens import TokenCounter
from dlrrec_torchrec.store.errors import DataError, Unfinished

_TEXTS, _TOKENS = 256, 20_000  # of a call, at most
_TEXT_TOKENS = 8_000  # what models of this kind take of a text


@dataclasses.dataclass(frozen=True)
class Embedded(Reply):
    """vectors: f32 [n, V], of unit length."""

    vectors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EmbeddingCall:
    """One request about some texts, in the form of `llm.calls.Call`."""

    model: str
    texts: tuple[str, ...]
    output_tokens: int = 0

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """What counts as input."""
        return tuple(("user", text) for text in self.texts)

    def body(self, structured: bool, limit_name: str) -> dict[str, Any]:
        """As embeddings take it; they have neither a form nor a limit."""
        return {"model": self.model, "input": list(self.texts), "encoding_format": "float"}


class ServerEncoder:
    """`extract.encoder: server:MODEL`, an encoder as of `extract.encoder.Encoder`.

    What the server does with a text beside others is its own affair: the bits of a vector may differ between
    calls, but a vector is asked for once and then kept.

    Args:
        model: as the server knows it.
        settings: section llm: address, key, limits, budget, redact.

    Raises DataError, from its methods, where the server cannot be used or its vectors are none, and
    Unfinished where the budget is spent or it keeps failing.
    """

    def __init__(self, model: str, settings: LlmConfig):
        self._settings = dataclasses.replace(settings, model=model)
        self.budget = Budget(self._settings, known_prices(self._settings))
        self._counter = TokenCounter(model, settings.base_url)
        self._dim = 0
        masks = " redacted" if settings.redact else ""
        self.identity = f"server {settings.base_url} {model}{masks}"

    @property
    def dim(self) -> int:
        if not self._dim:
            list(self.encode_batches(["a word"]))
        return self._dim

    def encode_batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of texts in their order, several calls at a time."""
        sent = [self._shown(text) for text in texts]
        batches = list(self._batches(sent))
        size = self._settings.concurrency
        server = Server(self._settings, self.budget, self._counter, make=_embedded)
        with asyncio.Runner() as runner:
            try:
                for start in range(0, len(batches), size):
                    block = batches[start : start + size]
                    calls = [
                        EmbeddingCall(self._settings.model, tuple(sent[i] for i in batch)) for batch in block
                    ]
                    replies = runner.run(_all(server, calls))
                    for batch, reply in zip(block, replies, strict=True):
                        if isinstance(reply, Embedded):
                            yield batch, self._vectors(reply)
                    if broken := [reply for reply in replies if isinstance(reply, Exception)]:
                        raise broken[0]
                    if rejected := [reply for reply in replies if reply.error]:
                        raise DataError(f"the server rejects texts: {rejected[0].error}")
            except Unfinished as error:
                raise Unfinished(f"{self._name}: {error}") from None
            except DataError as error:
                raise DataError(f"{self._name}: {error}") from None
            finally:
                runner.run(server.close())

    @property
    def _name(self) -> str:
        return f"extract.encoder (--encoder) server:{self._settings.model}"

    def _shown(self, text: str) -> str:
        text = masked(text) if self._settings.redact else text
        return self._counter.cut(text, _TEXT_TOKENS)

    def _batches(self, texts: list[str]) -> Iterator[np.ndarray]:
        batch, tokens = [], 0
        for place, text in enumerate(texts):
            count = self._counter.count(text)
            if batch and (len(batch) == _TEXTS or tokens + count > _TOKENS):
                yield np.array(batch)
                batch, tokens = [], 0
            batch.append(place)
            tokens += count
        if batch:
            yield np.array(batch)

    def _vectors(self, reply: Embedded) -> np.ndarray:
        width = reply.vectors.shape[1]
        if self._dim and width != self._dim:
            raise DataError(f"the server answers with vectors of {self._dim} numbers, and then of {width}")
        self._dim = width
        return reply.vectors


async def _all(server: Server, calls: list[EmbeddingCall]) -> list[Reply | DataError]:
    """A reply of each, or why there is none; what came back is not lost to what did not."""
    replies = await asyncio.gather(*map(server, calls), return_exceptions=True)
    for place, reply in enumerate(replies):
        if isinstance(reply, Unanswered):
            replies[place] = Unfinished(f"{reply}; what is embedded is kept: the same command goes on")
        elif isinstance(reply, BaseException) and not isinstance(reply, DataError):
            raise reply
    return replies


async def _embedded(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Embedded:
    """Raises ValueError where the server answers with something else."""
    answer = await client.embeddings.create(**body)
    rows = sorted(getattr(answer, "data", None) or [], key=lambda row: row.index)
    try:
        vectors = np.asarray([row.embedding for row in rows], np.float32)
    except (TypeError, ValueError):
        vectors = np.zeros(0)
    if vectors.ndim != 2 or len(vectors) != len(body["input"]):
        raise ValueError("the server answered with something else than a vector of each text")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise ValueError("the server answered with vectors that have no direction")
    usage = answer.usage
    return Embedded(input_tokens=usage.prompt_tokens if usage else 0, vectors=vectors / length)
