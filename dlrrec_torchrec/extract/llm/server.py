"""A server of the OpenAI form: calls are paced, bounded and repeated, and end where it keeps failing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from aiolimiter import AsyncLimiter
from openai.types.chat import ChatCompletion
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.extract.llm.answer_forms import schema_in_object
from dlrrec_torchrec.extract.llm.asking import Unanswered
from dlrrec_torchrec.extract.llm.calls import Call, Reply, safe
from dlrrec_torchrec.extract.llm.local_model import is_local
from dlrrec_torchrec.extract.llm.local_server import LocalServer
from dlrrec_torchrec.extract.llm.spending import Budget, is_openai
from dlrrec_torchrec.extract.llm.tokens import TokenCounter
from dlrrec_torchrec.store.errors import DataError, Unfinished

_NO_KEY = "none"  # servers without keys still want the header
_LIMITED_ROUNDS = 5  # of the client's own retries, while all that the server says is "not so fast"
_LIMITED_PAUSE = 30.0  # seconds between them, where the server names no time
_LONGEST_PAUSE = 3600.0
_QUIET = 10.0  # seconds of a pause that need no word
_LONGEST_ANSWER = 200_000  # characters: many times what any limit of tokens allows
_EFFORT = "reasoning_effort"
Make = Callable[[openai.AsyncOpenAI, dict[str, Any]], Awaitable[Reply]]
_FORMAT_WORDS = ("response_format", "json_schema", "schema", "grammar")


def server_key(settings: LlmConfig) -> str:
    """The key from the environment. Raises DataError naming the variable where it holds none."""
    name = settings.api_key_env or ("OPENAI_API_KEY" if is_openai(settings) else "")
    if not name:
        return _NO_KEY
    if not (key := os.environ.get(name, "").strip()):
        raise DataError(
            f"llm.api_key_env (--api-key-env): the environment variable {name} is not set; put the key of "
            f"{settings.base_url} into it, name another variable by --api-key-env, or a server that needs no "
            "key by --base-url, or let --provider offline write the content"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise DataError(
            f"llm.api_key_env (--api-key-env): what the environment variable {name} holds is no key: it has "
            "spaces, line breaks or letters that no key has"
        )
    return key


def refused_key(settings: LlmConfig, words: str) -> DataError:
    """What to raise where the server does not take the key."""
    return DataError(f"llm.api_key_env (--api-key-env): {settings.base_url} refuses the key: {words}")


def without_key(text: str, key: str) -> str:
    """A server's words on one line, without the key that it may repeat, and fit for a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if key in ("", _NO_KEY) else text.replace(key, "***"))[:300]


def make_client(settings: LlmConfig, key: str, http_client: Any = None) -> openai.AsyncOpenAI:
    """The client; it repeats calls by itself, and waits as Retry-After says (for up to two minutes)."""
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=settings.base_url,
        timeout=settings.timeout,
        max_retries=settings.retries,
        http_client=http_client,
    )


