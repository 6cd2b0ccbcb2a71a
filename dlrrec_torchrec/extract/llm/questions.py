"""From an entity's reviews to calls: in order of time, masked, in parts where they are many, joined again."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from typing import Any

import numpy as np

from dlrrec_torchrec.config.llm_section import LlmConfig
from dlrrec_torchrec.extract.llm import answer_forms
from dlrrec_torchrec.extract.llm.calls import Call, data_text, system_text
from dlrrec_torchrec.extract.llm.local_model import with_local_model
from dlrrec_torchrec.extract.llm.long_histories import Reading, reading
from dlrrec_torchrec.extract.llm.masking import masked
from dlrrec_torchrec.extract.llm.prompt_sets import Prompt, load_prompts
from dlrrec_torchrec.extract.llm.spending import is_openai
from dlrrec_torchrec.extract.llm.tokens import TokenCounter
from dlrrec_torchrec.extract.providers.base import EntityReviews
from dlrrec_torchrec.store.manifest import digest

_WORD = re.compile(r"[^\W_]")
_OWN_SHARE = 4  # of a call's tokens, an item's own description gets up to one in so many
_VERSION = 1  # raise when the same reviews would be asked about in other words


@dataclasses.dataclass(frozen=True)
class History:
    """What is read of one version of an entity. texts: the reviews oldest first, masked and cut."""

    texts: tuple[str, ...]
    description: str  # an item's own words, "" where there are none
    read: Reading
    tokens: int  # of the texts that are read, and of the description in each part

    @property
    def input_hash(self) -> str:
        """Of all that goes into calls."""
        return digest([[[self.texts[i] for i in part] for part in self.read.parts], self.description])


class Questions:
    """The calls about entities whose documents are `texts`.

    Args:
        texts: of the documents.
        sentences: of a summary, at most.

    `settings` are then those of `with_local_model`.
    """

    def __init__(self, settings: LlmConfig, sentences: int, texts: list[str | None] | None = None):
        settings = with_local_model(settings)
        self.settings, self.sentences = settings, sentences
        self.prompts = load_prompts(settings.prompts)
        self.counter = TokenCounter(settings.model, settings.base_url)
        self._texts = texts or []
        self._known: dict[int, tuple[str, int] | None] = {}
        effort = settings.reasoning_effort
        if effort == "auto":
            effort = "none" if is_openai(settings) else None
        effort = None if effort == "unset" else effort
        options = {"temperature": settings.temperature, "reasoning_effort": effort}
        self.options = tuple((name, value) for name, value in options.items() if value is not None)

    def about(self, texts: list[str | None]) -> Questions:
        """The same questions about other documents."""
        return Questions(self.settings, self.sentences, texts)

    @property
    def fingerprint(self) -> str:
        """A hash of all that shapes the content, besides the model."""
        limits = ("language", "output_tokens", "input_tokens", "max_parts", "attempts", "redact")
        return digest(
            [
                [_VERSION, answer_forms.VERSION, self.sentences, self.counter.name, self.options],
                [dataclasses.asdict(prompt) for prompt in self.prompts],
                [getattr(self.settings, name) for name in limits],
                [system_text("", prompt.fields, join=True) for prompt in self.prompts],
            ]
        )

    def of(self, side: str) -> list[Prompt]:
        """The prompts about users, or about items."""
        return [prompt for prompt in self.prompts if prompt.side == side]

    def instruction(self, prompt: Prompt) -> str:
        """The whole system message, rules included."""
        return self._system(prompt, prompt.fields)

    def prompt_hash(self, prompt: Prompt) -> str:
        """Of the instruction."""
        return digest(self.instruction(prompt))

    def history(self, entity: EntityReviews) -> History | None:
        """What is read of an entity; None where no document has words."""
        reviews, own, times = entity.documents, None, entity.times
        if entity.side == "item":
            reviews, own = reviews[:-1], int(reviews[-1])
            times = None if times is None else times[:-1]
        if times is not None:  # an unknown time is the lowest number: oldest
            reviews = reviews[np.argsort(times, kind="stable")]
        found = [document for document in map(self._document, reviews.tolist()) if document]
        description = self._document(own) if own is not None else None
        if not found and not description:
            return None
        own_text, own_tokens, budget = "", 0, self.settings.input_tokens
        if description:
            own_text = self.counter.cut(description[0], budget // _OWN_SHARE)
            own_tokens = min(description[1], budget // _OWN_SHARE)
        budget -= own_tokens
        sizes = [tokens for _, tokens in found]
        read = reading(sizes, budget, self.settings.max_parts)
        if not read.parts:
            read = dataclasses.replace(read, parts=((),))
        texts = tuple(text if tokens <= budget else self.counter.cut(text, budget) for text, tokens in found)
        counted = sum(sizes) - read.cut_tokens
        return History(texts, own_text, read, counted + own_tokens * len(read.parts))

    def calls(self, prompt: Prompt, history: History) -> list[Call]:
        """The first attempt at each part."""
        system = self._system(prompt, prompt.fields)
        calls = []
        for part in history.read.parts:
            body: dict[str, Any] = {"description": history.description} if history.description else {}
            body["reviews"] = [history.texts[i] for i in part]
            calls.append(self._call(prompt, prompt.fields, system, body))
        return calls

    def join_call(self, prompt: Prompt, history: History, answers: list[dict[str, Any] | None]) -> Call:
        """The call that makes one summary of the parts' (None: a part without an answer)."""
        parts = [
            {"texts": len(part), "summary": values["summary"]}
            for part, values in zip(history.read.parts, answers, strict=True)
            if values is not None
        ]
        fields = ("summary",)
        return self._call(prompt, fields, self._system(prompt, fields, join=True), {"parts": parts})

    @functools.lru_cache  # noqa: B019 (a handful of objects for a command)
    def fixed_tokens(self, prompt: Prompt) -> int:
        """Tokens of a call without its reviews."""
        return self.counter.count(self._system(prompt, prompt.fields)) + self.counter.count(
            data_text({"reviews": []})
        )

    def _system(self, prompt: Prompt, fields: tuple[str, ...], join: bool = False) -> str:
        task = prompt.text.replace("{language}", self.settings.language)
        return system_text(task.replace("{sentences}", str(self.sentences)), fields, join)

    def _call(self, prompt: Prompt, fields: tuple[str, ...], system: str, body: dict[str, Any]) -> Call:
        return Call(
            prompt.name,
            self.settings.model,
            (("system", system), ("user", data_text(body))),
            fields,
            self.settings.output_tokens,
            self.options,
        )

    def _document(self, number: int) -> tuple[str, int] | None:
        """A document as it leaves this machine, and its tokens; None where it has no words."""
        if number not in self._known:
            text = (self._texts[number] or "").strip()
            if self.settings.redact:
                text = masked(text)
            self._known[number] = (text, self.counter.count(text)) if _WORD.search(text) else None
        return self._known[number]


def joined(answers: list[dict[str, Any]], fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields of several parts' answers, oldest part first, that need no call to be joined.

    The price tag is that of most parts that have one, of equal ones the newest part's. Names are those of
    most parts first, of equal ones those that stand further in front.
    """
    values: dict[str, Any] = {}
    if "price_tag" in fields:
        tags = [answer["price_tag"] for answer in answers if answer["price_tag"] != "none"]
        count = Counter(tags)
        newest_first = list(dict.fromkeys(reversed(tags)))
        values["price_tag"] = max(newest_first, key=lambda tag: count[tag], default="none")
    for field in answer_forms.NAMES:
        if field in fields:
            named: dict[str, list[int]] = {}
            spelled: dict[str, str] = {}
            for answer in answers:
                for place, name in enumerate(dict.fromkeys(map(str.casefold, answer[field]))):
                    named.setdefault(name, []).append(place)
                spelled |= {name.casefold(): name for name in answer[field]}
            order = sorted(named, key=lambda name: (-len(named[name]), min(named[name])))
            values[field] = [spelled[name] for name in order]
    return values
