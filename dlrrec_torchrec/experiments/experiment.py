"""`dlrrec experiment`: the papers' tables and other comparisons. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig, load_config
from dlrrec_torchrec.config.flags import add_command, add_flags, add_set, at_least, given_settings
from dlrrec_torchrec.config.names import described, sections
from dlrrec_torchrec.config.saved import yaml_text
from dlrrec_torchrec.experiments.catalogue import EXPERIMENTS
from dlrrec_torchrec.experiments.definitions import PROTOCOLS, Experiment, Options
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name

WORLDS = ("tiny", "small", "paper")
SEEDS = 5
QUICK = "--quick: little data, few epochs, fewer cells: it shows that the experiment works, and nothing else."
_WORLD = {"ingest.source": "synthetic", "split.val_share": 0.2}
_PAPER_SHARE = 0.23388  # 17,402 test rows of 74,407 (MMREC section 3.2)


def add_experiment(commands: Any) -> None:
    """Add `experiment` to the `dlrrec` parser's sub-commands."""
    command = add_command(
        commands,
        "experiment",
        "train the cells of a table, of the papers or another one, and compare them",
        "dlrrec experiment table1 --quick\n"
        "dlrrec experiment table1 --parallel 2\n"
        "dlrrec experiment ablation --data configs/zomato.yaml --reviews reviews.csv --items shops.csv\n"
        "dlrrec experiment domains --data small my-films.yaml my-shop.yaml --seeds 3 --out runs/domains",
        note="The folder gets table.md, index.html, cells.csv, differences.csv and cells.png. The same\n"
        "command goes on where it was stopped: cells that are measured are not trained again.\n"
        "What each experiment compares, and what of it is the papers': docs/papers.md.",
        usage="dlrrec experiment NAME [--data FILE ...] [--out FOLDER] [--quick] [--seeds N] [--parallel N] "
        "[--FLAG VALUE ...]",
        of_run=False,
    )
    command.add_argument("name", choices=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    command.add_argument(
        "--data",
        "--config",
        nargs="+",
        metavar="FILE",
        help="run configurations, whose sections for data are used (model and training are the experiment's "
        f"own), or sizes of the made-up world: {', '.join(WORLDS)} (default: small; with --quick tiny)",
    )
    command.add_argument(
        "--out",
        "--run-dir",
        help="folder of the results (default: runs/ and the experiment's name, with that of one --data)",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="fewer cells, few epochs, one seed, little data: to see that it works; no evidence",
    )
    command.add_argument(
        "--seeds",
        type=at_least(1),
        help=f"repeats, each with another split and other weights (default: {SEEDS}; with --quick 1)",
    )
    command.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=list(PROTOCOLS),
        help="paper: as the papers select and test; strict: only training and validation rows are seen "
        "before the test (default: both, side by side)",
    )
    command.add_argument(
        "--parallel",
        type=at_least(1),
        default=1,
        help="processes that train cells, of one thread each (default: 1, this one)",
    )
    command.add_argument(
        "--share",
        type=_share,
        default=(0, 1),
        metavar="K/N",
        help="train every N-th cell alone, from the K-th on (from 0), as one of N calls that have the folder "
        "in common; the last to end writes the tables",
    )
    command.add_argument(
        "--keep-trainings",
        action="store_true",
        help="keep the checkpoints of measured cells (default: their predictions and records alone)",
    )
    add_set(command, "change a setting of all cells that do not name it themselves")
    for name, kind in sections().items():
        line = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        group = command.add_argument_group(f"{name}: {line}; in place of the experiment's own")
        add_flags(group, kind, name, short_flags=False)
    command.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    command.set_defaults(action=_experiment)


def options_of(arguments: argparse.Namespace) -> Options:
    """What a call asks of an experiment. Raises DataError for data and settings that cannot be used."""
    given = given_settings(arguments)
    names = arguments.data or [_usual_data(arguments)]
    files = [name for name in given if name in ("ingest.reviews", "ingest.items", "ingest.test")]
    if len(names) > 1 and files:
        raise DataError(
            f"experiment: {described(files[0])} is of one source, and --data names {len(names)}; write "
            "it into each configuration"
        )
    data: dict[str, RunConfig] = {}
    for name in names:
        title, config = _data(name, given)
        if title in data:
            raise DataError(f"--data: two are called '{title}'; give one of the files another name")
        if len(names) > 1 and config.ingest.source != "synthetic" and not config.ingest.reviews:
            raise DataError(
                f"--data {name}: ingest.reviews is missing; write it into that file, as --data names several"
            )
        data[title] = config
    # A variant's changes are laid over whole settings: of a table's own setting, over the table's.
    settings = tuple(dict.fromkeys(".".join(name.split(".")[:2]) for name in given))
    seeds = arguments.seeds or (1 if arguments.quick else SEEDS)
    protocols = tuple(name for name in PROTOCOLS if name in arguments.protocol)
    return Options(data, settings, protocols, seeds, arguments.quick)


