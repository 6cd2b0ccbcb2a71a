"""Raw values of any source -> values of the review and item tables.

A function raises `BadRow` with a reason where the whole row is unusable, and ValueError where only this
value cannot be read (a time, a price), which leaves it unknown.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

FLOAT32_MAX = 3.4028234e38
_NO_VALUE = {"", "none", "null", "nan", "n/a", "na", "-", "—"}
# picture objects: the largest link first
_LINKS = ("hi_res", "large_image_url", "large", "medium_image_url", "url", "small_image_url", "thumb", "id")
_HOURS = r"(?:,?\s+(\d{1,2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?\s*([AaPp][Mm])?)?"
_DATE = re.compile(r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})" + _HOURS)
_YEAR_FIRST = re.compile(r"(?P<year>\d{4})([/.-])(?P<month>\d{1,2})\2(?P<day>\d{1,2})" + _HOURS)
_TEXT_DATES = (
    *("%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y"),
    *("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z"),
)
_AMOUNT = r"(\d[\d,.]*|\.\d+)"
_PRICE = re.compile(rf"[^\d.\-]{{0,12}}{_AMOUNT}(?:\s*[-–—]\s*[^\d.\-]{{0,12}}{_AMOUNT})?[^\d]{{0,12}}")


class BadRow(Exception):
    """Why a row is rejected."""


def as_id(value: Any, name: str) -> str:
    """A user or item id as a string. `name` is "user" or "item"."""
    if isinstance(value, str):
        if value := value.strip():
            return encodable(value)
        raise BadRow(f"{name} is missing")
    if value is None or value != value:  # NaN
        raise BadRow(f"{name} is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with gaps is read as floats
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{name} is of the wrong type")


def as_rating(value: Any) -> float:
    """A finite number, also from a string."""
    if type(value) is not float:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BadRow("rating is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise BadRow("rating is not a number")
        try:
            if "_" in str(value):  # Python reads 1_0 as 10
                raise ValueError
            value = float(value)
        except OverflowError:
            raise BadRow("rating is not finite") from None
        except ValueError:
            raise BadRow("rating is not a number") from None
    if not abs(value) <= FLOAT32_MAX:
        raise BadRow("rating is not finite")
    return value


def as_text(value: Any, name: str = "text") -> str | None:
    """A string, or None where there are no words."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow(f"{name} is of the wrong type")
    return None if not value or value.isspace() else encodable(value)


def as_joined_text(value: Any) -> str | None:
    """A string, or (nested lists of) strings as one."""
    if isinstance(value, list):
        parts = [as_joined_text(part) for part in value]
        return "\n".join(part for part in parts if part) or None
    return as_text(value)


def as_strings(value: Any, name: str, separators: str) -> list[str] | None:
    """A list of strings: from (nested) lists, a JSON list in a string, or a string with separators.

    `separators` are tried in order; the first that occurs splits. Blank and repeated ones are dropped.
    """
    distinct: dict[str, None] = {}
    for part in _as_list(value, name, separators):
        inner = as_strings(part, name, "") if isinstance(part, list) else [_as_word(part, name)]
        distinct.update((word, None) for word in inner or () if word)
    return list(distinct) or None


def as_captions(value: Any) -> list[str] | None:
    """One string for each picture, empty where it has no caption; in a string, `|` separates."""
    return [_as_word(part, "captions") for part in _as_list(value, "captions", "|")] or None


def as_links(value: Any) -> list[str] | None:
    """Paths or links of pictures: from strings, a JSON list or `|`-separated string, or picture objects."""
    links = []
    for part in _as_list(value, "images", "|"):
        if isinstance(part, dict):
            part = next((part[key] for key in _LINKS if part.get(key)), None)
            part = part[0] if isinstance(part, list) and part else part
        links.append(_as_word(part, "images"))
    return [link for link in links if link] or None


def as_seconds(value: Any) -> int | None:
    """Seconds since 1970: from a number (s, ms, us or ns, by its size), a date or a string with one.

    Strings: a number, ISO 8601, `M/D/YYYY [H:MM[:SS] [AM|PM]]` (month first), `YYYY/M/D` (or `-`, `.`) with
    the same, `Jan 3, 2015`, `3 Jan 2015`, and `Sat Jan 3 10:00:00 +0000 2015`; without a zone they are UTC.
    None where there is no value. ValueError where it cannot be read.
    """
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in _NO_VALUE:
            return None
        try:
            value = float(value)
        except ValueError:
            value = _parse_date(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    if isinstance(value, date):
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp())
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not abs(value) < 1e20:
        raise ValueError("no time")
    number = int(value)
    while abs(number) >= 10**11:  # after the year 5000 if in seconds: a finer unit
        number = int(number / 1000)
    return number


def as_price(value: Any) -> float | None:
    """An amount: from a number or a string such as "$12.99", "1,200" or "$10 - $20" (the middle).

    None where there is no value. ValueError where it cannot be read.
    """
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in _NO_VALUE:
            return None
        match = _PRICE.fullmatch(value)
        if not match:
            raise ValueError("no price")
        ends = [_amount(end) for end in match.groups() if end]
        return sum(ends) / len(ends)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, Decimal))
        or not 0 <= value <= FLOAT32_MAX
    ):
        raise ValueError("no price")
    return float(value)


def encodable(text: str) -> str:
    """`text` itself; BadRow if it has halves of surrogate pairs, which undecodable bytes give."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("not valid Unicode") from None
    return text


def _as_list(value: Any, name: str, separators: str) -> list[Any]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                pass
        mark = next((mark for mark in separators if mark in text), None)
        return text.split(mark) if mark else [text] if text else []
    if value is None or isinstance(value, list):
        return value or []
    raise BadRow(f"{name} are of the wrong type")


def _as_word(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{name} are of the wrong type")
    return encodable(value.strip())


def _parse_date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    if match := _DATE.fullmatch(text) or _YEAR_FIRST.fullmatch(text):
        hour, minute, second, am_pm = match.groups()[-4:]
        hour = int(hour or 0)
        if am_pm:
            hour = hour % 12 + 12 * (am_pm.lower() == "pm")
        day = (int(match[name]) for name in ("year", "month", "day"))
        return datetime(*day, hour, int(minute or 0), int(second or 0))
    for form in _TEXT_DATES:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    raise ValueError("no time")


def _amount(text: str) -> float:
    """1,200.50 and 1.200,50 and 12,50 -> float."""
    text = text.rstrip(",.")
    if re.fullmatch(r"\d+,\d{1,2}|\d{1,3}(\.\d{3})+,\d{1,2}", text):
        text = text.replace(".", "").replace(",", ".")
    return float(text.replace(",", ""))
