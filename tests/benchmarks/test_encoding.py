"""`dlrrec bench encode` on few sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlrrec_torchrec.benchmarks import encoding
from dlrrec_torchrec.benchmarks.cases import EncodeCase
from dlrrec_torchrec.cli import main
from dlrrec_torchrec.extract.sentences import MAX_WORDS
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.encoders import random_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    random_encoder(folder, width=64, heads=4)
    return str(folder)


def test_both_sides_are_measured(encoder, tmp_path, capsys):
    flags = ["--sentences", "60", "--rounds", "3", "--encoder", encoder, "--out", str(tmp_path)]
    assert main(["bench", "encode", *flags]) == 0
    report = json.loads((tmp_path / "encode.json").read_text())
    assert report["texts"]["count"] == 60 and " compiled " in report["encoder"]
    assert report["check"]["cosine"] > 0.9999 and report["check"]["difference"] < 1e-4
    slower, faster = report["seconds"]["plain"], report["seconds"]["dlrrec"]
    assert report["ratio"]["p90"] >= slower["p10"] / faster["p90"]
    shown = capsys.readouterr().out
    assert "sentence-transformers" in shown and "least 1.000000" in shown and "nearest texts: 100.0%" in shown


def test_sides_that_differ_are_not_timed(encoder, monkeypatch):
    plain = encoding._plain
    monkeypatch.setattr(encoding, "_plain", lambda ours: lambda texts: plain(ours)(texts[::-1]))
    with pytest.raises(DataError, match="the sides differ"):
        encoding.run(EncodeCase(sentences=20, encoder=encoder))


def test_texts_are_distinct_and_of_many_lengths():
    texts = encoding.make_texts(500, 0)
    words = np.asarray([len(text.split()) for text in texts])
    assert len(set(texts)) == 500 and words.max() <= MAX_WORDS
    assert words.max() > 2 * np.median(words) > 4 * words.min()
    with pytest.raises(DataError, match="--sentences 50000"):
        encoding.make_texts(50_000, 0)
