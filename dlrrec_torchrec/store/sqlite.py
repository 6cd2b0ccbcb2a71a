"""SQLite files that several processes share, and that a kill cannot damage."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WAIT = 60.0  # seconds for another process's write
_QUIET = 3.0  # of these, before that is said


class _Patient(sqlite3.Connection):
    """Waits for another process that writes into the file, says so, and gives up after _WAIT seconds.

    Every statement is a transaction of its own, so one that found the file locked has done nothing; of
    `executemany` some may be done, and are then done again.
    """

    path = Path()

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self._patiently(super().execute, *arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self._patiently(super().executemany, *arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        return self._patiently(super().executescript, *arguments)

    def _patiently(self, work: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
        until, told = time.monotonic() + _WAIT, False
        while True:
            try:
                return work(*arguments)
            except sqlite3.OperationalError as error:
                if not is_locked(error) or time.monotonic() > until:
                    raise
            if not told:
                told = True
                print(
                    f"{self.path}: waits for another process that writes there, {_WAIT:.0f} seconds at most",
                    file=sys.stderr,
                )


def open_database(path: Path, tables: str) -> sqlite3.Connection:
    """Open the file, made where there is none, with these tables (SQL that may be repeated).

    Every statement is a transaction of its own, in WAL mode; the connection may be used by one thread after
    the other. Raises sqlite3.Error or OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False, "factory": _Patient}
    connection = sqlite3.connect(path, timeout=_QUIET, **options)
    connection.path = path
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(tables)
    return connection


def is_locked(error: Exception) -> bool:
    """Whether another process holds the file."""
    code = getattr(error, "sqlite_errorcode", 0)  # its lower byte is the kind
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def why_unusable(path: Path, error: Exception, what: str, lost: str) -> str:
    """The message for a file that cannot be read or written.

    Args:
        what: is kept there; lost: what a file that is moved away means.
    """
    if is_locked(error):
        return (
            f"{path}: another process has been writing there for {_WAIT:.0f} seconds (`dlrrec cache prune`, "
            "or one that is stopped); what is done is kept: the same command goes on when that one has ended"
        )
    return (
        f"{path}: {what} cannot be read or kept there ({error}); if the file is damaged, move it away: {lost}"
    )
