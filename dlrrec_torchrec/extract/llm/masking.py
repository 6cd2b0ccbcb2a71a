"""Masks for what names a person or a page: e-mail addresses, phone numbers, links."""

from __future__ import annotations

import re

_MASKS = (
    ("[e-mail]", re.compile(r"[\w.+-]+\s?@\s?[\w-]+(?:\.[\w-]+)+")),
    (
        "[link]",
        re.compile(
            r"(?:https?://|www\.)\S+|\b(?:[a-z0-9-]+\.)+(?:com|net|org|info|io|in|co|uk|de|fr|me|ly|app)\b(?:/\S*)?",
            re.IGNORECASE,
        ),
    ),
    # 8 to 15 digits in groups; a price or a date has fewer digits or other marks.
    ("[phone]", re.compile(r"(?<![\w.,])(?:\+|00)?\(?\d{1,5}\)?(?:[ .\-/]?\(?\d{2,5}\)?){1,5}(?![\w])")),
)
_LEAST_DIGITS, _MOST_DIGITS = 8, 15
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}")


def masked(text: str) -> str:
    """The text with "[e-mail]", "[link]" and "[phone]" in place of these."""
    for mask, pattern in _MASKS:
        text = pattern.sub(_phone if mask == "[phone]" else mask, text)
    return text


def _phone(match: re.Match) -> str:
    found = match.group()
    digits = sum(c.isdigit() for c in found)
    if not _LEAST_DIGITS <= digits <= _MOST_DIGITS or _DATE.fullmatch(found):
        return found
    return "[phone]"
