"""An experiment is run: shards of its groups are made, its cells trained and measured, each once.

    OUT/data/KEY/                   reviews, items and the cache of vectors, of each source of reviews
    OUT/groups/GROUP/seed-K/shards  what the group's cells are trained on
    OUT/groups/GROUP/seed-K/cells/CELL   what was measured of a trained cell (`measures`)

A cell that is measured is not trained again, a training that was interrupted goes on from its last
checkpoint, and shards that are current are kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dlrrec_torchrec.config import RunConfig, for_seed, variant
from dlrrec_torchrec.config.read import raise_problems
from dlrrec_torchrec.config.saved import kept_settings
from dlrrec_torchrec.experiments.definitions import Experiment, Group
from dlrrec_torchrec.experiments.measures import is_measured, measure
from dlrrec_torchrec.stages import STAGES, run_stage, settings_problems
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name, remove_own, write_text_atomic
from dlrrec_torchrec.store.manifest import digest, jsonable
from dlrrec_torchrec.store.paths import RunPaths, run_paths
from dlrrec_torchrec.store.progress import track
from dlrrec_torchrec.store.shard_facts import ShardFacts

LOG = "log.txt"
_PREPARED = "prepared.json"
_SHARED = {  # output of a stage -> the sections that it follows from
    "split": ("ingest", "split"),
    "content": ("ingest", "split", "extract", "llm", "pictures"),
    "swing": ("ingest", "split", "swing"),
}
_WRITERS = {"split": "split", "content": "extract", "swing": "swing"}


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell of one seed: everything that another process needs to train and measure it."""

    title: str
    group: str
    config: RunConfig  # as the seed and the cell change it
    paths: RunPaths  # of the seed
    cell: str
    lists: bool  # measure lists by content alone
    keep: bool  # the training, after it is measured

    @property
    def measured(self) -> Path:
        return self.paths.root / "cells" / self.cell

    def done(self) -> bool:
        return is_measured(self.config, self.paths.shards, self.measured, self.lists)


def check_experiment(experiment: Experiment) -> None:
    """Raise DataError naming everything that is wrong with the settings of its groups."""
    problems: list[str] = []
    for group in experiment.groups:
        check_name(group.name, f"experiment {experiment.name}")
        problems += settings_problems(group.run_config, list(STAGES)[: list(STAGES).index("evaluate")])
    raise_problems(problems)


def group_paths(out: Path, group: Group) -> list[RunPaths]:
    """The folders of a group's seeds."""
    return run_paths(out / "groups" / group.name, group.config.seeds)


def jobs(experiment: Experiment, out: Path, keep: bool = False) -> list[Job]:
    """All cells of all seeds; those of the first seed first, so that there is something to see early."""
    found = []
    for number in range(max(group.config.seeds for group in experiment.groups)):
        for group in experiment.groups:
            if number >= group.config.seeds:
                continue
            seeded, paths = for_seed(group.run_config, number), group_paths(out, group)[number]
            for cell in group.cells:
                title = f"{group.name} {cell.name}" + (f" seed {number}" if group.config.seeds > 1 else "")
                config = variant(seeded, cell.name)
                found.append(Job(title, group.name, config, paths, cell.name, experiment.lists, keep))
    return found


def train_and_measure(job: Job) -> str:
    """Train the cell and measure it, unless that is done; returns a line on it."""
    if job.done():
        return f"{job.title}: up to date"
    from dlrrec_torchrec.training.stage import train

    config, folder = job.config, job.paths.train(job.cell)
    trained = train(
        config.model, config.contrastive, config.train, config.protocol, job.paths.shards, folder, config.list
    )
    measured = measure(config, folder, job.paths.shards, job.measured, job.lists)
    if not job.keep:
        remove_own(folder, "train")
    facts = measured.facts
    auc = "–" if facts["test"]["auc"] is None else f"{facts['test']['auc']:.3f}"
    return f"{job.title}: AUC {auc}, epoch {trained.facts['best_epoch']}, {facts['seconds']:.0f} s"


