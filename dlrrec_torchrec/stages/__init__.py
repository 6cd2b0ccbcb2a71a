"""The table of stages, and the main job: every stage in order, each skipped while its manifest matches.

A new stage is one entry of STAGES: the commands, `dlrrec run`, --until, --force, the report and the tests
read the rest from it. Nothing that a stage works with is imported before the stage is run.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dlrrec_torchrec.config import RunConfig, for_seed, variant
from dlrrec_torchrec.config.check import config_problems
from dlrrec_torchrec.config.read import raise_problems
from dlrrec_torchrec.config.saved import described_run, kept_settings
from dlrrec_torchrec.stages import actions
from dlrrec_torchrec.stages.actions import Work
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_output, remove_own
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.paths import RunPaths, run_paths


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: files in, files out."""

    name: str
    line: str  # of its help
    example: str  # of its help
    action: Callable[[Work], Manifest]
    inputs: tuple[str, ...]  # attributes of RunPaths: what it needs
    outputs: tuple[str, ...]  # the folders it writes, the one with its manifest first
    also_reads: tuple[str, ...] = ()  # where they exist
    sections: tuple[str, ...] = ()  # of the settings: its flags, and what is checked before it begins
    settings: tuple[str, ...] = ()  # of the run itself that are its flags too
    switch: str = ""  # the setting of the run itself without which `dlrrec run` leaves it out
    each: str = (
        "seed"  # it works once for each "seed", for each "variant" of each seed, or once for the "run"
    )
    check: Callable[[RunConfig], None] | None = None  # of settings that only its own code can judge
    input_check: Callable[[Work], None] | None = None  # of what `split` wrote, before hours of other stages
    shown: Callable[[Work], str] | None = None  # what it prints of its result
    progress: bool = False  # it shows a progress bar


def _report(work: Work) -> Manifest:
    from dlrrec_torchrec.report.stage import report

    names = list(work.config.variants)
    folders = manifest_folders(work.config, work.all_paths)
    told = described_run(work.paths.shared, work.config)
    return report(work.all_paths, names, folders, work.paths.report, *told)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "ingest",
            "read a source of reviews into the review table",
            "dlrrec ingest --source table --reviews reviews.csv --columns user=Reviewer item=Restaurant "
            "rating=Rating text=Review --run-dir runs/mine",
            actions.ingest,
            inputs=(),
            outputs=("reviews", "items"),
            sections=("ingest",),
            each="run",
            progress=True,
        ),
        Stage(
            "split",
            "filter the reviews and split them into training, validation and test rows",
            "dlrrec split --method last --min-reviews 3 --run-dir runs/mine",
            actions.split,
            inputs=("reviews",),
            outputs=("split",),
            sections=("split",),
            settings=("protocol",),
        ),
        Stage(
            "extract",
            "write summaries, vectors, price tags and categories from the training reviews",
            "dlrrec extract --folds 5 --run-dir runs/mine",
            actions.extract,
            inputs=("split",),
            also_reads=("items", "cache"),
            outputs=("content",),
            sections=("extract", "llm", "pictures"),
            check=actions.check_extract,
            progress=True,
        ),
        Stage(
            "swing",
            "find each user's and each item's SWING neighbours in the training rows",
            "dlrrec swing --top-k 20 --run-dir runs/mine",
            actions.swing,
            inputs=("split",),
            outputs=("swing",),
            sections=("swing",),
            check=actions.check_swing,
        ),
        Stage(
            "prepare",
            "join features, vectors and positives into training shards and entity tables",
            "dlrrec prepare --smoothing 3 --run-dir runs/mine\n"
            "dlrrec prepare --vectors item_audio=audio.parquet:track,embedding --run-dir runs/mine",
            actions.prepare,
            inputs=("split", "content", "swing"),
            also_reads=("items",),
            outputs=("shards",),
            sections=("prepare",),
            check=actions.check_prepare,
            input_check=actions.check_prepare_input,
            progress=True,
        ),
        Stage(
            "train",
            "train the run's variants, or one of them; also under torchrun",
            "dlrrec train --variant dlrrec --epochs 20 --run-dir runs/mine\n"
            "torchrun --nproc_per_node 2 -m dlrrec_torchrec train --run-dir runs/mine",
            actions.train,
            inputs=("shards",),
            outputs=("trainings",),
            sections=("model", "contrastive", "list", "train"),
            settings=("protocol",),
            each="variant",
            check=actions.check_train,
            progress=True,
        ),
        Stage(
            "evaluate",
            "score the test rows, and rank all items, by the variants, baselines and peers",
            "dlrrec evaluate --run-dir runs/mine\ndlrrec evaluate --no-peers --run-dir runs/mine",
            actions.evaluate,
            inputs=("shards", "trainings"),
            also_reads=("reviews", "split", "content"),
            outputs=("evaluation",),
            sections=("evaluate",),
            settings=("protocol",),
            progress=True,
        ),
        Stage(
            "refit",
            "train the variant that validation prefers again, on all reviews, for `dlrrec recommend`",
            "dlrrec refit --run-dir runs/mine",
            actions.refit,
            inputs=("reviews", "shards", "trainings"),
            also_reads=("items", "cache"),
            outputs=("final",),
            switch="refit",
            progress=True,
        ),
        Stage(
            "report",
            "draw figures, tables and one HTML page",
            "dlrrec report --run-dir runs/mine",
            _report,
            inputs=("evaluation",),
            also_reads=("reviews", "split", "content", "swing", "shards", "trainings"),
            outputs=("report",),
            each="run",
            shown=actions.show_report,
        ),
    )
}
LAST = list(STAGES)[-1]


