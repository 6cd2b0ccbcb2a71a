"""Captions and vectors of pictures: one SQLite file that processes share and no kill can damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.sqlite import open_database, why_unusable

FILE = "captions.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS captions (
    captioner TEXT NOT NULL, sha256 TEXT NOT NULL, caption TEXT NOT NULL, PRIMARY KEY (captioner, sha256)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
"""


class CaptionStore:
    """Captions in `folder`/captions.sqlite, by captioner and the picture's SHA-256.

    Raises DataError, in all methods, where the file cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / FILE
        try:
            self._connection = open_database(self.path, _TABLES)
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from None

    def of_source(self, captioner: str, source: str) -> tuple[str, str | bytes] | None:
        """SHA-256 and caption ("" where there is none that says anything) of a source that was described."""
        query = "SELECT c.sha256, c.caption FROM sources s JOIN captions c ON c.sha256 = s.sha256 "
        return self._row(query + "WHERE s.source = ? AND c.captioner = ?", source, captioner)

    def of_picture(self, captioner: str, sha256: str) -> str | bytes | None:
        """The caption of a picture that was described; None where it was not."""
        row = self._row("SELECT caption FROM captions WHERE captioner = ? AND sha256 = ?", captioner, sha256)
        return row and row[0]

    def put(self, captioner: str, sha256: str, caption: str | bytes) -> None:
        """Keep a caption; one that is there already stays."""
        self._row("INSERT INTO captions VALUES (?, ?, ?) ON CONFLICT DO NOTHING", captioner, sha256, caption)

    def put_source(self, source: str, sha256: str) -> None:
        """Remember which picture a source is."""
        self._row("INSERT OR REPLACE INTO sources VALUES (?, ?)", source, sha256)

    def close(self) -> None:
        self._connection.close()

    def _row(self, statement: str, *values: str | bytes) -> tuple | None:
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._problem(error) from None

    def _problem(self, error: Exception) -> DataError:
        lost = "its pictures are then described again"
        return DataError(why_unusable(self.path, error, "captions", lost))
