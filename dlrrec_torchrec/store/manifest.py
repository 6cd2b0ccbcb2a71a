"""The manifest that every stage leaves beside its output, and the frame of a stage around it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import MANIFEST, atomic_folder, stage_of, write_text_atomic
from dlrrec_torchrec.store.schema import SCHEMA_VERSION


@dataclasses.dataclass
class Manifest:
    """What a stage did. `fingerprint` names its output: equal fingerprints mean equal inputs and settings."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]  # input name -> fingerprint or content hash
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the stage reports
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    schema_version: int = SCHEMA_VERSION
    reused: bool = False  # set by `current`, never written

    @property
    def fingerprint(self) -> str:
        return digest([self.stage, self.schema_version, self.config, self.inputs])

    @property
    def rows_text(self) -> str:
        """The rows in words: "1 seed, 1,955 test"."""
        counts = self.rows.items()
        return ", ".join(f"{n:,} {name.removesuffix('s') if n == 1 else name}" for name, n in counts)

    def write(self, folder: str | os.PathLike) -> None:
        body = jsonable(self) | {"fingerprint": self.fingerprint}
        del body["reused"]
        write_text_atomic(Path(folder) / MANIFEST, json.dumps(body, indent=2, default=str) + "\n")

    def current(self, folder: str | os.PathLike) -> Manifest | None:
        """The manifest in `folder` if that folder already holds the output of this same stage, else None."""
        if stage_of(folder) != self.stage or not (Path(folder) / MANIFEST).exists():
            return None
        stored = _load(Path(folder) / MANIFEST)
        stored.reused = True
        return stored if stored.fingerprint == self.fingerprint else None

    @staticmethod
    def read(folder: str | os.PathLike) -> Manifest:
        """The manifest in `folder`.

        Raises DataError where there is none, where it is damaged, and where another version of this package
        made the folder, each with the command that makes it.
        """
        path = Path(folder) / MANIFEST
        manifest = _load(path)
        if manifest.schema_version < SCHEMA_VERSION:
            command = manifest.stage.removesuffix("-items")  # `ingest` writes a second folder
            raise DataError(
                f"{path}: made by an earlier version of dlrrec (schema {manifest.schema_version}, this is "
                f"{SCHEMA_VERSION}); `dlrrec run` with this --run-dir remakes all that is older, "
                f"`dlrrec {command}` this part"
            )
        if manifest.schema_version > SCHEMA_VERSION:
            raise DataError(
                f"{path}: made by a later version of dlrrec (schema {manifest.schema_version}, this is "
                f"{SCHEMA_VERSION}); install that version, or name another --run-dir"
            )
        return manifest


def _load(path: Path) -> Manifest:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: not there; run the stage that writes '{path.parent.name}' first "
            "(`dlrrec run` runs all in order)"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete the folder and run its stage") from None
    kinds = {"stage": str, "config": dict, "inputs": dict, "rows": dict, "facts": dict, "schema_version": int}
    for name, kind in kinds.items():
        if not isinstance(body, dict) or not isinstance(body.get(name), kind):
            raise DataError(f"{path}: '{name}' is missing or damaged; delete the folder and run its stage")
    names = {f.name for f in dataclasses.fields(Manifest)}
    return Manifest(**{k: v for k, v in body.items() if k in names})


@contextlib.contextmanager
def timed(manifest: Manifest) -> Iterator[None]:
    """Fill in the manifest's seconds and the peak memory (MiB) of the block."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak for each stage
    start = time.monotonic()
    yield
    manifest.seconds = round(time.monotonic() - start, 3)
    manifest.peak_memory_mib = _peak_memory_mib()


def _peak_memory_mib() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


@contextlib.contextmanager
def stage_output(manifest: Manifest, target: str | os.PathLike) -> Iterator[Path]:
    """The frame of a stage: a temporary folder to write to, timing, the manifest, then the final name.

    Raises DataError, before the block begins, where `target` holds what this stage did not write.
    """
    with atomic_folder(target, manifest.stage) as folder:
        with timed(manifest):
            yield folder
        manifest.write(folder)


def digest(value: Any) -> str:
    """A short hash of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def file_digest(paths: Iterable[str | os.PathLike]) -> str:
    """A hash over the contents of files (and their names)."""
    total = hashlib.blake2b(digest_size=12)
    for path in sorted(map(Path, paths)):
        total.update(path.name.encode())
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def jsonable(value: Any) -> Any:
    """Dataclasses, paths, mappings, arrays and numpy's scalars as plain JSON values.

    Numbers that JSON cannot hold (NaN, infinity) become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
