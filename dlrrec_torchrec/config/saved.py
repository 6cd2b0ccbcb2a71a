"""The settings that a run's folder keeps, RUN_DIR/config.yaml: what a command without --config goes by."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dlrrec_torchrec.config.sections import RunConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import write_text_atomic
from dlrrec_torchrec.store.manifest import jsonable

SAVED = "config.yaml"


@contextlib.contextmanager
def kept_settings(root: str | Path, config: RunConfig) -> Iterator[None]:
    """Save the settings in `root` for the block; where it raises DataError, what was there comes back.

    Raises DataError, before anything is written, for a config.yaml in `root` that holds no settings of a run.
    """
    path = Path(root) / SAVED
    previous = _own_text(path)
    write_text_atomic(path, yaml.safe_dump(jsonable(config), sort_keys=False))
    try:
        yield
    except DataError:
        if previous is None:
            path.unlink(missing_ok=True)
        else:
            write_text_atomic(path, previous)
        raise


def described_run(root: str | Path, config: RunConfig) -> tuple[dict[str, Any], str]:
    """The settings that differ from the defaults (`changed_settings`), and the command (`run_command`)."""
    settings = changed_settings(config)
    return settings, run_command(root, settings)


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """ "train.epochs" -> value (as JSON has it), of the settings that differ from the defaults; a variant
    that is not the default one counts as a whole, as "variants.NAME"."""
    changed: dict[str, Any] = {}
    own, default = jsonable(config), jsonable(RunConfig())
    for section, value in own.items():
        known = default[section]
        if not isinstance(value, dict):
            changed |= {section: value} if value != known else {}
            continue
        for key, of_key in value.items():
            if key not in known or of_key != known[key]:
                changed[f"{section}.{key}"] = of_key
        changed |= {f"{section}.{key}": None for key in known.keys() - value.keys()}  # a variant less
    return changed


def run_command(root: str | Path, settings: Mapping[str, Any]) -> str:
    """The `dlrrec run` of these settings (as `changed_settings` returns); variants are read from `root`."""
    parts = ["dlrrec", "run"]
    if any(name.startswith("variants.") for name in settings):
        parts += ["--config", str(Path(root) / SAVED)]
    elif settings:
        parts += ["--set", *(f"{name}={yaml_text(value)}" for name, value in settings.items())]
    return shlex.join([*parts, "--run-dir", str(root)])


def yaml_text(value: Any) -> str:
    """A value such that YAML reads it back; plain words stay plain."""
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(value, str) and yaml.safe_load(value) == value:
            return value
    return json.dumps(value)


def _own_text(path: Path) -> str | None:
    """The text of saved settings, None where there are none."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        body = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        body = None
    names = {f.name for f in dataclasses.fields(RunConfig)}
    if not isinstance(body, dict) or not body.keys() <= names:
        raise DataError(
            f"{path}: is where a run keeps its settings, and what is there is something else; nothing was "
            f"changed: give another --run-dir, or move {path} away"
        )
    return text
