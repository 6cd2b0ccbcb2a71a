"""`dlrrec audit`: checks of a run's data. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from dlrrec_torchrec.config.flags import add_command, at_least, run_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.paths import run_paths

_LINE = "do the features of training rows carry their own labels? exit status 1 if they do"


def add_audit(commands: Any) -> None:
    """Add `audit` to the `dlrrec` parser's sub-commands."""
    audit = commands.add_parser("audit", help=_LINE, description="Checks of a run's data.")
    checks = audit.add_subparsers(title="checks", metavar="CHECK", required=True)
    leakage = add_command(
        checks,
        "leakage",
        _LINE,
        "dlrrec audit leakage --run-dir runs/demo\n"
        "dlrrec audit leakage --run-dir runs/demo --all-features --draws 5",
        note="Trees (LightGBM, the extra `audit`) learn from half of the training rows and score the other\n"
        "half and the validation and test rows. Of the same rows, both must be ranked equally well.",
    )
    leakage.add_argument("--all-features", action="store_true", help="vectors and categories too")
    leakage.add_argument(
        "--draws", type=at_least(1), default=3, help="halves drawn in each of three ways (default: 3)"
    )
    leakage.add_argument(
        "--tolerance",
        type=float,
        default=0.02,
        help="AUC by which the interval must exceed zero to be called a leak (default: 0.02)",
    )
    leakage.add_argument(
        "--seed-number", type=int, help="repetition of a run with several seeds (default: 0)"
    )
    leakage.add_argument("--json", action="store_true", help="machine-readable output")
    leakage.set_defaults(action=_leakage)


def _leakage(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.experiments.leakage import audit_shards, describe_finding

    config, folder = run_settings(arguments)
    number = arguments.seed_number or 0
    if not 0 <= number < config.seeds:
        raise DataError(f"--seed-number {number}: this run has the seeds 0 to {config.seeds - 1}")
    finding = audit_shards(
        run_paths(folder, config.seeds)[number].shards,
        all_features=arguments.all_features,
        draws=arguments.draws,
        tolerance=arguments.tolerance,
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(finding) | {"leaks": finding.leaks}, indent=2))
    else:
        print("\n".join(describe_finding(finding)))
    return int(finding.leaks)
