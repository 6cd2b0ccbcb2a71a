"""From YAML and flags to the settings, refusing what is unknown or of the wrong type."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec.config.names import described, sections
from dlrrec_torchrec.config.sections import RunConfig
from dlrrec_torchrec.config.table_section import TableConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name

VARYING = ("model", "contrastive", "list", "train")  # sections that variants may change
Report = Callable[[str, str], None]  # takes a setting, as "train.lr", and what is wrong with it


def load_config(
    path: str | Path | None,
    overrides: dict[str, Any] | None = None,
    check: Callable[[RunConfig], list[str]] | None = None,
) -> RunConfig:
    """Read a run's YAML file and lay `overrides` ({"train.lr": 0.1}) over it; no file means the defaults.

    Args:
        check: finds what else is wrong with the settings, to be reported with the rest; without it
            values out of range are left to `RunConfig.check`.

    Raises DataError naming the file and every key that is unknown, of the wrong type or not among the
    choices.
    """
    body: dict[str, Any] = {}
    if path:
        try:
            body = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise DataError(f"{path}: no such configuration file (examples are in configs/)") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DataError(f"{path}: cannot be read as a configuration: {reason}") from None
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(body, dict):
            raise DataError(f"{path}: must hold sections such as 'ingest:' and 'train:'")
    overrides = overrides or {}
    for key, value in overrides.items():
        if (problem := _unknown(key)) and path:
            raise DataError(f"--set {key}: {problem}")
        section = body
        *parents, last = key.split(".")
        if parents[:1] == ["variants"]:
            body.setdefault("variants", copy.deepcopy(RunConfig().variants))
            if len(parents) > 1 and parents[1] not in body["variants"]:
                raise DataError(
                    f"--set {key}: this run has no variant '{parents[1]}'"
                    f"{_hint(parents[1], body['variants'])}; name a new one in the file"
                )
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
            if not isinstance(section, dict):
                raise DataError(f"--set {key}: '{parent}' is {section!r}, which has no settings of its own")
        section[last] = value
    problems: list[str] = []

    def report(setting: str, text: str) -> None:
        prefix = f"{path}: " if path and setting not in overrides else ""
        problems.append(prefix + (f"{described(setting)}: {text}" if setting else text))

    config = _build(RunConfig, body, "", report)
    for name in config.variants:
        try:
            check_name(name, f"{path}: variants" if path and "variants" not in overrides else "variants")
        except DataError as error:
            problems.append(str(error))
    problems += check(config) if check else []
    raise_problems(problems)
    return config


def from_dict(kind: type, body: dict[str, Any], where: str) -> Any:
    """Build the dataclass `kind` from plain values. Raises DataError naming all that it does not know."""
    problems: list[str] = []
    built = _build(
        kind, body, "", lambda key, text: problems.append(": ".join(filter(None, (where, key, text))))
    )
    raise_problems(problems)
    return built


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one DataError with all of the problems, each once; without problems do nothing."""
    problems = list(dict.fromkeys(problems))
    if len(problems) > 1:
        raise DataError(f"{len(problems)} settings cannot be used:\n  " + "\n  ".join(problems))
    if problems:
        raise DataError(problems[0])


def _build(kind: type, body: dict[str, Any], at: str, report: Report) -> Any:
    """The dataclass from plain values; what it cannot hold is reported and left at its default."""
    return kind(**_values(kind, body, at, report))


def _values(kind: type, body: dict[str, Any], at: str, report: Report) -> dict[str, Any]:
    """The plain values that fields of the dataclass can hold; all others are reported."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in body.items():
        setting = f"{at}.{name}" if at else str(name)
        if name not in fields:
            report(at, f"unknown key '{name}'{_hint(str(name), fields)}")
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, dict):
                values[name] = _build(hints[name], value, setting, report)
            else:
                report(at, f"'{name}' must be a section, not {value!r}")
        else:
            try:
                values[name] = field_value(value, hints[name], fields[name], setting, report)
            except ValueError as error:
                report(setting, str(error))
    return values


def field_value(value: Any, hint: Any, field: dataclasses.Field, setting: str, report: Report) -> Any:
    """`value` as the field holds it. Raises ValueError where it cannot hold it.

    What is wrong inside the settings of a table is reported instead.
    """
    if typing.get_origin(hint) is dict:
        if typing.get_args(hint)[1] is list:
            return _layers(value)
        if not isinstance(value, dict):
            raise ValueError(f"must name tables, as {{user: {{dtype: fp16}}}}, not {value!r}")
        return {name: _table(table, f"{setting}.{name}", report) for name, table in value.items()}
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    choices = field.metadata.get("choices")
    if hint is list:
        if choices and isinstance(value, str):
            value = value.split("+")
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is not of type list")
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        kind = field.metadata.get("of") or (type(default[0]) if default else str)
        return [_checked(element, kind, choices) for element in value]
    return _checked(value, hint, choices)


def _layers(body: Any) -> dict[str, list[int]]:
    """Layer sizes by name, each a list or text as "128,32"."""
    if not isinstance(body, dict):
        raise ValueError(f"must name towers, as {{item_audio: [128, 32]}}, not {body!r}")
    sizes = {}
    for name, value in body.items():
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            sizes[name] = [_checked(part, int, None) for part in parts]
        except (OverflowError, ValueError):
            raise ValueError(f"{name}: {value!r} is not layer sizes, as 128,32") from None
        if not parts or min(sizes[name]) < 1:
            raise ValueError(f"{name}: {value!r} must be one or more sizes of at least 1, as 128,32")
    return sizes


def table_config(body: Any, where: str) -> TableConfig:
    """A table's settings from a mapping, or from text as TableConfig describes it."""
    problems: list[str] = []
    table = _table(body, where, lambda setting, text: problems.append(f"{setting}: {text}"))
    raise_problems(problems)
    return table


