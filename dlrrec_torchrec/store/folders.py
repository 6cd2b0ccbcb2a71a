"""Folders that stages write: whose they are, and how one takes its place whole or not at all.

A folder is a stage's own if a file in it says so: `manifest.json` of a finished stage, or `unfinished.json`,
which a stage that fills its folder in place (a training) writes first. Nothing else is ever replaced or
deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dlrrec_torchrec.store.errors import DataError

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_HELD_SECONDS = 10.0  # until a folder counts as held: the workers of a killed process end a moment after it


def check_name(name: object, where: str) -> None:
    """Raise DataError, beginning with `where`, unless `name` is fit to be the name of a folder or a file."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise DataError(
            f"{where}: {name!r} becomes the name of a folder: write letters A-Z and a-z, digits, '.', '_' "
            "and '-' only, no '.' first, as dlrrec-2 (a number in quotes)"
        )


def stage_of(folder: str | os.PathLike) -> str | None:
    """The stage whose output `folder` holds by what it says itself; None where nothing says so."""
    for name in (MANIFEST, UNFINISHED):
        with contextlib.suppress(OSError, ValueError):  # absent, or no JSON
            body = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
            if isinstance(body, dict) and isinstance(body.get("stage"), str):
                return body["stage"]
    return None


def check_output(folder: str | os.PathLike, stage: str) -> None:
    """Raise DataError if `folder` holds anything that `stage` did not write and would replace."""
    folder = Path(folder)
    free = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    if not free and stage_of(folder) != stage:
        raise DataError(
            f"{folder}: is where the stage '{stage}' writes, and what is there was not written by it (there "
            f"is no {MANIFEST} of '{stage}' in it); nothing was changed: give another --run-dir, or move "
            f"{folder} away"
        )


def hold(folder: str | os.PathLike, what: str, shared: bool = False) -> int | None:
    """A descriptor that holds `folder` against other processes as long as it is open; None where there is no
    such folder, or its file system has no locks. With `shared`, only against those that hold it alone.

    Raises DataError where another process holds it; `what` is what that one does, in words.
    """
    patience = time.monotonic() + _HELD_SECONDS
    while True:
        try:
            return _lock(folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BlockingIOError:
            if time.monotonic() > patience:
                raise DataError(
                    f"{folder}: {what} in another process; wait until it ends, or give another --run-dir"
                ) from None
            time.sleep(0.1)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike, stage: str) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that takes its place when the block ends without an error.

    Raises DataError, at the start and again at the end, where `target` is not the `stage`'s (`check_output`),
    and where another process is making it.
    """
    target = Path(target)
    check_output(target, stage)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target, "tmp")
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    lock = _lock(temporary)
    try:
        yield temporary
        check_output(target, stage)
        with replaced(target):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[None]:
    """Rename `target`, and delete it after the block: no half-deleted folder ever has its name."""
    _remove_stale(target, "old")
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    if target.exists():
        target.rename(old)
    yield
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(target: Path, kind: str) -> None:
    """What a killed process left beside `target`: its name ends in that process's number.

    Raises DataError where the process is at work.
    """
    for stale in target.parent.glob(f".{target.name}.{kind}-*"):
        if re.fullmatch(r"[0-9]+", stale.name.rpartition("-")[2]):
            try:
                lock = _lock(stale)
            except BlockingIOError:
                raise DataError(
                    f"{target}: another process (number {stale.name.rpartition('-')[2]}) is making it; wait "
                    "until it ends, or give another --run-dir"
                ) from None
            shutil.rmtree(stale, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _lock(folder: str | os.PathLike, kind: int = fcntl.LOCK_EX) -> int | None:
    """A descriptor that holds the folder as long as it is open; None where there is no such folder, or its
    file system has no locks. `kind`: fcntl.LOCK_EX, or LOCK_SH with others that have this one.

    Raises BlockingIOError where another process holds it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def remove_own(folder: str | os.PathLike, stage: str) -> None:
    """Delete `folder` if it holds output of `stage`; anything else stays."""
    if stage_of(folder) == stage:
        with replaced(Path(folder)):
            pass


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_named_file(path: str | os.PathLike, text: str) -> None:
    """`write_text_atomic` for a file that the user named. Raises DataError where it cannot be written."""
    try:
        write_text_atomic(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; name another file") from None
