"""`dlrrec audit`, checks of a run's data, and `dlrrec tune`. Nothing heavy is imported before they run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.check import config_problems
from dlrrec_torchrec.config.flags import add_command, add_flags, at_least, run_settings
from dlrrec_torchrec.config.names import sections
from dlrrec_torchrec.config.read import VARYING
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.paths import run_paths

_LINE = "say which leaks a run opens and whether features tell their own labels; exit status 1 if so"


def add_audit(commands: Any) -> None:
    """Add `audit` to the `dlrrec` parser's sub-commands."""
    audit = commands.add_parser("audit", help=_LINE, description="Checks of a run's data.")
    checks = audit.add_subparsers(title="checks", metavar="CHECK", required=True)
    leakage = add_command(
        checks,
        "leakage",
        _LINE,
        "dlrrec audit leakage --run-dir runs/demo\n"
        "dlrrec audit leakage --run-dir runs/demo --all-features --draws 5\n"
        "dlrrec audit leakage --run-dir runs/demo --no-trees --json",
        note="First a table of eight leaks, (a) to (h), each with a verdict by settings, manifests and\n"
        "rows: open, trace (of too few rows to matter), closed or unknown. Then trees (LightGBM, the extra\n"
        "`audit`) learn from half of the training rows and score the other half and the validation and test\n"
        "rows. Of the same rows, both must be ranked equally well. Exit status 1: a leak is open, or the\n"
        "trees found one; 0: neither; 2: there are too few rows for the trees, or no such run. What each\n"
        "leak is worth: docs/leakage.md.",
    )
    leakage.add_argument("--all-features", action="store_true", help="vectors and categories too")
    leakage.add_argument(
        "--draws", type=at_least(1), default=3, help="halves drawn in each of three ways (default: 3)"
    )
    leakage.add_argument(
        "--tolerance",
        type=_finite(lambda value: value >= 0, "at least 0"),
        default=0.02,
        help="AUC by which the interval must exceed zero to be called a leak (default: 0.02)",
    )
    leakage.add_argument(
        "--trees",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit trees too; without them the table of leaks alone, in seconds (default: with)",
    )
    _add_seed_number(leakage)
    leakage.add_argument("--json", action="store_true", help="machine-readable output")
    leakage.set_defaults(action=_leakage)


def add_tune(commands: Any) -> None:
    """Add `tune` to the `dlrrec` parser's sub-commands."""
    tune = add_command(
        commands,
        "tune",
        "search better settings of a variant by its validation rows, on shards that are there",
        "dlrrec tune --run-dir runs/demo --minutes 30\n"
        "dlrrec tune --run-dir runs/demo --trials 40 --variant bce\n"
        "dlrrec tune --run-dir runs/demo --minutes 30 --search train.lr model.dropout=0..0.5 "
        "'model.over_arch=[[32,1],[128,1]]'",
        note="The first trial is the configuration as it is. The best one becomes RUN_DIR/tune/best.yaml,\n"
        "for `dlrrec run --config`. The same command goes on where it was stopped, within one budget.",
        usage="dlrrec tune [--config FILE] [--run-dir FOLDER] (--minutes M | --trials N) [--variant NAME] "
        "[--search SETTING[=VALUES] ...] [--FLAG VALUE ...]",
    )
    tune.add_argument("--variant", help="of the configuration (default: its first one)")
    tune.add_argument(
        "--minutes",
        type=_finite(lambda value: value > 0, "above 0"),
        help="of training, over all calls; the trial under way is finished",
    )
    tune.add_argument("--trials", type=at_least(1), help="in all calls, the first one included")
    tune.add_argument(
        "--search",
        nargs="+",
        action="extend",
        default=[],
        metavar="SETTING[=VALUES]",
        help="what to search instead of all that the configuration leaves at its default; values are "
        "LOW..HIGH (on a log scale if HIGH is ten times LOW) or [A,B,...]",
    )
    _add_seed_number(tune)
    add_flags(tune, RunConfig, only=("protocol",))
    for name in VARYING:
        add_flags(tune, sections()[name], name)
    tune.set_defaults(action=_tune)


def _finite(holds: Callable[[float], bool], bound: str) -> Callable[[str], float]:
    """argparse's type of a finite number for which `holds` is true, `bound` in words."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text} must be a finite number {bound}")
        return value

    return number


def _add_seed_number(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--seed-number", type=int, help="repetition of a run with several seeds (default: 0)"
    )


def _seed_number(arguments: argparse.Namespace, config: RunConfig) -> int:
    number = arguments.seed_number or 0
    if not 0 <= number < config.seeds:
        raise DataError(f"--seed-number {number}: this run has the seeds 0 to {config.seeds - 1}")
    return number


def _tune(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.experiments.tuning import Budget, tune

    config, folder = run_settings(arguments, check=lambda config: config_problems(config, VARYING))
    number = _seed_number(arguments, config)
    tuned = tune(
        config,
        arguments.variant or next(iter(config.variants)),
        run_paths(folder, config.seeds)[number],
        Budget(arguments.minutes, arguments.trials),
        number=number,
        asked=arguments.search,
        say=functools.partial(print, flush=True),
    )
    print("\n".join(tuned.lines()))
    return 0


def _leakage(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.experiments.leakage import audit_shards, describe_finding
    from dlrrec_torchrec.experiments.open_leaks import any_open, describe_leaks, open_leaks

    config, folder = run_settings(arguments)
    if not folder.is_dir():
        raise DataError(f"--run-dir {folder}: there is no such folder")
    paths = run_paths(folder, config.seeds)[_seed_number(arguments, config)]
    verdicts, finding = open_leaks(config, paths), None
    if not arguments.json:
        print("\n".join(describe_leaks(verdicts)), flush=True)
    if arguments.trees:
        finding = audit_shards(
            paths.shards,
            all_features=arguments.all_features,
            draws=arguments.draws,
            tolerance=arguments.tolerance,
        )
    found = finding is not None and finding.leaks
    if arguments.json:
        body = {} if finding is None else dataclasses.asdict(finding) | {"leaks": finding.leaks}
        told = [dataclasses.asdict(verdict) | {"line": verdict.line} for verdict in verdicts]
        print(json.dumps(body | {"verdicts": told}, indent=2))
    elif finding is not None:
        print("\n".join(describe_finding(finding)))
    return int(found or any_open(verdicts))