def table_settings(text: str, where: str) -> dict[str, str]:
    """The settings in a table's text, still as text: "1e9,64,dtype=fp16" has rows, dim and dtype."""
    parts, order, settings = [part.strip() for part in text.split(",")], ("rows", "dim", "pooling"), {}
    named = [part if "=" in part else f"{name}={part}" for name, part in zip(order, parts, strict=False)]
    for part in named + parts[len(order) :]:
        name, equals, value = part.partition("=")
        if not equals or not value or name in settings:
            raise DataError(f"{where}: '{part}': write rows,dim,pooling,KEY=VALUE, each at most once")
        settings[name] = value
    return settings


def _table(body: Any, setting: str, report: Report) -> TableConfig:
    if isinstance(body, TableConfig):
        return body
    if isinstance(body, str):
        body = table_settings(body, setting)
    if not isinstance(body, dict):
        raise ValueError(f"must be settings such as {{dtype: fp16}}, not {body!r}")
    return _build(TableConfig, body, setting, report)


def _checked(value: Any, kind: type, choices: tuple[str, ...] | None) -> Any:
    """`value` as a `kind` and one of the choices. Raises ValueError."""
    if choices and value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
        except OverflowError:
            return math.inf  # which no setting may be
    if kind is int and isinstance(value, (float, str)):
        try:
            value = int(float(value)) if float(value).is_integer() else value  # 1e9
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{value!r} is not of type {kind.__name__}")
    return value


def _unknown(key: str) -> str:
    """what is wrong with the name of a setting, as "train.lrr"; empty where there is one of that name."""
    kind: Any = RunConfig
    for name in key.split("."):
        fields = {f.name for f in dataclasses.fields(kind)}
        if name not in fields:
            holders = [s for s, k in sections().items() if name in {f.name for f in dataclasses.fields(k)}]
            meant = " or ".join(f"{section}.{name}" for section in holders) if name == key else ""
            return f"unknown key '{name}'" + (f"; did you mean {meant}?" if meant else _hint(name, fields))
        kind = typing.get_type_hints(kind)[name]
        if not dataclasses.is_dataclass(kind):
            break  # what a mapping holds is checked by its own rules
    return ""


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(known)})"


def variant(config: RunConfig, name: str) -> RunConfig:
    """`config` with the changes of its variant `name` laid over the sections that may differ (VARYING)."""
    if name not in config.variants:
        raise DataError(f"unknown variant '{name}' (this run has: {', '.join(config.variants)})")
    problems: list[str] = []
    changed = apply_variant(config, name, lambda setting, text: problems.append(f"{setting}: {text}"))
    raise_problems(problems)
    return changed


def apply_variant(config: RunConfig, name: str, report: Report) -> RunConfig:
    """`variant`, which hands all that is wrong with the variant to `report`."""
    changed, at = dataclasses.replace(config), f"variants.{name}"
    sections = config.variants[name] or {}
    if not isinstance(sections, dict):
        report(at, f"must hold sections such as 'train:', not {sections!r}")
        return changed
    for section, changes in sections.items():
        if section not in VARYING:
            report(at, f"'{section}' cannot differ; use model, contrastive, list or train")
        elif not isinstance(changes, dict | None):
            report(at, f"'{section}' must be a section, not {changes!r}")
        else:
            unchanged = getattr(config, section)
            values = _values(type(unchanged), changes or {}, f"{at}.{section}", report)
            setattr(changed, section, dataclasses.replace(unchanged, **values))
    return changed


def for_seed(config: RunConfig, number: int) -> RunConfig:
    """The settings of the `number`-th repetition: another split and other weights, the rest the same."""
    return dataclasses.replace(
        config,
        split=dataclasses.replace(config.split, seed=config.split.seed + number),
        train=dataclasses.replace(config.train, seed=config.train.seed + number),
        variants={
            name: {
                section: {
                    k: int(float(v)) + number if (section, k) == ("train", "seed") else v
                    for k, v in (changes or {}).items()
                }
                for section, changes in (sections or {}).items()
            }
            for name, sections in config.variants.items()
        },
    )


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The settings with these values, "train.lr" -> 0.003, in their sections, or "protocol" of the run."""
    for name, value in values.items():
        section, _, key = name.partition(".")
        changed = dataclasses.replace(getattr(config, section), **{key: value}) if key else value
        config = dataclasses.replace(config, **{section: changed})
    return config


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a setting such as "train.lr", or "protocol" of the run."""
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key) if key else getattr(config, section)
