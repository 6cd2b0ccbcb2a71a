"""The forms of answers, and reading what a model made of them.

A server that holds answers to a JSON schema gets that of the form. Others are read with tolerance: prose and
code fences around the JSON, small errors in it, synonyms of a price tag. What is left is checked by the same
form. Reviews may tell a model to answer anything, so nothing passes that has another form.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import unicodedata
from typing import Any, Literal

from json_repair import loads as repaired
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from dlrrec_torchrec.store.schema import PRICE_TAGS

VERSION = 1  # raise when the same answer would be read in another way
NAMES = ("categories", "likes", "avoids")  # fields that are lists of names
MOST_NAMES = 11
KEYS = {
    "summary": "the summary, a text",
    "price_tag": "overpriced, fair, cheap, or none where the reviews do not tell",
    "categories": f"a list of up to {MOST_NAMES} names, each of one to three words",
    "likes": f"a list of up to {MOST_NAMES} names, each of one to three words; empty where nothing is said",
    "avoids": f"a list of up to {MOST_NAMES} names, each of one to three words; empty where nothing is said",
}
_PRICE_WORDS = {
    "overpriced": "overpriced expensive pricey costly high over-priced",
    "fair": "fair reasonable moderate average",
    "cheap": "cheap low inexpensive affordable",
    "none": "none unknown unclear n/a null",
}
_PRICE_OF = {word: tag for tag, words in _PRICE_WORDS.items() for word in words.split()}
_NAME = re.compile(r"[^\W_]+(?:[ '\u2019&/+.-]{1,3}[^\W_]+)*")
_ENGLISH = frozenset(
    "the and of with for are was were this that but they their which to it as an on be".split()
)
# Spanish, Portuguese, French, Italian, German and Dutch; rare in English.
_FOREIGN = frozenset(
    "el la los las que y un una es muy pero para por con del se e o os um uma não com mas le les et est des "
    "du une dans pour avec pas très il di che per non sono molto und ist der das nicht mit ein eine auf sehr "
    "het een van dat niet zijn".split()
)
_MOST_WORDS, _MOST_CHARACTERS, _FOREIGN_SHARE = 5, 40, 0.1
_CHARACTERS_PER_TOKEN = 4


class Unusable(Exception):
    """An answer that cannot be used; the message is the reason."""


@functools.cache
def form(fields: tuple[str, ...]) -> type[BaseModel]:
    """The pydantic model of an answer with these fields, all of them required."""
    kinds: dict[str, Any] = {"summary": str, "price_tag": Literal[PRICE_TAGS]}
    kinds |= dict.fromkeys(NAMES, list[str])
    return create_model(
        "Answer", __config__=ConfigDict(extra="forbid"), **{field: (kinds[field], ...) for field in fields}
    )


@functools.cache
def response_format(fields: tuple[str, ...]) -> dict[str, Any]:
    """What asks a server to hold its answer to the form."""
    schema = form(fields).model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def schema_in_object(body: dict[str, Any]) -> dict[str, Any]:
    """A call's body with the schema where llama-cpp-python's server and some others look for it.

    It has bounds then, which OpenAI's schemas may not have: without, a small model goes on listing names till
    no token is left. A list has at most MOST_NAMES names, and a summary takes half of the tokens.
    """
    if "json_schema" not in (asked := body.get("response_format", {})):
        return body
    schema = copy.deepcopy(asked["json_schema"]["schema"])
    tokens = body.get("max_tokens") or body["max_completion_tokens"]
    for key, kind in schema["properties"].items():
        if key in NAMES:
            kind |= {"maxItems": MOST_NAMES, "items": {"type": "string", "maxLength": _MOST_CHARACTERS}}
        elif key == "summary":
            kind["maxLength"] = tokens * _CHARACTERS_PER_TOKEN // 2
    return body | {"response_format": {"type": "json_object", "schema": schema}}


def read_answer(text: str, fields: tuple[str, ...], language: str) -> dict[str, Any]:
    """The fields of an answer: a text, a price tag, lists of clean names.

    Raises Unusable with the reason.
    """
    body = _body(text)
    given = {key: _plain(key, body[key]) for key in fields if key in body}
    try:
        values = form(fields).model_validate(given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise Unusable(
            f"{key} is missing" if first["type"] == "missing" else f"{key} has no allowed form"
        ) from None
    if "summary" in values:
        values["summary"] = _summary(values["summary"], language)
    for key in NAMES:
        if key in values:
            values[key] = [name for name in map(clean_name, values[key]) if name]
    if values.get("categories") == [] and given["categories"]:
        raise Unusable("categories has no allowed form")
    return values


def is_of_the_form(text: str, fields: tuple[str, ...]) -> bool:
    """Whether an answer is the JSON that was asked for, so that `read_answer` has nothing to mend."""
    try:
        form(fields).model_validate_json(text)
    except ValidationError:
        return False
    return True


def clean_name(name: str) -> str:
    """A name of a kind of thing on one line, "" where it has no allowed form (at most five plain words)."""
    name = " ".join(unicodedata.normalize("NFKC", name).split()).strip(" .,;:'\"*-")
    right = len(name) <= _MOST_CHARACTERS and len(name.split()) <= _MOST_WORDS and _NAME.fullmatch(name)
    return name if right else ""


def _body(text: str) -> dict[str, Any]:
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        raise Unusable("no JSON object")
    if end < start:
        raise Unusable("a JSON object that does not end")
    text = text[start : end + 1]
    try:
        body = json.loads(text)
    except ValueError:
        body = repaired(text, skip_json_loads=True)
    if not isinstance(body, dict):
        raise Unusable("no JSON object")
    return {str(key).strip().lower().replace(" ", "_"): value for key, value in body.items()}


def _plain(key: str, value: Any) -> Any:
    """What servers without schemas often answer, in the form."""
    if key == "price_tag" and (value is None or isinstance(value, str)):
        words = re.findall(r"[\w/-]+", (value or "none").lower())
        tags = {_PRICE_OF[word] for word in words if word in _PRICE_OF}
        return tags.pop() if len(tags) == 1 and len(words) <= 4 and "not" not in words else value
    if key in NAMES and isinstance(value, str):
        return [part for part in re.split(r"[,;\n]", value) if part.strip()]
    if key in NAMES and value is None:
        return []
    return value


def _summary(text: str, language: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    words = re.findall(r"[^\W\d_]+", text.lower())
    if not words:
        raise Unusable("summary is empty")
    if language.casefold() == "english":
        letters = [c for c in text if c.isalpha()]
        foreign = sum(not c.isascii() and "LATIN" not in unicodedata.name(c, "") for c in letters)
        counts = [sum(word in known for word in words) for known in (_FOREIGN, _ENGLISH)]
        if foreign > len(letters) / 5 or counts[0] > max(counts[1], _FOREIGN_SHARE * len(words)):
            raise Unusable("summary is not in English")
    return text
