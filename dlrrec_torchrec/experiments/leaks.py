"""The leaks that could make a test look better than it is, and shards in which they are open on purpose.

An ordinary run cannot make such shards: leaks are no settings. `leaky_splits` and `leaky_shards` do what they
do to the folders of ordinary stages, and say so in every manifest that they write.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.eight_leaks import LEAKS
from dlrrec_torchrec.experiments.leaky_shards import VIEWS, Known, compose
from dlrrec_torchrec.experiments.leaky_splits import (
    filtered_reviews,
    one_row_a_picture,
    recombine,
    with_copies,
)
from dlrrec_torchrec.extract.encoder import Encoder
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.prepare.stage import prepare
from dlrrec_torchrec.split.stage import split
from dlrrec_torchrec.stages.actions import extract_settings
from dlrrec_torchrec.store.manifest import digest, jsonable
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.swing_stage import neighbors

FILTER = 2  # reviews of a user and of an item: MMREC section 3.2 leaves out ids with one


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
        Scenario("a+b+c+d+g+h", "everything but (e) and (f)", _ALL, row=True, copies=1.0),
    )
}


def leaky_shards(scenario: Scenario) -> Callable[[RunConfig, RunPaths], None]:
    """What makes the shards of a scenario: the settings of a seed, its folders -> `paths.shards`."""

    def make(config: RunConfig, paths: RunPaths) -> None:
        make_leaky(scenario, config, paths)

    return make


def make_leaky(
    scenario: Scenario, config: RunConfig, paths: RunPaths, encoder: Encoder | None = None
) -> None:
    """Write `paths.shards` from `paths.reviews` and `paths.items`, with the leaks of a scenario; `split`,
    `content` and `swing` beside them are links to what they were made of.

    Splits, content and neighbours are kept in a folder `leaks` beside the reviews, for the scenarios that
    share them; each is made once. The rows are split as protocol `strict` does, whatever the protocol says:
    that decides by which rows the training chooses its epoch, (e).

    Args:
        config: of a seed; prepare.affinity and prepare.statistics do not count.
        encoder: another one than `config.extract` names.

    Raises DataError as the stages and the makers of leaky splits do.
    """
    paths.cache.resolve().mkdir(parents=True, exist_ok=True)
    shared = paths.reviews.resolve().parent / "leaks"
    work = shared / digest(
        [jsonable(getattr(config, name)) for name in ("split", "extract", "pictures", "llm")]
    )
    reviews, split_dir = paths.reviews, work / "split"
    if scenario.filtered:
        reviews, split_dir = shared / f"filtered-{FILTER}", work / "split-f"
        filtered_reviews(paths.reviews, reviews, FILTER)
    split(config.split, "strict", reviews, split_dir)
    if scenario.pictures:
        plain, split_dir = split_dir, work / f"split-h-{scenario.pictures}"
        one_row_a_picture(reviews, plain, split_dir, config.split, scenario.pictures == "pictured")
    if scenario.copies:
        plain, split_dir = split_dir, work / f"split-h-{scenario.copies:g}"
        with_copies(plain, split_dir, scenario.copies, config.split.seed)
    views = {"base"} | {at[0] for pair in scenario.known.views.values() for at in pair if at}
    settings = dataclasses.replace(
        config.prepare, affinity=False, statistics="row" if scenario.row else "folds"
    )
    shards = {}
    for view in sorted(views):
        viewed = split_dir if view == "base" else split_dir.with_name(f"{split_dir.name}-{view}")
        if view != "base":
            recombine(split_dir, viewed, VIEWS[view])
        trained = viewed if view == "all" else split_dir  # `own` has the training rows of `base`
        content, swing = (_beside(trained, name) for name in ("content", "swing"))
        extracting: dict[str, Any] = extract_settings(config)
        extract(config.extract, trained, paths.items, content, paths.cache, encoder, **extracting)
        neighbors(config.swing, trained, swing)
        shards[view] = _beside(viewed, f"shards-{settings.statistics}")
        prepare(settings, viewed, content, swing, paths.items, shards[view])
    compose(shards, scenario.known, paths.shards)
    for link, made in ((paths.split, split_dir), (paths.content, "content"), (paths.swing, "swing")):
        target = made if isinstance(made, Path) else _beside(split_dir, made)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(os.path.relpath(target, link.parent.resolve()))


def _beside(split_dir: Path, name: str) -> Path:
    """The folder of what a stage makes of a split: "split-h-1" -> "content-h-1"."""
    return split_dir.with_name(name + split_dir.name.removeprefix("split"))
