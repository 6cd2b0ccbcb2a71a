"""The `dlrrec` command: one sub-command for each stage, `run` for all of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import typing
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec import __version__
from dlrrec_torchrec.benchmarks.command import add_bench
from dlrrec_torchrec.config import (
    ContrastiveConfig,
    ExtractConfig,
    IngestConfig,
    ModelConfig,
    PrepareConfig,
    RunConfig,
    SplitConfig,
    SwingStageConfig,
    TrainConfig,
    load_config,
    table_settings,
    variant,
)
from dlrrec_torchrec.distributed.launcher import is_first_rank
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.stages import STAGES, describe, for_seed, run, run_stage, train_variant
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.store.progress import progress_shown

# sub-command -> (sections whose fields are its flags, one line, how it is used)
COMMANDS: dict[str, tuple[dict[str, type], str, str]] = {
    "ingest": (
        {"ingest": IngestConfig},
        "read a source of reviews into the review table",
        "dlrrec ingest --source table --reviews reviews.csv --columns user=Reviewer item=Restaurant "
        "rating=Rating text=Review --run-dir runs/mine",
    ),
    "split": (
        {"split": SplitConfig},
        "filter the reviews and split them into training, validation and test rows",
        "dlrrec split --method last --min-reviews 3 --run-dir runs/mine",
    ),
    "extract": (
        {"extract": ExtractConfig},
        "write summaries, vectors, price tags and categories from the training reviews",
        "dlrrec extract --folds 5 --run-dir runs/mine",
    ),
    "swing": (
        {"swing": SwingStageConfig},
        "find each user's and each item's SWING neighbours in the training rows",
        "dlrrec swing --top-k 20 --run-dir runs/mine",
    ),
    "prepare": (
        {"prepare": PrepareConfig},
        "join features, vectors and positives into training shards and entity tables",
        "dlrrec prepare --smoothing 3 --run-dir runs/mine",
    ),
    "train": (
        {"model": ModelConfig, "contrastive": ContrastiveConfig, "train": TrainConfig},
        "train the run's variants, or one of them; also under torchrun",
        "dlrrec train --variant dlrrec --epochs 20 --run-dir runs/mine\n"
        "torchrun --nproc_per_node 2 -m dlrrec_torchrec train --run-dir runs/mine",
    ),
    "evaluate": ({}, "score the test rows and the baselines", "dlrrec evaluate --run-dir runs/mine"),
    "report": ({}, "draw figures, tables and one HTML page", "dlrrec report --run-dir runs/mine"),
}
SHOW_PROGRESS = ("ingest", "extract", "prepare", "train", "evaluate")
# `run` takes the settings that differ most often as flags; everything else by --set
SHORTCUTS = {
    "source": ("ingest", IngestConfig),
    "reviews": ("ingest", IngestConfig),
    "items": ("ingest", IngestConfig),
    "test": ("ingest", IngestConfig),
    "columns": ("ingest", IngestConfig),
    "item_columns": ("ingest", IngestConfig),
    "max_rejected": ("ingest", IngestConfig),
    "size": ("ingest", IngestConfig),
    "method": ("split", SplitConfig),
    "min_reviews": ("split", SplitConfig),
    "epochs": ("train", TrainConfig),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (2: input that cannot be used)."""
    arguments = build_parser().parse_args(argv)
    try:
        with quiet(), progress_shown(getattr(arguments, "progress", True)):
            return arguments.action(arguments) or 0
    except DataError as error:
        print(f"dlrrec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlrrec: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole parser, for the command line and for the tests that check documented commands."""
    parser = argparse.ArgumentParser(
        prog="dlrrec", description="From raw reviews to ranked recommendations with DLRREC on TorchRec."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(commands, "run", "all stages in order, skipping those that are up to date", run_example())
    for name, (section, kind) in SHORTCUTS.items():
        _flag(one, section, kind, name)
    _flag(one, "", RunConfig, "protocol")
    _flag(one, "", RunConfig, "seeds")
    one.add_argument("--until", choices=STAGES, default="report", help="last stage to run (default: report)")
    one.add_argument("--force", action="store_true", help="begin anew; only the cache of vectors is kept")
    one.add_argument("-n", type=int, default=10, help="recommendations shown at the end (default: 10)")
    _no_progress(one)
    one.set_defaults(action=_run)

    for name, (sections, line, example) in COMMANDS.items():
        command = _command(commands, name, line, example)
        for section, kind in sections.items():
            for known in dataclasses.fields(kind):
                _flag(command, section, kind, known.name)
        command.add_argument("--seed-number", type=int, help="repetition of a run with several seeds")
        if name in ("split", "train", "evaluate"):
            _flag(command, "", RunConfig, "protocol")
        if name == "train":
            command.add_argument("--variant", help="one variant of the configuration (default: all)")
        if name in SHOW_PROGRESS:
            _no_progress(command)
        command.set_defaults(action=_stage, stage=name)

    recommend = _command(
        commands,
        "recommend",
        "rank the items that a user has not reviewed",
        "dlrrec recommend --run-dir runs/demo --user u00012 -n 10",
    )
    recommend.add_argument("--user", required=True, help="user id as in the reviews")
    recommend.add_argument("-n", type=int, default=10, help="how many (default: 10)")
    recommend.add_argument("--variant", help="trained variant (default: the first)")
    recommend.add_argument("--include-seen", action="store_true", help="rank items the user has reviewed too")
    recommend.add_argument("--json", action="store_true", help="machine-readable output")
    recommend.add_argument("--seed-number", type=int, help="repetition of a run with several seeds")
    recommend.set_defaults(action=_recommend)

    add_bench(commands)

    plan = _command(
        commands,
        "plan",
        "say where embedding tables go on given devices, what they take, and what would fit; needs no GPU",
        "dlrrec plan --run-dir runs/demo --world-size 64 --device h200\n"
        "dlrrec plan --table user=1e9,64 item=1e7,64,1,dtype=fp16 --world-size 64 --device h200\n"
        "dlrrec plan --config configs/demo.yaml --set model.user_id=true model.tables.user.rows=1e8 --json",
    )
    plan.add_argument("--world-size", type=int, default=1, help="ranks in all (default: 1)")
    plan.add_argument("--local-world-size", type=int, help="ranks of a node (default: up to 8)")
    plan.add_argument("--device", help="what a rank has, such as h200 (default: what is here)")
    plan.add_argument("--hbm", type=float, help="GB of device memory, if others than the device's")
    plan.add_argument("--ddr", type=float, help="GB of host memory for each rank, if others")
    plan.add_argument(
        "--table",
        nargs="+",
        action="extend",
        type=_pair,
        default=[],
        metavar="NAME=ROWS,DIM,POOLING,KEY=VALUE",
        help="settings of a table, or a table that the model does not have; without --config and --run-dir, "
        "these alone are planned for",
    )
    _flag(plan, "train", TrainConfig, "batch_size")
    _flag(plan, "train", TrainConfig, "table_optimizer")
    plan.add_argument("--variant", help="variant of the configuration (default: none)")
    plan.add_argument("--json", action="store_true", help="machine-readable output")
    plan.set_defaults(action=_plan)

    doctor = commands.add_parser("doctor", help="what is installed, and whether it fits together")
    doctor.set_defaults(action=_doctor)
    return parser


def run_example() -> str:
    """How `dlrrec run` is used."""
    return (
        "dlrrec run --config configs/demo.yaml\n"
        "dlrrec run --config configs/zomato.yaml --reviews reviews.csv --items restaurants.csv --seeds 5\n"
        "dlrrec run --config configs/demo.yaml --set train.lr=0.003 contrastive.temperature=0.2"
    )


def _command(commands: Any, name: str, line: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=line,
        description=line[0].upper() + line[1:] + ".",
        epilog="examples:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--config", help="YAML file of the run (default: RUN_DIR/config.yaml if there is one)"
    )
    command.add_argument("--run-dir", help="folder of the run (default: runs/ and the configuration's name)")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change any setting of the configuration",
    )
    return command


def _no_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no progress bars (without a terminal on stderr there are none anyway)",
    )