def settings_problems(config: RunConfig, stages: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the settings that these stages use (default: with all settings), a line each."""
    chosen = [STAGES[name] for name in (STAGES if stages is None else stages)]
    problems = config_problems(config, [section for stage in chosen for section in stage.sections])
    for stage in chosen if not problems else ():
        try:
            if stage.check:
                stage.check(config)
        except DataError as error:
            problems.append(str(error))
    return problems


def work_of(
    stage: Stage,
    config: RunConfig,
    all_paths: Sequence[RunPaths],
    number: int,
    variants: Iterable[str] | None,
) -> Iterator[Work]:
    """What the stage works on for the seed `number`, one after the other."""
    seeded, paths = for_seed(config, number), all_paths[number]
    if stage.each != "variant":
        yield Work(seeded, paths, all_paths)
        return
    for name in config.variants if variants is None else variants:
        yield Work(variant(seeded, name), paths, all_paths, name)


def run_stage(
    name: str,
    config: RunConfig,
    all_paths: Sequence[RunPaths],
    number: int = 0,
    variants: Iterable[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Manifest]:
    """Run one stage for one seed, unless it is current, and return what it reports.

    Args:
        all_paths: the folders of all seeds.
        variants: those to work on, for a stage that works on each (default: all).
        say: gets one line on each piece of work that is finished.

    Raises DataError if an input is not there, naming the command that writes it, and if a folder holds what
    the stage did not write; before anything is done.
    """
    stage, manifests = STAGES[name], []
    pieces = list(work_of(stage, config, all_paths, number, variants))
    _check_outputs(stage, [all_paths[number]], [work.variant for work in pieces])
    for work in pieces:
        _check_inputs(stage, work)
        manifests.append(stage.action(work))
        say(describe(f"{name} {work.variant}".rstrip(), manifests[-1]))
    return manifests


def run(
    config: RunConfig,
    root: str | Path,
    *,
    until: str = LAST,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> list[RunPaths]:
    """Run every stage up to `until` for every seed; returns the folders, one for each seed.

    Stages that are current are not repeated, so an interrupted run goes on where it stopped. `force` starts
    over, keeping only the cache of vectors.

    Raises DataError, before any stage has begun, naming all settings that are wrong, or a folder that a stage
    would write but that holds something else; and after the split, for rows that a later stage would refuse.
    """
    raise_problems(settings_problems(config))
    all_paths = run_paths(root, config.seeds)
    chosen = _wanted(config, list(STAGES.values())[: list(STAGES).index(until) + 1])
    for stage in chosen:
        _check_outputs(stage, all_paths, config.variants)
    if force:
        _forget(all_paths)
    with kept_settings(root, config):
        for once, stages in itertools.groupby(chosen, lambda stage: stage.each == "run"):
            names = [stage.name for stage in stages]
            for number in [0] if once else range(config.seeds):
                if config.seeds > 1 and not once:
                    say(f"seed {number + 1} of {config.seeds}: {all_paths[number].root}")
                for name in names:
                    run_stage(name, config, all_paths, number, say=say)
                    if name == "split":
                        _check_split(config, all_paths, number, chosen)
    return all_paths


def _check_split(
    config: RunConfig, all_paths: Sequence[RunPaths], number: int, later: Iterable[Stage]
) -> None:
    for stage in later:
        if stage.input_check:
            for work in work_of(stage, config, all_paths, number, None):
                stage.input_check(work)


def describe(stage: str, manifest: Manifest) -> str:
    """One line on a finished stage."""
    if manifest.reused:
        return f"{stage:<14} up to date"
    return f"{stage:<14} {manifest.seconds:7.1f} s {manifest.peak_memory_mib:7,.0f} MiB  {manifest.rows_text}"


def manifest_folders(config: RunConfig, all_paths: Sequence[RunPaths]) -> dict[str, list[Path]]:
    """Where the stages before the report leave their manifests: stage, or stage and variant -> folders."""
    folders = {}
    before = itertools.takewhile(lambda stage: stage.name != "report", STAGES.values())
    for stage in _wanted(config, before):
        for name in config.variants if stage.each == "variant" else [""]:
            runs = all_paths[:1] if stage.each == "run" else all_paths
            label = f"{stage.name}: {name}" if name else stage.name
            folders[label] = [paths.folders(stage.outputs[0], [name])[0] for paths in runs]
    return folders


def _wanted(config: RunConfig, stages: Iterable[Stage]) -> list[Stage]:
    return [stage for stage in stages if not stage.switch or getattr(config, stage.switch)]


def _check_inputs(stage: Stage, work: Work) -> None:
    for name in stage.inputs:
        writer = next(s.name for s in STAGES.values() if name in s.outputs)
        for paths in work.all_paths if stage.each == "run" else [work.paths]:
            for folder in paths.folders(name, work.config.variants):
                if not (folder / "manifest.json").exists():
                    writer_call = f"dlrrec {writer} --run-dir {shlex.quote(str(paths.shared))}"
                    raise DataError(
                        f"{folder / 'manifest.json'}: not there; run `{writer_call}` first "
                        "(`dlrrec run` runs all stages in order)"
                    )


def _outputs(stage: Stage, paths: RunPaths, variants: Iterable[str]) -> list[tuple[str, Path]]:
    """The folders that a stage writes for one seed, each with the stage that its manifest names."""
    writers = [stage.name, *(f"{stage.name}-{name}" for name in stage.outputs[1:])]
    return [
        (writer, folder)
        for writer, name in zip(writers, stage.outputs, strict=True)
        for folder in paths.folders(name, variants)
    ]


def _check_outputs(stage: Stage, all_paths: Iterable[RunPaths], variants: Iterable[str]) -> None:
    for paths in all_paths:
        for writer, folder in _outputs(stage, paths, variants):
            check_output(folder, writer)


def _forget(all_paths: Iterable[RunPaths]) -> None:
    """Delete what the stages wrote, trainings of any variant included; what they did not write stays."""
    for paths in all_paths:
        for stage in STAGES.values():
            if stage.each == "variant":
                outputs = [(stage.name, folder) for folder in getattr(paths, stage.outputs[0]).glob("*")]
            else:
                outputs = _outputs(stage, paths, ())
            for writer, folder in outputs:
                remove_own(folder, writer)
