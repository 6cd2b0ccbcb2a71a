"""The files of a checkpoint: which there are, and whether each is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEST = "best"


_NAMES = "epoch-*-step-*"


STATE, SUMS = "state.json", "SHA256SUMS"


def latest_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The state in the newest checkpoint that looks whole (large files are not read), None without one."""
    for path in newest_first(Path(folder)):
        state, _, problem = inspect(path)
        if not problem:
            return state
    return None


def inspect(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """(state, SHA-256 of each file, what is wrong: empty if nothing), without reading the large files."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        present = {p.name for p in path.iterdir()} - {SUMS}
        if missing := sorted({STATE, *sums} - present):
            return {}, {}, f"incomplete ({missing[0]} is missing)"
        if unknown := sorted(present - set(sums)):
            return {}, {}, f"damaged ({SUMS} does not name {unknown[0]})"
        if problem := damage(path, {STATE: sums[STATE]}):
            return {}, {}, problem
        return json.loads((path / STATE).read_text(encoding="utf-8")), sums, ""
    except FileNotFoundError:
        return {}, {}, f"incomplete ({SUMS} is missing)" if path.exists() else "no checkpoint here"
    except (ValueError, OSError) as error:
        return {}, {}, f"damaged ({SUMS}: {error})"


def damage(path: Path, sums: Mapping[str, str]) -> str:
    """What is wrong with the first file that is not as it was written; empty if all are."""
    for name, digest in sums.items():
        try:
            if sha256(path / name) != digest:
                return f"damaged ({name} is not as it was written: its SHA-256 differs)"
        except OSError as error:
            return f"damaged ({name}: {error.strerror})"
    return ""


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(_NAMES), reverse=True)


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
