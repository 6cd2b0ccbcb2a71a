"""The leaks that could make a test look better than it is, and the ways in which they are measured."""

from __future__ import annotations

import dataclasses

LEAKS = {
    "a": "own review kept in a training row's summaries, vectors, categories and price tag",
    "b": "tested rows' own reviews in summaries, vectors, categories and price tag",
    "c": "SWING neighbours from all rows, tested ones too",
    "d": "a label's own rating in mean ratings",
    "e": "epoch chosen on the test rows",
    "f": "filter on activity before the split",
    "g": "training rows leave out their own review alone, without folds",
    "h": "the same review on both sides of the split",
}
KEY = "leak"  # in the settings of a manifest: what was done to a folder on purpose
FILTER = 2  # reviews of a user and of an item: MMREC section 3.2 leaves out ids with one


@dataclasses.dataclass(frozen=True)
class Known:
    """What the rows know that they must not.

    Attributes:
        own_content: a training row's vectors, categories and price tag are made of its own review too.
        tested_content: those of all rows are made of validation and test rows' reviews too; of a training
            row without its own fold, unless it has `own_content`.
        own_rating, tested_ratings: the same of mean ratings and counts.
        tested_pairs: SWING's neighbours are of all rows.
    """

    own_content: bool = False
    tested_content: bool = False
    own_rating: bool = False
    tested_ratings: bool = False
    tested_pairs: bool = False

    @property
    def views(self) -> dict[str, tuple[tuple[str, str], tuple[str, str] | None]]:
        """Kind of column -> (view, part) of the training rows, and of the others; None: their own parts."""
        content = _taken(self.own_content, self.tested_content)
        return {
            "content": content,
            "means": _taken(self.own_rating, self.tested_ratings),
            "positives": _taken(False, self.tested_pairs),
        }


def _taken(own: bool, tested: bool) -> tuple[tuple[str, str], tuple[str, str] | None]:
    view = "all" if tested else "own" if own else "base"
    return (view, "val" if own else "train"), (("all", "test") if tested else None)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Which leaks are open in shards; (e) is the training's, not the shards'.

    Attributes:
        name: letters of LEAKS, and what distinguishes two ways to open one.
        line: what is done, in words.
        known: (a) to (d).
        filtered: (f).
        row: (g).
        copies: (h): share of the validation and test rows with a copy among the training rows.
        pictures: (h): "all": every picture of a review is a row, and a review without one is one row;
            "pictured": the same of reviews with a picture alone; "": reviews are rows.
    """

    name: str
    line: str
    known: Known = Known()
    filtered: bool = False
    row: bool = False
    copies: float = 0.0
    pictures: str = ""

    @property
    def other_rows(self) -> bool:
        """Its test rows are not those of the clean split of the same seed."""
        return self.filtered or bool(self.pictures)


_ALL = Known(*[True] * 5)
# Features of a user and of an item that are made once, for all rows alike: copies of a row are the same row.
_BY_ID = Known(own_content=True, own_rating=True)
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("clean", "none: five folds, neighbours and filter by training rows"),
        Scenario("a", LEAKS["a"], Known(own_content=True)),
        Scenario("b", LEAKS["b"], Known(tested_content=True)),
        Scenario("a+b", "all reviews summarised", Known(own_content=True, tested_content=True)),
        Scenario("c", LEAKS["c"], Known(tested_pairs=True)),
        Scenario("d-own", "a training row's own rating in its means", Known(own_rating=True)),
        Scenario("d", "means of all ratings, tested ones too", Known(own_rating=True, tested_ratings=True)),
        Scenario("a+b+c+d", "everything made of all reviews", _ALL),
        Scenario("f", LEAKS["f"], filtered=True),
        Scenario("g", LEAKS["g"], row=True),
        Scenario("h-half", "half of the tested reviews among the training rows too", copies=0.5),
        Scenario("h", "every tested review among the training rows too", copies=1.0),
        Scenario("h-pictures", "a row for each picture, split at random", pictures="all"),
        Scenario("h-pictured", "the same of reviews with a picture alone", pictures="pictured"),
        Scenario("g+h", "(g), and every tested review among the training rows", row=True, copies=1.0),
        Scenario("a+d+h-half", "half of the tested reviews twice, features by id", _BY_ID, copies=0.5),
        Scenario("a+d+h", "every tested review twice, features by id", _BY_ID, copies=1.0),
        Scenario("a+d+h-pictures", "a row for each picture, features by id", _BY_ID, pictures="all"),
        Scenario("a+d+h-pictured", "the same of reviews with a picture alone", _BY_ID, pictures="pictured"),
        Scenario("a+b+c+d+h", "everything but (e), (f) and (g)", _ALL, copies=1.0),
    )
}
