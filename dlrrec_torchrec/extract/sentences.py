"""Text into sentences, and captions into clean text: simple rules for the punctuation of reviews."""

from __future__ import annotations

import re
import unicodedata

MAX_WORDS = 60  # about 80 word pieces: far below the 256 at which the encoder cuts
MAX_CHARACTERS = 400  # for scripts without spaces

_ABBREVIATIONS = {
    *("mr mrs ms dr st rs no vs etc approx e.g i.e eg ie a.m p.m am pm dept govt").split(),
    *("inc ltd co jr sr prof fig min max hrs hr mins sec tel ph vol al u.s u.k").split(),
}
# Words that often open a sentence: "good.the food" is two sentences, "eat.fit" is one word.
_OPENERS = frozenset(
    "the but and also i we they it this that there their our my you he she so very not even if when while "
    "food service staff place ambience overall must love loved ordered tried great good nice best".split()
)
_EMOJI = "\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f000-\U0001faff"
_END = re.compile(
    rf"(?:[.!?\u2026\u3002\uff01\uff1f]|[{_EMOJI}])"  # an end mark or a picture, ...
    rf"(?:[.!?\u2026\u3002\uff01\uff1f{_EMOJI}]|\s+(?=[.!?{_EMOJI}]))*"  # ... all those that follow ...
    r"[\"'\u2019\u201d)\]]*"  # ... and closing quotes
)
_WORD_BEFORE = re.compile(r"[\w.'\u2019]*\Z")
_WORD_AFTER = re.compile(r"[^\W_]+")
_NEAR = 64  # characters around a mark that are looked at: work grows with the text, not with its square
_SPACE = re.compile(r"[^\S\n]+")
_WORD = re.compile(r"[^\W_]")
_NO_THING = frozenset("a an the this that it there is are of in on and with photo picture image view".split())
_CAPTION_LEAD = re.compile(
    r"\A(?:(?:this is|there is|here is|it is)\s+)?(?:an?|the)?\s*"
    r"(?:close[- ]?up\s+)?(?:photo(?:graph)?|picture|image|close[- ]?up)\s+(?:of|showing)(?:\s+|\Z)",
    re.IGNORECASE,
)


def split_sentences(text: str | None, max_words: int = MAX_WORDS) -> list[str]:
    """The sentences of `text` in order, white space made plain, each of at most `max_words` words.

    A line break ends a sentence unless the next line continues in lower case. Runs of marks ("...", "!!") and
    pictures end one sentence, once. Decimals, initials and common abbreviations do not. A mark without a
    following space ends a sentence only where it cannot be part of a word ("good.The", "wow!!then"). Pieces
    without a letter or digit are dropped. None gives [].
    """
    if not text:
        return []
    text = unicodedata.normalize("NFKC", text).replace("\r\n", "\n").replace("\r", "\n")
    lines: list[str] = []
    for line in _SPACE.sub(" ", text).split("\n"):
        line = line.strip()
        if lines and line[:1].islower() and lines[-1][-1] not in ".!?:;,":
            lines[-1] += " " + line  # a wrapped line
        elif line:
            lines.append(line)
    sentences = []
    for line in lines:
        for piece in _split_line(line):
            if _WORD.search(piece):
                sentences += _capped(piece, max_words)
    return sentences


def clean_caption(caption: str | None) -> str:
    """A caption without its lead ("a photo of", "an image of") and outer white space; "" if it names no
    thing."""
    text = " ".join((caption or "").split()).strip(" .\"'")
    text = _CAPTION_LEAD.sub("", text).strip(" .\"'")
    return text if _WORD.search(text) and not _NO_THING.issuperset(text.lower().split()) else ""


def _split_line(line: str) -> list[str]:
    pieces, start = [], 0
    behind = _WORD.search(line[::-1])
    last_word = len(line) - 1 - behind.start() if behind else -1
    for match in _END.finditer(line):
        if match.end() > start and match.end() <= last_word and _ends_here(line, match):
            pieces.append(line[start : match.end()].strip())
            start = match.end()
    pieces.append(line[start:].strip())
    return [p for p in pieces if p]


def _ends_here(line: str, match: re.Match) -> bool:
    """Whether the run of marks `match`, after which there are more words, ends a sentence."""
    marks = match.group().rstrip("\"'\u2019\u201d)]")
    rest = line[match.end() : match.end() + _NEAR]
    spaced, following = rest[0].isspace(), rest.lstrip()
    if not following:
        return True
    before = _WORD_BEFORE.search(line, max(0, match.start() - _NEAR), match.start()).group()
    if marks == ".":
        initial = len(before.rpartition(".")[2]) == 1 and before[-1:].isalpha()
        if before.lower() in _ABBREVIATIONS or (initial and (before.isupper() or "." in before)):
            return False
        if before.isdigit() and match.start() == len(before):
            return False  # "1. Starters"
        if spaced:
            return True
        after = _WORD_AFTER.match(following)
        if after is None or "." in before:
            return False
        word = after.group()
        if before.isdigit():
            return word.isalpha() and len(word) > 2
        if len(before) < 2 or before.lower() == "www":
            return False
        return (word[0].isupper() and not before.isupper()) or word.lower() in _OPENERS
    if marks[-1] in ".\u2026" and marks.strip(".\u2026 ") == "":
        return spaced or len(before) > 1  # "..."
    if marks[-1] in "!?\u3002\uff01\uff1f":
        return spaced or following[0].isalnum()
    return following[0].isupper() or following[0].isdigit() or not following[0].isascii()  # a picture


def _capped(piece: str, max_words: int) -> list[str]:
    """`piece` in equal parts of at most `max_words` words, cut after a comma where one is near."""
    words = [
        word[i : i + MAX_CHARACTERS] for word in piece.split() for i in range(0, len(word), MAX_CHARACTERS)
    ]
    parts = []
    while len(words) > max_words:
        share = -(-len(words) // -(-len(words) // max_words))
        cut = next((i for i in range(share, share // 2, -1) if words[i - 1][-1] in ",;:"), share)
        parts.append(words[:cut])
        words = words[cut:]
    return [" ".join(part) for part in [*parts, words]]
