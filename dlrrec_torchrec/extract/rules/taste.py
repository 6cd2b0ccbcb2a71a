"""Whom a sentence speaks of: the place, or what its writer likes or avoids anywhere.

"Their sushi was cold" tells the place's type; "I could eat sushi every week" tells the writer's taste, and
nothing certain about the place. Counted for the place, such sentences give every place its guests' types.
"""

from __future__ import annotations

import re

PLACE, LIKED, AVOIDED = 0, 1, -1

# Habits and preferences in the present tense; a remark on what was eaten here matches none of them.
LIKES = re.compile(
    r"""
    \b(?: (?:fan|lover|fanatic|sucker|weakness|soft\ spot) \ (?:of|for) (?!\ the\b)
    | (?:i|we) \ (?:can|could) \ (?:always\ )? (?:eat|drink|live\ on) (?!\ (?:the|it|this|that|all)\b)
    | (?:crazy|mad|nuts) \ (?:about|for|over)
    | i (?:\ am|['’]m)? \ always \ (?:order|look|get|crave|eat|drink|hunt|search|choose|pick|go\ for)
    | (?:i|we) \ (?:usually|normally|generally|often) \ (?:order|look|get|crave|eat|drink|go|choose|pick)
    | my \ (?:comfort\ food | go[\ -]to | guilty\ pleasure)
    | my \ favou?rite \ (?:food|cuisine|dish|kind|type)s? \ (?:is|are|of)
    | what \ i \ (?:usually|always|normally)
    | (?:give\ me|choose|pick|take|prefer) \b .{1,40}? \ (?:over|above|before) \ any(?:thing|\ other)
    | (?:hunt|look|search)ing \ for \ (?:the|a) \ (?:perfect|best|good)
    | i \ (?:really\ |just\ )? (?:adore|crave|prefer|live\ for)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
AVOIDS = re.compile(
    r"""
    \b(?: (?:never|not|\w+n['’]t) \ (?:been\ )? my \ (?:thing|cup|kind|type|favou?rite|style)
    | (?:not|\w+n['’]t|never|hardly) \ (?:been\ )? (?:really\ )? (?:(?:the|a|much\ of\ a) \ )?
      (?:(?:big|biggest|huge|great|greatest)\ )? (?:fan|lover) \ of (?!\ the\b)
    | (?:do\ not|don['’]?t) \ (?:usually|normally|generally|really) \ (?:care|like|eat|drink|enjoy|order|go)
    | (?:usually|normally|generally|always) \ (?:avoid|skip)
    | (?:rarely|seldom|hardly\ ever) \ (?:enjoy|eat|drink|order|like)
    | i (?:\ have|['’]ve)? \ never \ (?:like|liked|cared|enjoyed|understood)
    | i \ (?:really\ )? (?:avoid|dislike|detest)
    | (?:can\ ?not|can['’]?t) \ stand
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# What such a sentence says of the place it says in these words ("I prefer the dumplings at this place"); to
# have come here says nothing of it.
OF_PLACE = re.compile(
    r"""
    \b(?: their | theirs | they | (?:this|the) \ (?:place|restaurant|shop|cafe|joint) )\b
    | (?<!\bcome) (?<!\bcame) (?<!\bme) (?<!\bus) \ here\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def of_whom(sentence: str) -> int:
    """PLACE, or LIKED or AVOIDED where the sentence is on the writer's own taste."""
    avoids = AVOIDS.search(sentence)
    if not (avoids or LIKES.search(sentence)) or OF_PLACE.search(sentence):
        return PLACE
    return AVOIDED if avoids else LIKED
