"""Commands and their flags, made from dataclasses of settings: every field is a flag with its help.

Only flags that are given override anything: a file and the dataclass's defaults decide the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec.config.check import range_words
from dlrrec_torchrec.config.names import flag_name
from dlrrec_torchrec.config.read import load_config
from dlrrec_torchrec.config.saved import SAVED
from dlrrec_torchrec.config.sections import RunConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name

_DEST = "config:"  # before the name of a setting, where its flag leaves the value


def add_command(
    commands: Any,
    name: str,
    line: str,
    examples: str,
    *,
    note: str = "",
    usage: str | None = None,
    of_run: bool = True,
) -> argparse.ArgumentParser:
    """A sub-command with its help.

    Args:
        examples: lines shown at the end of its help.
        note: shown before them.
        usage: its first line, where one with every flag would be too long to read.
        of_run: it takes a run's settings: --config, --run-dir and --set.
    """
    command = commands.add_parser(
        name,
        help=line,
        usage=usage,
        description=line[0].upper() + line[1:] + ".",
        epilog=(note and note + "\n\n") + "examples:\n  " + examples.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `run --seed 3` must not be read as --seeds
    )
    if of_run:
        command.add_argument(
            "--config", help="YAML file of the run (default: RUN_DIR/config.yaml if there is one)"
        )
        command.add_argument(
            "--run-dir", help="folder of the run (default: runs/ and the configuration's name)"
        )
        add_set(command, "change any setting of the configuration")
    return command


def add_set(command: argparse.ArgumentParser, line: str) -> None:
    """Add --set, of which `line` is the help; `given_settings` reads it."""
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", help=line
    )


def add_flags(
    parser: Any,
    kind: type,
    section: str = "",
    *,
    only: Collection[str] | None = None,
    short_flags: bool = True,
) -> None:
    """A flag for every field of a dataclass of settings.

    Args:
        parser: an argparse parser, or a group of one.
        section: the section of the run's settings that `kind` holds; "": the run itself, or a benchmark.
        only: fields (default: all).
        short_flags: the command has this section alone: it takes `--folds` besides `--split.folds`, the form
            for commands of several sections.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if only is None or field.name in only:
            general = flag_name(section, field.name)
            short = "--" + field.name.replace("_", "-")
            flags = (
                list(dict.fromkeys([short, general]))
                if short_flags
                else [general, *(f"--{name}" for name in field.metadata["also"])]
            )
            dest = f"{_DEST}{section}.{field.name}" if section else _DEST + field.name
            parser.add_argument(*flags, dest=dest, **_options(field, hints[field.name]))


def _options(field: dataclasses.Field, hint: Any) -> dict[str, Any]:
    """What `add_argument` gets for a field."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    choices, metavar = field.metadata["choices"], field.name.upper()
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field, default)}
    kinds = [k for k in typing.get_args(hint) or [hint] if k is not type(None)]
    if kinds == [bool]:
        return options | {"action": argparse.BooleanOptionalAction}
    if isinstance(default, dict):
        return options | {"nargs": "+", "metavar": "KEY=VALUE", "type": pair}
    kind = kinds[0] if kinds[0] in (int, float) else str
    if kinds == [list]:
        options |= {"nargs": "*"}
        kind = field.metadata["of"] or (type(default[0]) if default else str)
    return options | {"type": kind} | ({"choices": choices} if choices else {"metavar": metavar})


def _help(field: dataclasses.Field, default: Any) -> str:
    """The field's help, its default (that of an empty one is in the help) and its range."""
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    facts = [f"default: {shown}"] if default is not None and shown not in ("", "{}") else []
    facts += [words] if (words := range_words(field)) else []
    text = field.metadata["help"] + (f" ({'; '.join(facts)})" if facts else "")
    return text.replace("%", "%%")


def pair(text: str) -> tuple[str, str]:
    """argparse's type of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE, such as user=Reviewer")
    return key, value


def at_least(least: int) -> Callable[[str], int]:
    """argparse's type of an integer that is not less, and no more than 2**31 - 1."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
        if value > 2**31 - 1:
            raise argparse.ArgumentTypeError(
                f"a number of {len(str(value))} digits must be at most 2147483647"
            )
        return value

    return number


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --set and the flags of settings say, and nothing else: {"train.lr": 0.003}."""
    settings: dict[str, Any] = {}
    for text in getattr(arguments, "set", []):
        key, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--set {text}: must be SECTION.KEY=VALUE, such as train.lr=0.003")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise DataError(f"--set {text}: the value is not valid YAML: {error}") from None
    for key, value in vars(arguments).items():
        if key.startswith(_DEST):
            pairs = isinstance(value, list) and value and isinstance(value[0], tuple)
            settings[key.removeprefix(_DEST)] = dict(value) if pairs else value
    return settings


def run_settings(
    arguments: argparse.Namespace,
    overrides: dict[str, Any] | None = None,
    check: Callable[[RunConfig], list[str]] | None = None,
) -> tuple[RunConfig, Path]:
    """The settings and the folder of a call: file, then `overrides`, then --set, then flags.

    `check` is that of `load_config`. Raises DataError naming all that is wrong.
    """
    run_name = Path(arguments.config).stem if arguments.config else "demo"
    if not arguments.run_dir:
        check_name(run_name, f"--config {arguments.config} (or give --run-dir)")
    folder = arguments.run_dir or f"runs/{run_name}"
    path, saved = arguments.config, Path(folder) / SAVED
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise DataError(f"--run-dir {folder}: is no folder; give the folder of a run, or a new name")
    if path is None and saved.exists():
        path = saved
    return load_config(path, (overrides or {}) | given_settings(arguments), check), Path(folder)
