"""What is asked: the presets `joint` and `papers`, and sets of one's own in YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec.store.errors import DataError

PAPERS_MODEL = "gpt-3.5-turbo-1106"  # its provider has switched it off
FIELDS = {"user": ("summary", "likes", "avoids"), "item": ("summary", "price_tag", "categories")}
_SETTING = "llm.prompts (--prompts)"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question about a user or an item; `fields` is what an answer holds.

    `{language}` and `{sentences}` in the text are filled in.
    """

    name: str
    side: str  # "user" or "item"
    fields: tuple[str, ...]
    text: str


_JOINT = (
    Prompt(
        "user",
        "user",
        FIELDS["user"],
        "Summarise in {language}, in at most {sentences} sentences, what this person's reviews tell of their "
        "taste: what they look for, what they praise, what they complain about. Describe the person, not "
        "single places or products. Name the kinds of thing (such as cuisines, dishes or genres) that the "
        "person says to like anywhere, and those that they say to avoid anywhere.",
    ),
    Prompt(
        "item",
        "item",
        FIELDS["item"],
        "Summarise in {language}, in at most {sentences} sentences, what the reviews say of this item: what "
        "it offers, what people praise, what they complain about. Say what the reviews find its price to be, "
        "none if they do not tell. Name its types (such as cuisines, kinds of place or genres), the most "
        "fitting one first.",
    ),
)
# Price and category questions are worded as in the papers; those of the summaries are in figures that have no
# text, so they are worded here.
_PAPERS = (
    Prompt(
        "user_summary",
        "user",
        ("summary",),
        "Can you summarize all the reviews that this user wrote? Answer in {language}, in at most "
        "{sentences} sentences.",
    ),
    Prompt(
        "business_summary",
        "item",
        ("summary",),
        "Can you summarize all the reviews that this restaurant received? Answer in {language}, in at most "
        "{sentences} sentences.",
    ),
    Prompt(
        "price_tag",
        "item",
        ("price_tag",),
        "Can you tell me if the price is overpriced, fair price, low price from reviews for this restaurant? "
        "Give me just the category.",
    ),
    Prompt(
        "category",
        "item",
        ("categories",),
        "Can you tell me what kind of restaurant this is from these reviews for the restaurant? Return me in "
        "this format: 'type'.",
    ),
)
PRESETS = {"joint": _JOINT, "papers": _PAPERS}


def load_prompts(chosen: str) -> tuple[Prompt, ...]:
    """The prompts of a preset, or of a YAML file: a list of name, side, fields and text.

    Raises DataError for an unknown preset, and a file that cannot be used.
    """
    if chosen in PRESETS:
        return PRESETS[chosen]
    try:
        body = yaml.safe_load(Path(chosen).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{_SETTING}: '{chosen}' is neither {' nor '.join(PRESETS)}, nor a file: {error.strerror}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{_SETTING}: {chosen} is not valid YAML: {error}") from None
    if not isinstance(body, list) or not body:
        raise DataError(f"{_SETTING}: {chosen} must be a list of prompts, each with name, side, fields, text")
    prompts = tuple(_prompt(entry, f"{_SETTING}: {chosen}, prompt {n}") for n, entry in enumerate(body, 1))
    if len({prompt.name for prompt in prompts}) < len(prompts):
        raise DataError(f"{_SETTING}: {chosen} has two prompts of one name")
    for side in FIELDS:
        asked = [field for prompt in prompts if prompt.side == side for field in prompt.fields]
        if len(set(asked)) < len(asked):
            raise DataError(f"{_SETTING}: {chosen} asks for one field of the {side} twice")
        if "summary" not in asked:
            raise DataError(f"{_SETTING}: {chosen} asks for no summary of the {side}")
    return prompts


def _prompt(entry: Any, where: str) -> Prompt:
    names = {field.name for field in dataclasses.fields(Prompt)}
    if not isinstance(entry, dict) or entry.keys() != names:
        raise DataError(f"{where}: must have {', '.join(sorted(names))}, and nothing else")
    name, side, fields, text = (entry[key] for key in ("name", "side", "fields", "text"))
    if side not in FIELDS:
        raise DataError(f"{where}: side {side!r} is not {' or '.join(FIELDS)}")
    if not isinstance(fields, list) or not fields or set(fields) - set(FIELDS[side]):
        raise DataError(f"{where}: fields {fields!r} are not some of {', '.join(FIELDS[side])}")
    if not isinstance(name, str) or not isinstance(text, str) or not name or not text.strip():
        raise DataError(f"{where}: name and text must be texts")
    return Prompt(name, side, tuple(fields), text.strip())
