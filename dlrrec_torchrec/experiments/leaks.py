"""Shards in which leaks are open on purpose.

An ordinary run cannot make such shards: leaks are no settings. `leaky_splits` and `leaky_shards` do what they
do to the folders of ordinary stages, and say so in every manifest that they write.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.experiments.eight_leaks import FILTER, Scenario
from dlrrec_torchrec.experiments.leaky_shards import VIEWS, compose
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
    statistics = "ordered" if config.extract.fold_by == "time" else "folds"
    settings = dataclasses.replace(
        config.prepare, affinity=False, statistics="row" if scenario.row else statistics
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
