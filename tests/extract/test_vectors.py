"""The encoder and the cache of its vectors."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec.extract import encoder as encoders
from dlrrec_torchrec.extract.cache import embed_cached
from dlrrec_torchrec.extract.encoder import (
    DEFAULT_ENCODER,
    SentenceEncoder,
    check_weights,
    encoder_folder,
)
from dlrrec_torchrec.store.errors import DataError

TEXTS = [
    "Great food.",
    "The service was slow, but the staff apologised and gave us a free dessert.",
    "Overpriced!",
    "\u597d\u5403\u3002",
    "Yummy \U0001f60b",
    "word " * 400,
    *(f"Dish number {i} was {'very ' * i}good" for i in range(14)),
]


class FakeEncoder:
    """Random unit vectors that depend on the text alone; stops after `limit` batches of three."""

    def __init__(self, identity="fake", limit=None, dim=384):
        self.identity, self.limit, self.dim, self.seen = identity, limit, dim, []

    def encode_batches(self, texts):
        for number, start in enumerate(range(0, len(texts), 3)):
            if number == self.limit:
                raise KeyboardInterrupt
            batch = np.arange(start, min(start + 3, len(texts)))
            self.seen += [texts[i] for i in batch]
            yield batch, np.stack([self.vector(texts[i]) for i in batch])

    def vector(self, text):
        numbers = np.random.default_rng(list(f"{self.identity} {text}".encode())).normal(size=self.dim)
        return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def expected(texts, identity="fake"):
    return np.stack([FakeEncoder(identity).vector(t) for t in texts]).astype(np.float16)


def test_a_second_run_embeds_nothing(tmp_path):
    vectors, embedded = embed_cached(TEXTS, FakeEncoder(), tmp_path, segment_rows=4)
    assert embedded == len(TEXTS) and len(list(tmp_path.glob("*.parquet"))) > 1
    np.testing.assert_array_equal(vectors, expected(TEXTS))
    again = FakeEncoder()
    vectors, embedded = embed_cached(TEXTS[::-1], again, tmp_path)
    assert embedded == 0 and again.seen == []
    np.testing.assert_array_equal(vectors, expected(TEXTS[::-1]))


def test_only_new_texts_are_embedded_and_encoders_do_not_mix(tmp_path):
    embed_cached(TEXTS[:5], FakeEncoder(), tmp_path)
    wider = FakeEncoder()
    vectors, embedded = embed_cached(TEXTS[3:9], wider, tmp_path)
    assert embedded == 4 and wider.seen == TEXTS[5:9]
    np.testing.assert_array_equal(vectors, expected(TEXTS[3:9]))
    vectors, embedded = embed_cached(TEXTS[:5], FakeEncoder("other"), tmp_path)
    assert embedded == 5
    np.testing.assert_array_equal(vectors, expected(TEXTS[:5], "other"))


def test_widths_do_not_mix_and_known_texts_need_no_model(tmp_path):
    """Also where a width changes under one identity; a folder of both serves both."""
    wide, narrow = FakeEncoder(dim=768), FakeEncoder("other", dim=12)
    assert embed_cached(TEXTS[:4], wide, tmp_path)[0].shape == (4, 768)
    assert embed_cached(TEXTS[:4], narrow, tmp_path)[0].shape == (4, 12)
    for encoder in (wide, narrow):
        del encoder.dim  # to ask for it would load the model
        vectors, made = embed_cached(TEXTS[:4], encoder, tmp_path)
        assert made == 0 and vectors.any(axis=1).all()
    changed = FakeEncoder(dim=20)
    vectors, made = embed_cached(TEXTS[:5], changed, tmp_path)
    assert made == 5 and vectors.shape == (5, 20)
    np.testing.assert_array_equal(
        vectors, np.stack([changed.vector(t) for t in TEXTS[:5]]).astype(np.float16)
    )


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_cached(TEXTS, FakeEncoder(limit=2), tmp_path)
    encoder = FakeEncoder()
    vectors, embedded = embed_cached(TEXTS, encoder, tmp_path)
    assert encoder.seen == TEXTS[6:] and embedded == len(TEXTS) - 6
    np.testing.assert_array_equal(vectors, expected(TEXTS))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_segment_is_ignored_and_its_texts_embedded_again(tmp_path, damage):
    embed_cached(TEXTS[:6], FakeEncoder(), tmp_path)
    embed_cached(TEXTS[6:9], FakeEncoder(), tmp_path)
    victim = max(tmp_path.glob("*.parquet"), key=lambda p: p.stat().st_size)  # the one of six texts
    body = bytearray(victim.read_bytes())
    if damage == "flip":
        body[body.index(expected(TEXTS[2:3]).tobytes()) + 5] ^= 0x40
    content = {"cut": body[:-900], "flip": body, "empty": b"", "foreign": b"PAR1 not a table"}[damage]
    victim.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=f"{victim.name}.*embedded again"):
        vectors, embedded = embed_cached(TEXTS[:9], FakeEncoder(), tmp_path)
    assert embedded == 6
    np.testing.assert_array_equal(vectors, expected(TEXTS[:9]))


@pytest.mark.parametrize("damage", ["null vectors", "null keys", "infinite", "not a number"])
def test_what_is_no_vector_is_not_read_as_one(tmp_path, damage):
    """Checksums do not see what another writer, or a repair of the file, put there."""
    embed_cached(TEXTS[:6], FakeEncoder(), tmp_path)
    (victim,) = tmp_path.glob("*.parquet")
    stored = pq.read_table(victim)
    keys, vectors = (stored[name].to_pylist() for name in ("key", "vector"))
    if damage == "null keys":
        keys[2] = None
    else:
        number = {"infinite": b"\x00\x7c", "not a number": b"\xff\xff"}.get(damage)
        vectors[2] = number and number + vectors[2][2:]
    columns = [pa.array(keys, pa.binary(16)), pa.array(vectors, stored["vector"].type)]
    pq.write_table(pa.table(columns, names=["key", "vector"]), victim)
    with contextlib.nullcontext() if damage == "null keys" else pytest.warns(UserWarning, match=victim.name):
        found, embedded = embed_cached(TEXTS[:6], FakeEncoder(), tmp_path)
    assert embedded == (1 if damage == "null keys" else 6)
    np.testing.assert_array_equal(found, expected(TEXTS[:6]))


def test_an_encoder_that_cannot_be_compiled_is_named(tmp_path):
    """Its loops are of no meaning to Python: not a traceback out of numba. Known vectors need none."""
    code = (
        "import sys\n"
        "from dlrrec_torchrec.extract.cache import embed_cached\n"
        "from dlrrec_torchrec.extract.encoder import SentenceEncoder\n"
        "from dlrrec_torchrec.store.errors import DataError\n"
        f"args = ['Good food.'], SentenceEncoder(workers=2), {str(tmp_path)!r}\n"
        "try:\n    print(embed_cached(*args)[1])\n"
        "except DataError as error:\n    print(error)\n"
    )
    told = []
    for disabled in ("1", "0", "1"):
        environment = os.environ | {"NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, text=True, stdout=subprocess.PIPE
        )
        told.append(done.stdout.strip())
    assert told[1:] == ["1", "0"]
    assert told[0].startswith("NUMBA_DISABLE_JIT") and "extract.encoder" in told[0] and "unset" in told[0]


def test_no_text_no_folder(tmp_path):
    vectors, embedded = embed_cached([], FakeEncoder(), tmp_path / "vectors")
    assert vectors.shape == (0, 384) and embedded == 0 and not (tmp_path / "vectors").exists()


def test_a_cached_run_imports_no_encoder(tmp_path):
    texts = TEXTS[:3]
    embed_cached(texts, FakeEncoder(SentenceEncoder().identity), tmp_path)
    code = (
        "import sys\n"
        "from dlrrec_torchrec.extract.cache import embed_cached\n"
        "from dlrrec_torchrec.extract.encoder import SentenceEncoder\n"
        f"_, made = embed_cached({texts!r}, SentenceEncoder(), {str(tmp_path)!r})\n"
        "assert made == 0\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_with_another_hash_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(encoders, "_packaged_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: SHA-256 is .* expected 53aa51"):
        SentenceEncoder()
    with pytest.raises(DataError, match=r"absent\.safetensors: .* missing"):
        check_weights(tmp_path / "absent.safetensors", "00")


def test_the_packaged_weights_serve_the_default_name_without_the_hub(monkeypatch):
    monkeypatch.setattr(encoders, "model_folder", lambda *_: pytest.fail("asked the hub"))
    assert (encoder_folder(DEFAULT_ENCODER) / "model.safetensors").exists()


def test_an_unknown_encoder_is_named(monkeypatch):
    import huggingface_hub

    def absent(name, **options):
        raise OSError("no such model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(DataError, match="extract.encoder: 'nobody/nothing'.*name a folder"):
        SentenceEncoder("nobody/nothing")
    with pytest.raises(DataError, match="batch_tokens"):
        SentenceEncoder(batch_tokens=0)


def test_a_cache_that_cannot_be_is_named(tmp_path):
    (tmp_path / "vectors").write_text("a file")
    with pytest.raises(DataError, match="vectors: vectors cannot be kept there.*move away"):
        embed_cached(TEXTS, FakeEncoder(), tmp_path / "vectors")
