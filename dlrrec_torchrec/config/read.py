"""From YAML and flags to the settings, refusing what is unknown or of the wrong type."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec.config.sections import RunConfig, TableConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import check_name


def load_config(path: str | Path | None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's YAML file and lay `overrides` ({"train.lr": 0.1}) over it; no file means the defaults.

    Raises DataError naming the file and the key or variant that is unknown, or not of the type or form meant.
    """
    body: dict[str, Any] = {}
    if path:
        try:
            body = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise DataError(f"{path}: no such configuration file (examples are in configs/)") from None
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(body, dict):
            raise DataError(f"{path}: must hold sections such as 'ingest:' and 'train:'")
    for key, value in (overrides or {}).items():
        section = body
        *parents, last = key.split(".")
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
            if not isinstance(section, dict):
                raise DataError(f"--set {key}: '{parent}' is {section!r}, which has no settings of its own")
        section[last] = value
    config = from_dict(RunConfig, body, str(path or "options"))
    for name in config.variants:
        check_name(name, f"{path or 'options'}: variants")
    return config


def from_dict(kind: type, body: dict[str, Any], where: str) -> Any:
    """Build the dataclass `kind` from plain values, refusing what it does not know."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in body.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(known)})"
            raise DataError(f"{where}: unknown key '{name}'{hint}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise DataError(f"{where}: '{name}' must be a section, not {value!r}")
            values[name] = from_dict(hints[name], value, f"{where}: {name}")
        elif typing.get_origin(hints[name]) is dict:
            values[name] = _tables(value, f"{where}: {name}")
        else:
            values[name] = _checked(value, hints[name], known[name], f"{where}: {name}")
    return kind(**values)


def table_config(body: Any, where: str) -> TableConfig:
    """A table's settings from a mapping, or from text as TableConfig describes it."""
    if isinstance(body, TableConfig):
        return body
    if isinstance(body, str):
        body = table_settings(body, where)
    if not isinstance(body, dict):
        raise DataError(f"{where}: must be settings such as {{dtype: fp16}}, not {body!r}")
    return from_dict(TableConfig, body, where)


def table_settings(text: str, where: str) -> dict[str, str]:
    """The settings in a table's text, still as text: "1e9,64,dtype=fp16" has rows, dim and dtype."""
    parts, order, found = [part.strip() for part in text.split(",")], ("rows", "dim", "pooling"), {}
    named = [part if "=" in part else f"{name}={part}" for name, part in zip(order, parts, strict=False)]
    for part in named + parts[len(order) :]:
        name, equals, value = part.partition("=")
        if not equals or not value or name in found:
            raise DataError(f"{where}: '{part}': write rows,dim,pooling,KEY=VALUE, each at most once")
        found[name] = value
    return found


def _tables(body: Any, where: str) -> dict[str, TableConfig]:
    if not isinstance(body, dict):
        raise DataError(f"{where}: must name tables, as {{user: {{dtype: fp16}}}}, not {body!r}")
    return {name: table_config(value, f"{where}: {name}") for name, value in body.items()}


def _checked(value: Any, hint: Any, known: dataclasses.Field, where: str) -> Any:
    choices = known.metadata.get("choices")
    if value is None and isinstance(hint, types.UnionType):
        return None
    if choices and hint is list and isinstance(value, str):
        value = value.split("+")
    for one in value if isinstance(value, list) else [value]:
        if choices and one not in choices:
            raise DataError(f"{where}: {one!r} is not one of {', '.join(choices)}")
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if hint is int and isinstance(value, (float, str)):
        try:
            value = int(float(value)) if float(value).is_integer() else value  # 1e9
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise DataError(f"{where}: {value!r} is not of type {hint.__name__}")
    return value


def variant(config: RunConfig, name: str) -> RunConfig:
    """`config` with the changes of its variant `name` laid over the model, contrastive and train sections."""
    if name not in config.variants:
        raise DataError(f"unknown variant '{name}' (this run has: {', '.join(config.variants)})")
    changed = dataclasses.replace(config)
    for section, changes in (config.variants[name] or {}).items():
        if section not in ("model", "contrastive", "train"):
            raise DataError(f"variants: {name}: '{section}' cannot differ; use model, contrastive or train")
        old = getattr(config, section)
        merged = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)} | changes
        setattr(changed, section, from_dict(type(old), merged, f"variants: {name}: {section}"))
    return changed
