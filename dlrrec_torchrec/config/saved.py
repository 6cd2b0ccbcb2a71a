"""The settings that a run's folder keeps, RUN_DIR/config.yaml: what a command without --config goes by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

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