class Server:
    """Makes calls at one server.

    Args:
        budget: what the calls may use.
        sleep: waits, where the server says for how long beyond what the client waits by itself.
        make: makes one request of a call's body (default: a chat completion).

    The key is needed for the first call; without it, that raises DataError.
    """

    def __init__(
        self,
        settings: LlmConfig,
        budget: Budget,
        counter: TokenCounter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        make: Make | None = None,
    ):
        self._make = make or completed
        self._settings, self._budget, self._counter, self._sleep = settings, budget, counter, sleep
        self._key, self._client = "", None
        self._limit_name = "max_completion_tokens" if is_openai(settings) else "max_tokens"
        self._structured, self._left_out = settings.structured != "off", set()
        self._local = LocalServer(settings) if is_local(settings) else None
        self._in_object = self._local is not None  # where the schema stands
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._requests = _limiter(settings.requests_per_minute, 1)
        per_minute = settings.tokens_per_minute
        self._tokens = _limiter(per_minute, per_minute / 6 if per_minute else 0)
        self._answered = self._failed_in_row = 0
        self._told_until = 0.0
        self._stopped: DataError | None = None

    async def __call__(self, call: Call) -> Reply:
        """The server's reply.

        Raises Unanswered where it brings none this time, Unfinished where the budget is spent or the server
        fails all the time, and DataError where its settings are wrong; then no other call is made.
        """
        inputs = sum(self._counter.count(text) for _, text in call.messages)
        async with self._slots:
            if self._stopped:
                raise self._stopped
            reserved = inputs, call.output_tokens
            try:
                if self._client is None:
                    await self._connect()
                self._budget.reserve(*reserved)
            except DataError as error:
                self._stopped = error
                raise
            used = None
            try:
                await self._pace(inputs + call.output_tokens)
                reply = safe(await self._sent(call), self._key)
                used = reply.input_tokens or inputs, reply.output_tokens or self._counter.count(reply.text)
                return reply
            except DataError as error:
                self._stopped = error
                raise
            finally:
                self._budget.settle(reserved, used)

    async def close(self) -> None:
        """End the connections, and a local model's server."""
        try:
            if self._client is not None:
                await self._client.close()
        finally:
            if self._local:
                self._local.stop()

    async def _connect(self) -> None:
        if self._local is None:
            self._key = server_key(self._settings)
            self._client = make_client(self._settings, self._key)
            return
        address, self._key = self._local.start()
        direct = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy leads to this machine
        here = dataclasses.replace(self._settings, base_url=address)
        self._client = make_client(here, self._key, direct)
        await self._local.ready(self._client)

    async def _pace(self, tokens: int) -> None:
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))
        if self._stopped:
            raise self._stopped

    async def _sent(self, call: Call) -> Reply:
        try:
            reply = await self._repeated(call)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise refused_key(self._settings, self._words(error)) from None
        except openai.NotFoundError as error:
            raise DataError(
                f"llm.model (--llm.model) '{self._settings.model}' or llm.base_url (--base-url) "
                f"{self._settings.base_url}: not found there: {self._words(error)}"
            ) from None
        except openai.RateLimitError as error:
            spent = _out_of_credit(error)
            why = "has no credit left for the key" if spent else "goes on refusing calls as too many"
            raise Unfinished(
                f"{self._settings.base_url} {why}: {self._words(error)}; all answers are kept, and the same "
                "command goes on from here, slower by --requests-per-minute or --tokens-per-minute"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code >= 500 or not self._answered:  # not this call's fault, or not clear yet
                raise self._failure(error) from None
            self._failed_in_row = 0
            return Reply(error=self._words(error))
        except (openai.OpenAIError, ValueError) as error:
            raise self._failure(error) from None
        self._failed_in_row = 0
        self._answered += 1
        return reply

    async def _repeated(self, call: Call) -> Reply:
        """One call, with waits beyond the client's own while the server is only too busy."""
        trying = AsyncRetrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, openai.RateLimitError) and not _out_of_credit(error)
            ),
            stop=stop_after_attempt(_LIMITED_ROUNDS),
            wait=_asked_pause,
            sleep=self._pause,
            reraise=True,
        )
        async for attempt in trying:
            with attempt:
                return await self._once(call)
        raise AssertionError("tenacity ends by an answer or an error")

    async def _pause(self, seconds: float) -> None:
        now = time.monotonic()
        if seconds > _QUIET and now > self._told_until:  # one line for all calls that wait
            self._told_until = now + seconds
            print(f"{self._settings.base_url} asks for a pause of {seconds:,.0f} seconds", file=sys.stderr)
        await self._sleep(seconds)

    async def _once(self, call: Call) -> Reply:
        """One call, again without what the server refuses to take; later calls leave that out at once."""
        while True:
            body = call.body(self._structured, self._limit_name)
            body = {name: value for name, value in body.items() if name not in self._left_out}
            body = schema_in_object(body) if self._in_object else body
            try:
                return await self._make(self._client, body)
            except openai.APIStatusError as error:
                said = str(error).lower()
                # llama-cpp-python's server fails by 500 where the schema stands elsewhere.
                of_form = "response_format" in said and error.status_code == 500
                if error.status_code not in (400, 422) and not of_form:
                    raise
                if _EFFORT in said and _EFFORT in body and self._settings.reasoning_effort == "auto":
                    self._left_out.add(_EFFORT)
                elif "response_format" not in body or not any(word in said for word in _FORMAT_WORDS):
                    raise
                elif "json_schema" in body["response_format"]:
                    self._in_object = True
                elif self._settings.structured == "auto":
                    self._structured = False
                else:
                    raise

    def _failure(self, error: Exception) -> Exception:
        if self._stopped:
            return self._stopped
        if self._local and (ended := self._local.ended()):
            return Unfinished(f"{ended}\nall answers are kept: the same command goes on from here")
        self._failed_in_row += 1
        if self._failed_in_row < self._settings.breaker:
            return Unanswered(self._words(error))
        return Unfinished(
            f"llm.base_url (--base-url) {self._settings.base_url}: {self._failed_in_row} calls in a row "
            f"failed ({self._words(error)}); all answers are kept: when the server is well, the same command "
            "goes on from here; --provider offline needs no server"
        )

    def _words(self, error: Exception) -> str:
        """What an error says on one line, without the key."""
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self._settings.timeout:g} seconds"
        cause = (
            f": {error.__cause__}" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
        )
        return without_key(f"{error}{cause}", self._key) or type(error).__name__


async def completed(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Reply:
    """A chat completion. Raises ValueError where the answer is none."""
    return reply_of(await client.chat.completions.create(**body))


def reply_of(answer: ChatCompletion) -> Reply:
    """A chat completion as a Reply. Raises ValueError where it is none."""
    if not isinstance(answer, ChatCompletion) or not answer.choices or answer.choices[0].message is None:
        raise ValueError("the server answered with something else than a chat completion")
    choice, usage = answer.choices[0], answer.usage
    words = [choice.message.content or "", choice.finish_reason or "stop", choice.message.refusal or ""]
    if not all(isinstance(text, str) for text in words):  # the client does not check what it is sent
        raise ValueError("the server answered with something else than a chat completion")
    if len(words[0]) > _LONGEST_ANSWER:
        raise ValueError(f"the server answered with {len(words[0]):,} characters")
    tokens = [getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")]
    return Reply(*words, "", *(n if isinstance(n, int) and n > 0 else 0 for n in tokens))


def _limiter(per_minute: float | None, most: float) -> AsyncLimiter | None:
    """A bucket for `most`, or a second's worth of what a minute allows."""
    if not per_minute:
        return None
    size = max(most, per_minute / 60)
    return AsyncLimiter(size, size * 60 / per_minute)


def _out_of_credit(error: openai.RateLimitError) -> bool:
    return error.code == "insufficient_quota"


def _asked_pause(state: RetryCallState) -> float:
    """Seconds until a server that is too busy is asked again."""
    try:
        said = float(state.outcome.exception().response.headers.get("retry-after", ""))
    except ValueError:
        said = _LIMITED_PAUSE
    return min(max(said, 0.0), _LONGEST_PAUSE)
