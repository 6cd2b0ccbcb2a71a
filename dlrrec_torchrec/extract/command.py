"""What `dlrrec extract` does besides the stage (--estimate, show), and `dlrrec cache`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import RunConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.config.flags import add_command, run_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.paths import RunPaths, run_paths

Action = Callable[[argparse.Namespace], int]


def add_extract_modes(command: argparse.ArgumentParser, stage: Action) -> None:
    """Add to the stage's command, which `stage` runs, what else can be asked of content."""
    command.add_argument(
        "--estimate",
        action="store_true",
        help="print the calls, tokens and money that a language model would take, and do nothing else",
    )
    command.set_defaults(action=lambda arguments: (_estimate if arguments.estimate else stage)(arguments))
    modes = command.add_subparsers(title="further commands", metavar="")
    shown = add_command(
        modes,
        "show",
        "print the reviews, prompts and answers behind a user's or an item's content",
        "dlrrec extract show --user u00012 --run-dir runs/demo",
    )
    whose = shown.add_mutually_exclusive_group(required=True)
    whose.add_argument("--user", help="user id as in the reviews")
    whose.add_argument("--item", help="item id as in the reviews")
    shown.add_argument(
        "--fold", type=int, default=-1, help="the version without this fold's reviews (default: -1, of all)"
    )
    shown.set_defaults(action=_show)


def add_cache(commands: Any) -> None:
    """The command `cache`."""
    group = commands.add_parser(
        "cache", help="the answers of language models that a run keeps", description="What a run keeps."
    )
    ways = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    counted = add_command(
        ways, "stats", "count the answers and their tokens", "dlrrec cache stats --run-dir runs/demo"
    )
    counted.set_defaults(action=_stats)
    written = add_command(
        ways,
        "export",
        "write every answer as a line of JSON",
        "dlrrec cache export answers.jsonl --run-dir runs/demo",
    )
    written.add_argument("file", help="file to write")
    written.set_defaults(action=_export)
    pruned = add_command(
        ways, "prune", "forget answers, to have their space or to ask again", "dlrrec cache prune --failed"
    )
    pruned.add_argument("--failed", action="store_true", help="refusals and other unusable answers")
    pruned.add_argument("--unused", action="store_true", help="answers behind none of the run's content")
    pruned.add_argument("--model", help="answers of this model")
    pruned.set_defaults(action=_prune)


def _run(arguments: argparse.Namespace) -> tuple[RunConfig, list[RunPaths]]:
    config, folder = run_settings(arguments)
    if not folder.is_dir():
        raise DataError(f"--run-dir {folder}: there is no such folder")
    return config, run_paths(folder, config.seeds)


def _estimate(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.providers.language_model import check_packages

    check_packages()
    from dlrrec_torchrec.extract.llm.estimate import estimate

    config, (paths, *_) = _run(arguments)
    check_settings(config.extract, config.llm)
    items = paths.items if (paths.items / "manifest.json").exists() else None
    print(estimate(config.extract, config.llm, paths.split / "train", items, paths.cache).to_text())
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.llm.show import show

    config, (paths, *_) = _run(arguments)
    side = "user" if arguments.user is not None else "item"
    entity = arguments.user if side == "user" else arguments.item
    print(show(config.extract, config.llm, paths, side, entity, arguments.fold))
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.providers.language_model import check_packages

    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import stats

    config, (paths, *_) = _run(arguments)
    print(stats(paths.cache, config.llm.language))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.providers.language_model import check_packages

    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import export

    _, (paths, *_) = _run(arguments)
    print(f"{export(paths.cache, Path(arguments.file)):,} answers: {arguments.file}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from dlrrec_torchrec.extract.providers.language_model import check_packages

    check_packages()
    from dlrrec_torchrec.extract.llm.housekeeping import prune

    config, every = _run(arguments)
    contents = [folder for paths in every for folder in (paths.content, paths.refitted.content)]
    chosen = {"failed": arguments.failed, "unused": arguments.unused, "model": arguments.model}
    number = prune(every[0].cache, config.llm.language, contents, **chosen)
    print(
        f"{number:,} answers forgotten; content that is up to date stays as it is: to ask again, delete the"
    )
    print(f"folder {every[0].content} too")
    return 0
