"""Price tags from what reviews say about prices, with negation ("not cheap") and degree ("a bit pricey")."""

from __future__ import annotations

import re

import numpy as np

CHEAP, FAIR, OVER = range(3)  # columns of the evidence
CLEAR = 0.2  # balance of the remarks beyond which a tag is not "fair"

_NOUN = r"(?:pric\w+|costs?|rates?|charges|bill|tariffs?)"
_GAP = r"(?:\s+[\w'%]+){0,3}?\s+"  # up to three words between
_POCKET = r"(?:pockets?|wallets?|budget|purse)"
_PHRASES = [  # (column, pattern): the meaning before negation is considered
    (OVER, r"over[\s-]?pric\w+|over[\s-]?charg\w+|over[\s-]?rated pric\w+"),
    (OVER, r"(?:expensive|pricey|pricy|costly|exorbitant\w*|extortionate|steep(?:ly)?|lavish prices?)"),
    (
        OVER,
        rf"(?:high|higher|highly|heavy|hefty|insane|sky[\s-]?high|too much|premium)\s+(?:\w+\s+)?{_NOUN}",
    ),
    (
        OVER,
        rf"{_NOUN}{_GAP}(?:(?:on|at)\s+(?:the|a)\s+)?(?:\w+\s+)?(?:high|higher|heavy|steep|premium|sky[\s-]?high)",
    ),
    (OVER, rf"(?:heavy|hard|tough|harsh|hole|dent)\s+(?:\w+\s+)?(?:on|in|to|for)\s+(?:\w+\s+)?{_POCKET}"),
    (OVER, r"(?:rip|ripped|ripping)[\s-]?off|loot(?:ing|ed|ers?)?|fleec\w+|daylight robbery"),
    (
        CHEAP,
        r"cheap(?:er|est|ly)?(?!\s+(?:quality|material|behaviou?r|service|staff|looking|trick\w*|stuff|taste))",
    ),
    (CHEAP, r"inexpensive|affordabl\w+|economical\w*|low[\s-]?cost|low[\s-]?budget|student[\s-]?friendly"),
    (CHEAP, rf"(?:{_POCKET}|pocket)[\s-]*(?:friendly|frndly|freindly|wise good)"),
    (
        CHEAP,
        rf"(?:light|easy|good|great|less)\s+on\s+(?:\w+\s+)?{_POCKET}|(?:in|within|under)\s+(?:\w+\s+)?budget",
    ),
    (CHEAP, rf"(?:low|lower|less|lesser|cheap|minimal|nominal|unbeatable|throwaway)\s+(?:\w+\s+)?{_NOUN}"),
    (
        CHEAP,
        rf"{_NOUN}{_GAP}(?:(?:on|at)\s+(?:the|a)\s+)?(?:\w+\s+)?(?:low|lower|less|cheap|nominal|minimal)",
    ),
    (
        FAIR,
        r"reasonabl\w+|resonabl\w+|(?:fairly|decently|moderately) priced|worth(?:y)? of (?:the )?price",
    ),
    (FAIR, rf"(?:decent|fair|good|great|moderate|right|okay|ok|nice|average|best|justified)\s+{_NOUN}"),
    (FAIR, rf"{_NOUN}{_GAP}(?:decent|fair|good|great|moderate|okay|ok|nice|average|justif\w+|right|fine)"),
    (FAIR, r"worth (?:\w+\s+){0,3}?(?:money|price|penny|pennies|rupees?|buck|cost|paying|spending|amount)"),
    (
        FAIR,
        r"(?:value|bang|vfm) (?:for|of) (?:\w+\s+)?(?:money|buck|price)|value[\s-]for[\s-]money|paisa vasool",
    ),
]
PATTERNS = [(column, re.compile(rf"\b(?:{pattern})\b")) for column, pattern in _PHRASES]
_TRIGGER = re.compile(
    r"pric|cost|expens|cheap|budget|afford|worth|money|pocket|wallet|reason|reson|econom|bill|value|steep|exorb"
    r"|rip|loot|charg|rate|buck|paisa|vfm|fleec|tariff|student|robb"
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|nothing|isn'?t|wasn'?t|aren'?t|weren'?t|don'?t|doesn'?t|didn'?t|hardly|without|nor|neither"
    r"|can'?t|cannot|won'?t|wouldn'?t|ain'?t)(?:\s+(?!(?:bad|only|just)\b)[\w']+){0,2}\s*\Z"
)
_WEAK = re.compile(
    r"\b(?:bit|little|slightly|somewhat|quite|kinda|kind of|fairly|comparatively|relatively)\s+(?:\w+\s+)?\Z"
)
_STRONG = re.compile(
    r"\b(?:very|too|so|extremely|way|super|really|highly|damn|ridiculously|insanely)\s+(?:\w+\s+)?\Z"
)
_CLAUSE = re.compile(r"[.!?;,\n]|\b(?:but|however|though|although|yet)\b")
_NEGATED = {OVER: FAIR, CHEAP: OVER, FAIR: OVER}  # "not expensive" is fair; "not cheap", "not worth" are over


def price_evidence(texts: list[str | None]) -> np.ndarray:
    """What each text says about the price, f32 [D, 3]: weights of cheap, fair, overpriced; zeros: nothing."""
    evidence = np.zeros((len(texts), 3), np.float32)
    for row, text in enumerate(texts):
        text = (text or "").lower().replace("\u2019", "'")
        if _TRIGGER.search(text):
            for clause in _CLAUSE.split(text):
                if clause and _TRIGGER.search(clause):
                    column, weight = _judge(clause)
                    if weight:
                        evidence[row, column] += weight
    return evidence


def price_tag(evidence: np.ndarray) -> str:
    """One of schema.PRICE_TAGS for summed evidence f32 [3]: the sign of overpriced - cheap, if clear."""
    total = float(evidence.sum())
    if total == 0:
        return "none"
    balance = float(evidence[OVER] - evidence[CHEAP]) / (
        total + 1
    )  # + 1: one remark does not make an extreme
    return "overpriced" if balance > CLEAR else "cheap" if balance < -CLEAR else "fair"


def _judge(clause: str) -> tuple[int, float]:
    """Column and weight of the first remark on price in the clause; weight 0: there is none."""
    hits = [(m.start(), -m.end(), column) for column, pattern in PATTERNS if (m := pattern.search(clause))]
    if not hits:
        return 0, 0.0
    start, _, column = min(hits)
    preceding = clause[:start]
    if _NEGATION.search(preceding):
        return _NEGATED[column], 0.5
    if _WEAK.search(preceding):
        return column, 0.5
    return column, 1.5 if _STRONG.search(preceding) else 1.0