def _flag(parser: argparse.ArgumentParser, section: str, kind: type, name: str) -> None:
    """One flag for one field of a configuration dataclass; only flags that are given override anything."""
    known = next(f for f in dataclasses.fields(kind) if f.name == name)
    default = known.default if known.default is not dataclasses.MISSING else known.default_factory()
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    text = known.metadata["help"].replace("%", "%%")
    text += f" (default: {shown})" if default not in ("", None, {}) else ""
    options: dict[str, Any] = {
        "dest": f"config:{section}.{name}" if section else f"config:{name}",
        "default": argparse.SUPPRESS,
        "help": text,
    }
    if isinstance(default, bool):
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(default, dict):
        options |= {"nargs": "+", "metavar": "KEY=VALUE", "type": _pair}
    elif isinstance(default, list):
        options |= {"nargs": "+", "metavar": name.upper(), "type": type(default[0])}
    else:
        hint = typing.get_type_hints(kind)[name]
        options["type"] = next((t for t in (int, float, str) if hint is t), float)
        choices = known.metadata.get("choices")
        options |= {"choices": choices} if choices else {"metavar": name.upper()}
    parser.add_argument("--" + name.replace("_", "-"), **options)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE, such as user=Reviewer")
    return key, value


def _configuration(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    """The settings and the folder of this call: file, then --set, then flags."""
    run_name = Path(arguments.config).stem if arguments.config else "demo"
    if not arguments.run_dir:
        check_name(run_name, f"--config {arguments.config} (or give --run-dir)")
    folder = arguments.run_dir or f"runs/{run_name}"
    path = arguments.config
    kept = Path(folder) / "config.yaml"
    if path is None and kept.exists():
        path = kept
    return load_config(path, _overrides(arguments)), Path(folder)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --table, then --set and the flags of settings say: {"train.lr": 0.003}."""
    overrides: dict[str, Any] = {}
    for name, text in getattr(arguments, "table", []):
        for key, value in table_settings(text, f"--table {name}").items():
            overrides[f"model.tables.{name}.{key}"] = value
    for text in arguments.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--set {text}: must be SECTION.KEY=VALUE, such as train.lr=0.003")
        overrides[key] = yaml.safe_load(value)
    for key, value in vars(arguments).items():
        if key.startswith("config:"):
            pairs = isinstance(value, list) and value and isinstance(value[0], tuple)
            overrides[key.removeprefix("config:")] = dict(value) if pairs else value
    return overrides


def _run(arguments: argparse.Namespace) -> int:
    config, folder = _configuration(arguments)
    every = run(config, folder, until=arguments.until, force=arguments.force)
    if arguments.until != "report":
        return 0
    from dlrrec_torchrec.report.stage import format_table
    from dlrrec_torchrec.serving.recommend import example_user, recommend

    print()
    print(format_table(every[0].report))
    first = every[0]
    name = next(iter(config.variants))
    user = example_user(first.shards)
    best = recommend(first.shards, first.train(name), user, arguments.n, reviews_dir=first.reviews)
    print(best.to_text())
    print(f"more:   dlrrec recommend --run-dir {folder} --user ID -n {arguments.n}")
    print(f"report: {first.report / 'index.html'}")
    return 0


def _stage(arguments: argparse.Namespace) -> int:
    config, folder = _configuration(arguments)
    every = run_paths(folder, config.seeds)
    if arguments.stage == "report":
        from dlrrec_torchrec.report.stage import format_table, report

        report(every, list(config.variants), every[0].report)
        print(format_table(every[0].report))
        return 0
    numbers = range(config.seeds) if arguments.seed_number is None else [arguments.seed_number]
    for number in numbers:
        if not 0 <= number < config.seeds:
            raise DataError(f"--seed-number {number}: this run has the seeds 0 to {config.seeds - 1}")
        seeded, paths = for_seed(config, number), every[number]
        if arguments.stage == "train" and arguments.variant:
            manifests = [train_variant(seeded, arguments.variant, paths)]
        else:
            manifests = run_stage(arguments.stage, seeded, paths)
        if is_first_rank():
            for manifest in manifests:
                print(describe(arguments.stage, manifest))
        if arguments.stage == "ingest":
            break
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.serving.recommend import recommend

    config, folder = _configuration(arguments)
    paths = run_paths(folder, config.seeds)[arguments.seed_number or 0]
    name = arguments.variant or next(iter(config.variants))
    found = recommend(
        paths.shards,
        paths.train(name),
        arguments.user,
        arguments.n,
        include_seen=arguments.include_seen,
        reviews_dir=paths.reviews,
    )
    print(found.to_json() if arguments.json else found.to_text())
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.distributed.ranks import Ranks, resolve_device
    from dlrrec_torchrec.sharding.advice import make_plan
    from dlrrec_torchrec.sharding.describe import to_json, to_text
    from dlrrec_torchrec.sharding.devices import named_device, rank_device
    from dlrrec_torchrec.sharding.request import run_request

    of_run = bool(arguments.config or arguments.run_dir)
    if of_run:
        config, folder = _configuration(arguments)
        shards = run_paths(folder, config.seeds)[0].shards
    else:
        config, shards = load_config(None, _overrides(arguments)), None
    if arguments.variant:
        config = variant(config, arguments.variant)
    world = arguments.world_size
    local = arguments.local_world_size
    if local is None:
        local = next((n for n in range(8, 1, -1) if world % n == 0), 1)
    if arguments.device:
        device = named_device(arguments.device, arguments.hbm, arguments.ddr)
    elif arguments.hbm or arguments.ddr:
        raise DataError("--hbm, --ddr: name the --device too")
    else:
        device = rank_device(Ranks(0, world, local, resolve_device("auto")))
    made = shards if shards and (shards / "manifest.json").exists() else None
    options = {"world_size": world, "local_world_size": local, "shards": made, "model": of_run}
    plan = make_plan(run_request(config, device, **options))
    print(json.dumps(to_json(plan), indent=1) if arguments.json else to_text(plan))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from dlrrec_torchrec.doctor import doctor

    return doctor()
