"""SQLite files that several processes share, and that a kill cannot damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

_WAIT = 60.0  # seconds for another process's write


def open_database(path: Path, tables: str) -> sqlite3.Connection:
    """Open the file, made where there is none, with these tables (SQL that may be repeated).

    Every statement is a transaction of its own, in WAL mode; the connection may be used by one thread after
    the other. Raises sqlite3.Error or OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(tables)
    return connection
