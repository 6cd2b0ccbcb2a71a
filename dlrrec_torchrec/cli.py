"""The `dlrrec` command: one sub-command for each stage, `run` for all of them."""

from __future__ import annotations

import argparse
import bdb
import contextlib
import errno
import os
import sys

from dlrrec_torchrec import __version__
from dlrrec_torchrec.benchmarks.command import add_bench
from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.flags import add_command, add_flags, at_least, run_settings
from dlrrec_torchrec.config.names import sections
from dlrrec_torchrec.config.read import variant
from dlrrec_torchrec.config.saved import kept_settings
from dlrrec_torchrec.distributed.launcher import is_first_rank
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.experiments.command import add_audit, add_tune
from dlrrec_torchrec.experiments.experiment import add_experiment
from dlrrec_torchrec.extract.command import add_cache, add_extract_modes
from dlrrec_torchrec.extract.llm.one_budget import one_budget
from dlrrec_torchrec.sharding.command import add_plan
from dlrrec_torchrec.stages import LAST, STAGES, Stage, Work, run, run_stage, settings_problems
from dlrrec_torchrec.store.errors import DataError, Unfinished
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.store.progress import progress_shown

# No space, a file larger than allowed, a quota that is used up, a disk that may not be written to.
_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
# A file where a folder should be, a name that may not be read or written, or is too long.
_NAME = (errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: input that cannot be used; 3: stopped, goes on)."""
    arguments = build_parser().parse_args(argv)
    try:
        with quiet(), progress_shown(getattr(arguments, "progress", True)), one_budget():
            return arguments.action(arguments) or 0
    except DataError as error:
        print(f"dlrrec: {error}", file=sys.stderr)
        return 3 if isinstance(error, Unfinished) else 2
    except (KeyboardInterrupt, bdb.BdbQuit):  # Ctrl-C, or a debugger's `quit`
        print("dlrrec: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of Arrow too
        if error.errno in _NAME and error.filename:
            reason = os.strerror(error.errno).lower()
            print(f"dlrrec: {error.filename}: {reason}; name another file or folder", file=sys.stderr)
            return 2
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"dlrrec: {os.strerror(error.errno).lower()}{where}; what is done is kept: make room, and "
            "the same command goes on",
            file=sys.stderr,
        )
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The whole parser, for the command line and for the tests that check documented commands."""
    parser = argparse.ArgumentParser(
        prog="dlrrec", description="From raw reviews to ranked recommendations with DLRREC on TorchRec."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    for stage in STAGES.values():
        _add_stage(commands, stage)
    _add_recommend(commands)
    add_bench(commands)
    add_plan(commands)
    add_audit(commands)
    add_tune(commands)
    add_experiment(commands)
    add_cache(commands)
    doctor = add_command(
        commands, "doctor", "what is installed, and whether it fits together", "dlrrec doctor", of_run=False
    )
    doctor.set_defaults(action=_doctor)
    return parser


def _add_run(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "run",
        "all stages in order, skipping those that are up to date",
        "dlrrec run --config configs/demo.yaml\n"
        "dlrrec run --config configs/zomato.yaml --reviews reviews.csv --items restaurants.csv --seeds 5\n"
        "dlrrec run --config configs/demo.yaml --set train.lr=0.003 contrastive.temperature=0.2",
        note="Every setting is a flag here too. Where two sections have one of the same name, it names the\n"
        "section too, as in `dlrrec run --split.folds 5`.",
        usage="dlrrec run [--config FILE] [--run-dir FOLDER] [--until STAGE] [--FLAG VALUE ...]",
    )
    command.add_argument("--until", choices=STAGES, default=LAST, help=f"last stage to run (default: {LAST})")
    command.add_argument("--force", action="store_true", help="start over; only the cache of vectors is kept")
    command.add_argument(
        "-n", type=at_least(1), default=10, help="recommendations shown at the end (default: 10)"
    )
    _add_no_progress(command)
    add_flags(command, RunConfig, only=("protocol", "seeds", "refit"))
    for name, kind in sections().items():
        line = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        group = command.add_argument_group(f"{name}: {line}")
        add_flags(group, kind, name, short_flags=False)
    command.set_defaults(action=_run)


def _add_stage(commands: argparse._SubParsersAction, stage: Stage) -> None:
    command = add_command(commands, stage.name, stage.line, stage.example)
    add_flags(command, RunConfig, only=stage.settings)
    for name in stage.sections:
        add_flags(command, sections()[name], name)
    if stage.each != "run":
        _add_seed_number(command)
    if stage.each == "variant":
        command.add_argument("--variant", help="one variant of the configuration (default: all)")
    if stage.progress:
        _add_no_progress(command)
    command.set_defaults(action=_stage, stage=stage)
    if stage.name == "extract":
        add_extract_modes(command, _stage)


def _add_recommend(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "recommend",
        "rank the items that a user has not reviewed",
        "dlrrec recommend --run-dir runs/demo --user u00012 -n 10",
    )
    command.add_argument("--user", required=True, help="user id as in the reviews")
    command.add_argument("-n", type=at_least(1), default=10, help="how many (default: 10)")
    command.add_argument("--variant", help="trained variant (default: the one that validation prefers)")
    command.add_argument(
        "--evaluated",
        action="store_true",
        help="the model that was evaluated, trained on the training rows alone (default: the one that "
        "`dlrrec refit` trained on all reviews, where there is one)",
    )
    command.add_argument("--include-seen", action="store_true", help="rank items the user has reviewed too")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    _add_seed_number(command)
    command.set_defaults(action=_recommend)


def _add_seed_number(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed-number", type=int, help="repetition of a run with several seeds")


def _add_no_progress(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no progress bars (without a terminal on stderr there are none anyway)",
    )


def _seed_numbers(arguments: argparse.Namespace, config: RunConfig) -> list[int]:
    """The seeds to work on: the requested one, or all."""
    number = getattr(arguments, "seed_number", None)
    if number is not None and not 0 <= number < config.seeds:
        raise DataError(f"--seed-number {number}: this run has the seeds 0 to {config.seeds - 1}")
    return list(range(config.seeds)) if number is None else [number]


def _run(arguments: argparse.Namespace) -> int:
    config, folder = run_settings(arguments, check=settings_problems)
    all_paths = run(config, folder, until=arguments.until, force=arguments.force)
    if arguments.until != LAST:
        return 0
    from dlrrec_torchrec.serving.choose import served
    from dlrrec_torchrec.serving.recommend import example_user, recommend

    first = all_paths[0]
    if shown := STAGES[LAST].shown:
        print("\n" + shown(Work(config, first, all_paths)))
    model = served(first, config.variants, evaluated=not config.refit)
    user = example_user(model.shards_dir)
    ranked = recommend(
        model.shards_dir,
        model.train_dir,
        user,
        arguments.n,
        reviews_dir=first.reviews,
        model=model.text,
    )
    print(ranked.to_text())
    print(f"more:   dlrrec recommend --run-dir {folder} --user ID -n {arguments.n}")
    print(f"report: {first.report / 'index.html'}")
    return 0


def _stage(arguments: argparse.Namespace) -> int:
    stage: Stage = arguments.stage
    config, folder = run_settings(arguments, check=lambda config: settings_problems(config, [stage.name]))
    all_paths, first = run_paths(folder, config.seeds), is_first_rank()
    variants = [name] if (name := getattr(arguments, "variant", None)) else None
    say = print if first else lambda line: None
    with kept_settings(folder, config) if first else contextlib.nullcontext():
        for number in [0] if stage.each == "run" else _seed_numbers(arguments, config):
            run_stage(stage.name, config, all_paths, number, variants, say=say)
    if stage.shown and first:
        print(stage.shown(Work(config, all_paths[0], all_paths)))
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.serving.choose import served
    from dlrrec_torchrec.serving.recommend import recommend

    config, folder = run_settings(arguments)
    if not folder.is_dir():
        raise DataError(f"--run-dir {folder}: there is no such folder")
    paths = run_paths(folder, config.seeds)[_seed_numbers(arguments, config)[0]]
    if arguments.variant:
        variant(config, arguments.variant)  # refuses one that this run does not have
    model = served(paths, config.variants, arguments.variant, arguments.evaluated)
    ranked = recommend(
        model.shards_dir,
        model.train_dir,
        arguments.user,
        arguments.n,
        include_seen=arguments.include_seen,
        reviews_dir=paths.reviews,
        model=model.text,
    )
    print(ranked.to_json() if arguments.json else ranked.to_text())
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from dlrrec_torchrec.doctor import doctor

    return doctor()
