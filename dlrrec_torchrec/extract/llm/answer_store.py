"""Answers on disk: one SQLite file in the run's cache, shared by processes, that a kill cannot damage.

Every answer is written when it arrives, whether it can be used or not: a repeated run reads the same ones,
and comes to the same end without a call. In WAL mode a killed process loses the calls in flight, no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dlrrec_torchrec.extract.llm.calls import CallHead, Reply
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.sqlite import open_database, why_unusable

FILE = "answers.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, prompt TEXT NOT NULL, fields TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    text TEXT NOT NULL, finish TEXT NOT NULL, refusal TEXT NOT NULL, error TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, calls TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
"""
_REPLY = ("text", "finish", "refusal", "error", "input_tokens", "output_tokens")


class AnswerStore:
    """The answers in `folder`/answers.sqlite; the file is made when the first one is kept.

    Raises DataError, in all methods, where the file is no database of answers.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None

    def get(self, key: str) -> Reply | None:
        """The reply to a call, None where there is none."""
        if self._connection is None and not self.path.exists():
            return None
        with self._opened() as connection:
            row = connection.execute(
                f"SELECT {', '.join(_REPLY)} FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return Reply(**dict(zip(_REPLY, row, strict=True))) if row else None

    def put(self, call: CallHead, reply: Reply) -> None:
        """Keep a reply; one that is there already stays."""
        values = [getattr(reply, name) for name in _REPLY]
        with self._opened() as connection:
            connection.execute(
                f"INSERT INTO answers VALUES ({', '.join('?' * (len(_REPLY) + 6))}) "
                "ON CONFLICT (key) DO NOTHING",
                (
                    call.key,
                    call.model,
                    call.prompt,
                    " ".join(call.fields),
                    call.attempt,
                    *values,
                    time.time(),
                ),
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every answer, in order of their keys."""
        if not self.path.exists():
            return
        with self._opened() as connection:
            cursor = connection.execute("SELECT * FROM answers ORDER BY key")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def delete(self, keys: list[str]) -> None:
        """Forget these answers and give their space back."""
        with self._opened() as connection:
            connection.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def put_batch(self, batch: str, calls: Iterable[CallHead], status: str) -> None:
        """Remember a batch of calls; of one that is known, the new status."""
        heads = [dataclasses.astuple(call) for call in calls]
        with self._opened() as connection:
            connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET status = excluded.status",
                (batch, json.dumps(heads), status, time.time()),
            )

    def batches(self, status: str) -> dict[str, dict[str, CallHead]]:
        """The calls, by their keys, of each batch with this status, by its id, the oldest first."""
        if not self.path.exists():
            return {}
        with self._opened() as connection:
            found = connection.execute(
                "SELECT id, calls FROM batches WHERE status = ? ORDER BY created", (status,)
            ).fetchall()
        return {
            batch: {
                key: CallHead(key, model, prompt, tuple(fields), attempt)
                for key, model, prompt, fields, attempt in json.loads(heads)
            }
            for batch, heads in found
        }

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = open_database(self.path, _TABLES)
            yield self._connection
        except (sqlite3.Error, OSError) as error:
            what, lost = "the answers of language models", "its answers are then asked for again"
            raise DataError(why_unusable(self.path, error, what, lost)) from None
