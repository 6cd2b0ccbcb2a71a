"""A file of several processes: who waits says for what, and not for ever."""

from __future__ import annotations

import sqlite3
import threading
import time

import pytest

from dlrrec_torchrec.extract.llm.answer_store import AnswerStore
from dlrrec_torchrec.extract.llm.calls import CallHead, Reply
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.store import sqlite
from dlrrec_torchrec.store.errors import DataError

CALL = CallHead("key", "model", "user", ("summary",), 1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sqlite, "_QUIET", 0.05)
    monkeypatch.setattr(sqlite, "_WAIT", 0.4)


def held(path):
    """Another process in the middle of a write, as far as the file can tell."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_lock_is_told_waited_for_and_not_for_ever(tmp_path, capsys, quick):
    with AnswerStore(tmp_path) as store:
        store.put(CALL, Reply("text"))
        other = held(store.path)
        with pytest.raises(DataError, match=r"answers.sqlite: another process .* the same command goes on"):
            store.delete(["key"])
        said = capsys.readouterr().err
        assert said.count("waits for another process that writes there") == 1 and str(store.path) in said
        assert store.get("key") == Reply("text")  # readers do not wait
        letting_go = threading.Timer(0.2, other.rollback)
        letting_go.start()
        store.delete(["key"])
        letting_go.join()
        assert store.get("key") is None
        assert capsys.readouterr().err.count("waits for another process") == 1
        store.put(CALL, Reply("text"))
    assert capsys.readouterr().err == ""
    other.close()


def test_captions_too(tmp_path, quick):
    store = CaptionStore(tmp_path)
    other = held(store.path)
    with pytest.raises(DataError, match="captions.sqlite: another process has been writing"):
        store.put("who", "sha", "a plate")
    other.rollback()
    store.put("who", "sha", "a plate")
    assert store.of_picture("who", "sha") == "a plate"
    store.close()


def test_what_is_no_lock_is_told_at_once(tmp_path):
    """And as what it is."""
    begun = time.monotonic()
    (tmp_path / "captions.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"captions cannot be read or kept there .*; if the file is damaged"):
        CaptionStore(tmp_path)
    assert time.monotonic() - begun < sqlite._QUIET