def prepare_groups(experiment: Experiment, out: Path, say: Callable[[str], None]) -> None:
    """Make the shards of all groups and seeds; what several groups have in common is made once."""
    for group in experiment.groups:  # all sources first: what cannot be read is told before hours of work
        data = out / "data" / data_key(group.run_config)
        _stage("ingest", group.run_config, [RunPaths(data, data)], 0, say)
        (data / "cache").mkdir(exist_ok=True)
    owners: dict[str, Path] = {}
    for group in experiment.groups:
        all_paths, config = group_paths(out, group), group.run_config
        data = out / "data" / data_key(config)
        for name in ("reviews", "items", "cache"):
            _link(all_paths[0].shared / name, data / name)
        with kept_settings(all_paths[0].shared, config):
            for number, paths in enumerate(all_paths):
                seeded = for_seed(config, number)
                if group.make is not None:
                    group.make(seeded, paths)
                    _check_vectors(group, paths)
                    continue
                for output, sections in _SHARED.items():
                    key = digest([output, seeded.protocol, *(jsonable(getattr(seeded, s)) for s in sections)])
                    own = getattr(paths, output)
                    owner = owners.setdefault(key, own)
                    if owner == own and own.is_symlink():
                        own.unlink()  # another group's that is not part of this call
                    if owner == own or (own.exists() and not own.is_symlink()):
                        _stage(_WRITERS[output], config, all_paths, number, say)
                    else:
                        _link(own, owner)
                _stage("prepare", config, all_paths, number, say)
                _check_vectors(group, paths)


def _check_vectors(group: Group, paths: RunPaths) -> None:
    """Raise DataError, before any cell is trained, where cells ask for vectors that no shard has."""
    held = [modality.name for modality in ShardFacts.read(paths.shards).modalities]
    asking: dict[str, list[str]] = {}
    for cell in group.cells:
        for name in variant(group.run_config, cell.name).model.modalities or ():
            asking.setdefault(name, []).append(cell.name)
    if missing := [name for name in asking if name not in held]:
        cells = {cell for name in missing for cell in asking[name]}
        way_out = "give data that have them"
        if missing == ["item_image"]:  # the experiments do without pictures where settings say so
            way_out = (
                "no review and no item has a picture or a caption; leave these cells, or the pictures, out "
                f"with --set 'prepare.modalities=[{', '.join(held)}]', or with that line in its configuration"
            )
        raise DataError(
            f"--data: '{group.levels['data']}' has no {', '.join(missing)}, which {len(cells)} of "
            f"{len(group.cells)} cells ask for ({', '.join(sorted(cells))}): {way_out}"
        )


def data_key(config: RunConfig) -> str:
    """The name of the folder of a source of reviews."""
    return f"{config.ingest.source}-{digest(jsonable(config.ingest))[:8]}"


def prepare_once(
    experiment: Experiment, out: Path, share: tuple[int, int], say: Callable[[str], None]
) -> None:
    """`prepare_groups` in share 0; other shares wait until it is done."""
    marker = out / _PREPARED
    text = digest([jsonable([group.run_config for group in experiment.groups]), experiment.name])
    if share[0] == 0:
        marker.unlink(missing_ok=True)
        prepare_groups(experiment, out, say)
        write_text_atomic(marker, text)
        return
    told = False
    while not marker.exists() or marker.read_text(encoding="utf-8") != text:
        if not told:
            say(f"waits until share 0 of {share[1]} has made the shards")
        told = True
        time.sleep(1.0)


@contextlib.contextmanager
def logged(out: Path) -> Iterator[None]:
    """What trainings say goes to OUT/log.txt for the block."""
    with open(out / LOG, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        yield


def run_here(work: Sequence[Job], out: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Train and measure one after the other in this process; title -> why a cell failed."""
    failed = {}
    for number, job in enumerate(track(work, "cells", len(work), transient=True), 1):
        try:
            with logged(out):
                line = train_and_measure(job)
        except DataError as error:
            failed[job.title] = str(error)
            line = f"{job.title}: failed: {error}"
        say(f"[{number}/{len(work)}] {line}")
    return failed


def _stage(
    name: str, config: RunConfig, all_paths: Sequence[RunPaths], number: int, say: Callable[[str], None]
) -> None:
    """A stage of a run; says something only where there was something to do."""
    run_stage(name, config, all_paths, number, say=lambda line: None if "up to date" in line else say(line))


def _link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`. Raises DataError where something else is there."""
    link.parent.mkdir(parents=True, exist_ok=True)
    path = os.path.relpath(target, link.parent)
    if link.is_symlink():
        if os.readlink(link) == path:
            return
        link.unlink()
    elif link.exists():
        raise DataError(f"{link}: is in the way; move it, or give another --out")
    link.symlink_to(path)