def command_text(arguments: argparse.Namespace) -> str:
    """The call without what changes no result, for the pages."""
    words = ["dlrrec", "experiment", arguments.name]
    words += ["--data", *arguments.data] if arguments.data else []
    words += ["--quick"] if arguments.quick else []
    words += ["--seeds", str(arguments.seeds)] if arguments.seeds else []
    words += ["--protocol", *arguments.protocol] if len(set(arguments.protocol)) < len(PROTOCOLS) else []
    given = given_settings(arguments)
    words += ["--set", *(f"{name}={yaml_text(value)}" for name, value in given.items())] if given else []
    return shlex.join(words)


def _usual_data(arguments: argparse.Namespace) -> str:
    return "tiny" if arguments.quick else "small"


def _share(text: str) -> tuple[int, int]:
    """argparse's type of K/N."""
    part, slash, whole = text.partition("/")
    if not (slash and part.isdecimal() and whole.isdecimal() and int(part) < int(whole)):
        raise argparse.ArgumentTypeError(f"'{text}' is not K/N with K from 0 to N - 1, as 0/4")
    return int(part), int(whole)


def _data(name: str, given: dict[str, Any]) -> tuple[str, RunConfig]:
    if name in WORLDS and given.get("ingest.source", "synthetic") != "synthetic":  # no --data, but flags
        return str(given["ingest.source"]), load_config(None, given)
    if name in WORLDS:
        share = {"split.test_share": _PAPER_SHARE} if name == "paper" else {}
        return name, load_config(None, _WORLD | {"ingest.size": name} | share | given)
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"--data {name}: no such file, and no size of the made-up world ({', '.join(WORLDS)})"
        )
    title = path.parent.resolve().name if path.stem == "config" else path.stem
    check_name(title, f"--data {name}")
    config = load_config(path, given)
    if path.is_file() and not path.read_text(encoding="utf-8").strip() and "ingest.source" not in given:
        raise DataError(
            f"--data {name}: is empty; name data in it, as `ingest: {{source: table, reviews: r.csv}}`, or "
            f"give a size of the made-up world ({', '.join(WORLDS)})"
        )
    return title, config


def _experiment(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.experiments.cells import check_experiment
    from dlrrec_torchrec.experiments.results_folder import default_folder, results_folder

    say: Callable[[str], None] = functools.partial(print, flush=True)
    options = options_of(arguments)
    experiment = EXPERIMENTS[arguments.name](options)
    if arguments.quick:
        experiment = dataclasses.replace(experiment, notes=(QUICK, *experiment.notes))
    check_experiment(experiment)
    usual = _usual_data(arguments)
    out = Path(arguments.out or default_folder(arguments.name, list(options.data), usual, arguments.quick))
    with results_folder(out, experiment, arguments.share):
        return _in_folder(arguments, experiment, out, say)


def _in_folder(
    arguments: argparse.Namespace, experiment: Experiment, out: Path, say: Callable[[str], None]
) -> int:
    from dlrrec_torchrec.experiments.cells import LOG, jobs, prepare_once, run_here
    from dlrrec_torchrec.experiments.gathered import gather
    from dlrrec_torchrec.experiments.pages import table_text, write_results
    from dlrrec_torchrec.experiments.workers import Workers
    from dlrrec_torchrec.training.signals import Stopped

    number, shares = arguments.share
    try:
        prepare_once(experiment, out, arguments.share, say)
        everything = jobs(experiment, out, arguments.keep_trainings)
        own = everything[number::shares]
        work = [job for job in own if not job.done()]
        say(
            f"{len(everything)} cells, {len(own) - len(work)} of {len(own)} done; what trainings say: "
            f"{out / LOG}"
        )
        if arguments.parallel == 1 or len(work) < 2:
            failed = run_here(work, out, say)
        else:
            with Workers(min(arguments.parallel, len(work)), out) as workers:
                failed = workers.run(work, say)
    except Stopped:
        say("stopped; the same command goes on from here")
        raise
    left = sum(not job.done() for job in everything)
    if shares > 1 and left > len(failed):
        say(
            f"{left} cells of other shares are not done; the last share to end writes the tables, or, where "
            "one failed or is gone, this command without --share"
        )
        return int(bool(failed))
    results = gather(experiment, out, failed)
    write_results(results, out, command_text(arguments))
    say("\n" + table_text(results))
    say(f"{out / 'table.md'}, {out / 'index.html'}")
    return int(bool(failed))
