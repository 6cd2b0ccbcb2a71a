"""The lossy encoder: its distance from the exact one, its bits, and what it asks for."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

from dlrrec_torchrec.benchmarks.encoding import make_texts, same_neighbours
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.config.sections import ExtractConfig
from dlrrec_torchrec.extract.encoder import DEFAULT_ENCODER, SentenceEncoder
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.encoders import random_encoder

installed = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="extra int8")


def encode(encoder, texts):
    vectors = np.zeros((len(texts), encoder.dim), np.float32)
    for batch, some in encoder.encode_batches(texts):
        vectors[batch] = some
    return vectors


@installed
def test_vectors_are_near_and_their_bits_depend_on_the_text_alone(tmp_path):
    texts = make_texts(120, 0)

    def int8(batch_tokens, workers):
        return SentenceEncoder(
            DEFAULT_ENCODER, batch_tokens, "cpu", workers, precision="int8", converted=tmp_path
        )

    exact, encoder = SentenceEncoder(device="cpu"), int8(1024, 2)
    vectors = encode(encoder, texts)
    cosines = np.einsum("nv,nv->n", vectors, encode(exact, texts))
    assert 0.95 < cosines.min() < 0.9999 and cosines.mean() > 0.99
    np.testing.assert_array_equal(encode(int8(1, 1), texts), vectors)
    np.testing.assert_array_equal(encode(int8(300, 2), texts[::-1]), vectors[::-1])
    assert " int8 1 ctranslate2 " in encoder.identity and encoder.identity != exact.identity


@installed
def test_damaged_weights_are_converted_again(tmp_path):
    texts = ["good food", "bad service"]
    settings = {"device": "cpu", "workers": 1, "precision": "int8", "converted": tmp_path}
    vectors = encode(SentenceEncoder(**settings), texts)
    (converted,) = tmp_path.iterdir()
    (converted / "model.bin").write_bytes(b"cut")
    left = tmp_path / f"{converted.name}.tmp-killed"
    left.mkdir()
    os.utime(left, (0, 0))
    np.testing.assert_array_equal(encode(SentenceEncoder(**settings), texts), vectors)
    assert list(tmp_path.iterdir()) == [converted]


@installed
def test_another_architecture_is_refused(tmp_path):
    random_encoder(tmp_path / "cls", width=64, heads=4, pooling="cls")
    with pytest.raises(DataError, match=r"encoder_precision=int8: .*cls is not a BERT.*use exact"):
        SentenceEncoder(str(tmp_path / "cls"), precision="int8", converted=tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs ctranslate2: pip install 'dlrrec-torchrec\[int8\]'"):
        SentenceEncoder(precision="int8", converted=tmp_path)


def test_a_servers_precision_is_its_own():
    with pytest.raises(DataError, match="encoder_precision.*server:m: use exact"):
        check_settings(ExtractConfig(encoder="server:m", encoder_precision="int8"))


def test_the_share_of_neighbours():
    angles = np.radians([0, 10, 30, 180, 190])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert same_neighbours(vectors, vectors, 2) == 1
    moved = vectors.copy()
    moved[4] = np.cos(np.radians(100)), np.sin(np.radians(100))  # nearer to the third than to the fourth
    assert same_neighbours(vectors, moved, 1) == pytest.approx(4 / 5)
    assert same_neighbours(vectors[:1], vectors[:1]) == 1
