"""What settings are called: `SECTION.KEY` in files and after --set, and a flag on the command line."""

from __future__ import annotations

import collections
import dataclasses
import functools
import typing

from dlrrec_torchrec.config.sections import RunConfig


@functools.cache
def sections() -> dict[str, type]:
    """The sections of a run's settings, in order: {"ingest": IngestConfig, ...}."""
    hints = typing.get_type_hints(RunConfig)
    return {
        f.name: hints[f.name]
        for f in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(hints[f.name])
    }


def section_of(kind: type) -> str:
    """The name of the section whose settings are a `kind`."""
    return next(name for name, section in sections().items() if section is kind)


def flag_name(section: str, key: str) -> str:
    """The flag of a setting that `dlrrec run` and the section's own commands accept alike.

    `--epochs` for train.epochs; `--split.folds` for split.folds, because extract has `folds` too. A setting
    of the run itself has the section "".
    """
    short = key.replace("_", "-")
    return f"--{short}" if not section or _holders()[key] == 1 else f"--{section}.{short}"


def described(setting: str) -> str:
    """A setting and, where it has one, its flag: `train.lr (--lr)`."""
    section, _, key = setting.rpartition(".")
    kind = sections().get(section) if section else RunConfig
    no_flags = set() if section else {*sections(), "variants"}
    keys = kind and {f.name for f in dataclasses.fields(kind)} - no_flags
    return f"{setting} ({flag_name(section, key)})" if keys and key in keys else setting


@functools.cache
def _holders() -> collections.Counter[str]:
    """How many sections have a setting of this name."""
    kinds = [RunConfig, *sections().values()]
    return collections.Counter(f.name for kind in kinds for f in dataclasses.fields(kind))
