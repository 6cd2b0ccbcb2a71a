"""The folder of an output: who may write it, what is there already, and how it gets its name.

While it is written, `.NAME.partial` with the parts so far and `.NAME.lock` are beside `NAME`. The folder gets
its name when it is complete, in one step; a killed job leaves the other two, and the next run uses them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swing.config import SwingError
from swing.parts import Part, process_name

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PLAN, MANIFEST = "plan.json", "manifest.json"


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[list[str]]:
    """Hold `output` for this process; gives warnings. Raises SwingError where another run holds it.

    The operating system releases the lock when the process ends, even if killed. The file only says who holds
    it.
    """
    path = _beside(output, "lock")
    output.parent.mkdir(parents=True, exist_ok=True)
    warnings = []
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace") or "just started"
            os.close(lock)
            raise SwingError(
                f"{output}: another run is writing it ({holder}); wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.append(f"{output.parent} has no file locks: never write one output by two runs at once")
        with contextlib.suppress(FileNotFoundError):  # the last holder deleted its file after we opened it
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                break
        os.close(lock)
    try:
        os.ftruncate(lock, 0)
        os.write(lock, process_name().encode())
        yield warnings
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def manifest_of(output: Path, overwrite: bool = False) -> dict[str, Any] | None:
    """The manifest of the output that is there; None if nothing is.

    Raises SwingError for what swing did not write; and, unless `overwrite`, for an output that lost parts.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    manifest = _read_json(output / MANIFEST)
    if "fingerprint" not in manifest:
        raise SwingError(f"{output}: exists and is no output of swing; choose another folder")
    sizes = [path.stat().st_size for path in output.glob("part-*.parquet")]
    if (len(sizes), sum(sizes)) == (manifest.get("parts"), manifest.get("bytes")):
        return manifest
    if not overwrite:
        raise SwingError(f"{output}: its parts are not those of its manifest; overwrite it, or delete it")
    return {"fingerprint": None}


def begin(output: Path, fingerprint: str, overwrite: bool) -> Path:
    """The folder where the parts of the job gather, with those that an earlier attempt left.

    Raises SwingError if parts of another job are there, unless `overwrite`.
    """
    shutil.rmtree(_beside(output, "old"), ignore_errors=True)
    partial = _beside(output, "partial")
    if not any(_read_json(partial / name).get("fingerprint") == fingerprint for name in (PLAN, MANIFEST)):
        parts = sum(1 for _ in partial.glob("part-*.parquet"))
        if parts and not overwrite:
            raise SwingError(
                f"{partial}: {parts} parts of an unfinished run with another input or other parameters; "
                "choose another folder, or overwrite them"
            )
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    _remove_temporary(partial)
    _write_json(partial / PLAN, {"fingerprint": fingerprint})
    return partial


def finish(output: Path, manifest: dict[str, Any]) -> None:
    """Give the partial folder the name of `output`, replacing what is there."""
    partial, old = _beside(output, "partial"), _beside(output, "old")
    _write_json(partial / MANIFEST, manifest)
    (partial / PLAN).unlink()
    _remove_temporary(partial)
    _sync(partial)
    manifest_of(output, overwrite=True)  # another program's folder may have appeared there
    if output.exists():
        output.rename(old)
    partial.rename(output)
    _sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def explained(error: OSError, output: Path, parts: Sequence[Part]) -> SwingError:
    """What went wrong with writing, and what to do. `parts`: of the job, as far as they are known."""
    if error.errno not in NO_ROOM:
        return SwingError(f"{output}: cannot be written: {error}")
    partial = _beside(output, "partial")
    sizes = {path.name: path.stat().st_size for path in partial.glob("part-*.parquet")}
    written = [part for part in parts if part.name in sizes]
    slots_left = sum(part.slots for part in parts) - sum(part.slots for part in written)
    need = "up to 8 bytes for each neighbour"
    if written:
        size = slots_left * sum(sizes.values()) / max(sum(part.slots for part in written), 1)
        need = f"about {size / (1 << 20):,.0f} MiB more"
    elif parts:
        need = f"{slots_left / (1 << 17):,.0f} MiB at most"
    free = shutil.disk_usage(output.parent).free / (1 << 20)
    return SwingError(
        f"{output}: no room to write ({error.strerror}): {len(written)} of {len(parts)} parts are in "
        f"{partial}, the rest needs {need}, {free:,.0f} MiB are free; with room, the same command continues "
        "from there"
    )


def _beside(output: Path, suffix: str) -> Path:
    return output.parent / f".{output.name}.{suffix}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove_temporary(folder: Path) -> None:
    """Delete the files that a killed process had not finished."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
