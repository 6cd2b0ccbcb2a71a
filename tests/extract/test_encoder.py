"""The encoder: its vectors against sentence-transformers, their bits against themselves, its processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.extract import encoder as encoders
from dlrrec_torchrec.extract.backends import equal_batches, fill, packed_batches
from dlrrec_torchrec.extract.bert import find_bert
from dlrrec_torchrec.extract.cache import embed_cached
from dlrrec_torchrec.extract.compiled_bert import CompiledBert
from dlrrec_torchrec.extract.encoder import DEFAULT_ENCODER, SentenceEncoder, encoder_folder
from dlrrec_torchrec.extract.processes import EncoderProcesses
from dlrrec_torchrec.extract.torch_bert import TorchBert
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.encoders import random_encoder

TEXTS = [
    "Great food.",
    "The service was slow, but the staff apologised and gave us a free dessert.",
    "",
    "   ",
    "Overpriced!",
    "\u597d\u5403\u3002",
    "Yummy \U0001f60b",
    "Cre\u0301me bru\u0302le\u0301e \ufb01t for a K\u00d6NIG\x00 [MASK] [PAD] ##s",
    "word " * 400,
    "x" * 3000,
    *(f"Dish number {i} was {'very ' * (i % 5)}good" for i in range(30)),
]
ANY_TEXT = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text("abc !?", max_size=90),
        st.sampled_from(TEXTS),
    ),
    min_size=1,
    max_size=25,
)


def encode(encoder, texts):
    """Vectors f32 [N, V] in the order of the texts, each made once."""
    vectors, made = np.zeros((len(texts), encoder.dim), np.float32), np.zeros(len(texts), int)
    for batch, some in encoder.encode_batches(texts):
        assert some.dtype == np.float32 and some.shape == (len(batch), encoder.dim)
        vectors[batch] = some
        made[batch] += 1
    assert (made == 1).all()
    return vectors


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Encoders with random weights: two that are written out, two that the library has to compute."""
    root = tmp_path_factory.mktemp("encoders")
    random_encoder(root / "small", width=64, heads=4, layers=2)
    random_encoder(root / "cls", width=64, heads=4, pooling="cls")
    random_encoder(root / "distilbert", width=64, heads=4, architecture="distilbert")
    return root


@pytest.fixture(scope="session")
def default():
    return SentenceEncoder(device="cpu", workers=1)


def reference(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize("name", ["default", "small", "cls", "distilbert"])
def test_vectors_are_those_of_sentence_transformers(folders, name):
    folder = encoder_folder(DEFAULT_ENCODER) if name == "default" else folders / name
    encoder, library = SentenceEncoder(str(folder), batch_tokens=128, device="cpu"), reference(folder)
    assert encoder.identity.split()[1] == ("compiled" if name in ("default", "small") else "library")
    vectors = encode(encoder, TEXTS)
    expected = np.stack([library.encode(text, normalize_embeddings=True) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.einsum("nv,nv->n", vectors, expected).min() > 0.99999


@given(texts=ANY_TEXT)
@settings(max_examples=30)
def test_tokens_are_those_of_transformers(default, texts):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default.folder)
    expected = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    prepared = default._backend.prepare(texts)
    assert [prepared.take(np.asarray([i]))[0].tolist() for i in range(len(texts))] == expected
    assert prepared.lengths.tolist() == [len(ids) for ids in expected]


@given(texts=ANY_TEXT, batch_tokens=st.integers(1, 400), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_the_bits_of_a_text_depend_on_the_text_alone(folders, texts, batch_tokens, seed):
    one_by_one = SentenceEncoder(str(folders / "small"), 1, device="cpu")
    together = SentenceEncoder(str(folders / "small"), batch_tokens, device="cpu")
    alone = np.concatenate([encode(one_by_one, [text]) for text in texts])
    order = np.random.default_rng(seed).permutation(len(texts))
    np.testing.assert_array_equal(encode(together, texts), alone)
    np.testing.assert_array_equal(encode(together, [texts[i] for i in order]), alone[order])


@pytest.mark.parametrize("name", ["cls", "distilbert"])
def test_so_do_the_librarys(folders, name):
    encoder = SentenceEncoder(str(folders / name), 200, device="cpu")
    vectors = encode(encoder, TEXTS)
    np.testing.assert_array_equal(encode(encoder, TEXTS[::-1]), vectors[::-1])
    np.testing.assert_array_equal(np.concatenate([encode(encoder, [text]) for text in TEXTS]), vectors)


def test_threads_make_the_same_bits(default):
    """The default encoder's, alone, together, here and by three threads."""
    vectors = encode(default, TEXTS)
    some = [0, 2, 5, 8, 12]
    np.testing.assert_array_equal(np.concatenate([encode(default, [TEXTS[i]]) for i in some]), vectors[some])
    threads = SentenceEncoder(batch_tokens=300, device="cpu", workers=3)
    np.testing.assert_array_equal(encode(threads, TEXTS), vectors)


@given(
    lengths=st.lists(st.integers(1, 32), min_size=1, max_size=12),
    more=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_what_is_compiled_computes_what_torch_does(folders, lengths, more, seed):
    """The two that write BERT out, in one batch of mixed lengths; a text's bits are those it has alone."""
    files = find_bert(folders / "small")
    lengths += [2] * more
    ids = np.random.default_rng(seed).integers(0, 80, sum(lengths)).astype(np.int32)
    starts = np.cumsum([0, *lengths])
    compiled, in_torch = CompiledBert(files), TorchBert(files, "cpu")
    vectors = compiled.forward((ids, starts))
    alone = [compiled.forward((ids[a:b], np.asarray([0, b - a]))) for a, b in itertools.pairwise(starts)]
    np.testing.assert_allclose(vectors, in_torch.forward((ids, starts)), atol=2e-6)
    np.testing.assert_array_equal(vectors, np.concatenate(alone))


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interruption_leaves_the_same_bits(folders, tmp_path, stop):
    class Interrupted(SentenceEncoder):
        def encode_batches(self, texts):
            for number, batch in enumerate(super().encode_batches(texts)):
                if number == stop:
                    raise KeyboardInterrupt
                yield batch

    settings = {"name": str(folders / "small"), "batch_tokens": 60, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        embed_cached(TEXTS, Interrupted(**settings), tmp_path / "stopped")
    vectors, made = embed_cached(TEXTS, SentenceEncoder(**settings), tmp_path / "stopped")
    assert 0 < made < len(TEXTS)
    np.testing.assert_array_equal(vectors, encode(SentenceEncoder(**settings), TEXTS).astype(np.float16))


def test_processes_are_started_where_they_pay(folders, monkeypatch):
    """Those of a model that is not written out; its bits are the same by one and by two."""
    started = []

    class Counted(EncoderProcesses):
        def __init__(self, folder, count):
            started.append(count)
            super().__init__(folder, count)

    monkeypatch.setattr(encoders, "EncoderProcesses", Counted)
    monkeypatch.setattr(encoders, "PROCESS_CHARACTERS", 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    encoder = SentenceEncoder(str(folders / "cls"), device="cpu")
    few = encode(encoder, ["a" * 60, "b" * 60])
    assert not started
    many = encode(encoder, ["a" * 60, "b" * 60, *(f"number {i}" for i in range(200))])
    assert started == [2]
    np.testing.assert_array_equal(few, many[:2])


def test_a_process_that_ends_is_named(folders, tmp_path):
    batch = np.full(32, 7, np.int32), np.arange(0, 33, 8)
    with EncoderProcesses(folders / "small", 2) as processes:
        made = processes.map([batch] * 500)
        next(made)
        children = list(processes._running.values())
        os.kill(children[0].pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"ended by SIGKILL \(as the kernel.*run the command again"):
            list(made)
    assert all(child.poll() is not None for child in children)
    weights = cut_weights(folders, tmp_path / "cut")
    with EncoderProcesses(tmp_path / "cut", 1) as processes, pytest.raises(DataError, match="with status 1"):
        list(processes.map([batch]))
    with pytest.raises(DataError, match=f"{weights} cannot be read"):
        encode(SentenceEncoder(str(tmp_path / "cut"), device="cpu"), ["a"])


def cut_weights(folders, folder):
    """The encoder `small` with the end of its weights missing."""
    shutil.copytree(folders / "small", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return weights


def test_none_stays_behind(folders):
    """However the parent ends, while texts are embedded."""
    code = (
        "import itertools, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from dlrrec_torchrec.extract.processes import EncoderProcesses\n"
        "with EncoderProcesses(Path(sys.argv[1]), 2) as processes:\n"
        "    made = processes.map(itertools.repeat((np.full(600, 7, np.int32), np.arange(0, 601, 30))))\n"
        "    next(made)\n"
        "    print(*(process.pid for process in processes._running.values()), flush=True)\n"
        "    for _ in made: pass\n"
    )
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    command = [sys.executable, "-c", code, str(folders / "small")]
    pipe = subprocess.PIPE
    parents = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in signals]
    children = [[int(pid) for pid in parent.stdout.readline().split()] for parent in parents]
    assert [len(pids) for pids in children] == [2, 2, 2]
    for parent, number in zip(parents, signals, strict=True):
        parent.send_signal(number)
        _, said = parent.communicate(timeout=60)
        assert parent.returncode == -number
        assert said.count("Traceback") == (number == signal.SIGINT), said
    deadline = time.monotonic() + 60
    while any(map(running, sum(children, []))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, sum(children, [])))


def running(pid):
    """Whether there is such a process; one that has ended and waits to be noticed is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CHANGES = {
    "activation": lambda folder: changed(folder / "config.json", hidden_act="relu"),
    "decoder": lambda folder: changed(folder / "config.json", is_decoder=True),
    "width": lambda folder: changed(folder / "config.json", intermediate_size=72),
    "prompt": lambda folder: changed(
        folder / "config_sentence_transformers.json", prompts={"q": "query: "}, default_prompt_name="q"
    ),
    "output": lambda folder: changed(folder / "sentence_bert_config.json", module_output_name="other"),
    "case": lambda folder: changed(folder / "tokenizer_config.json", do_lower_case=False),
    "pooling": lambda folder: changed(folder / "1_Pooling" / "config.json", pooling_mode="max"),
    "weights": lambda folder: (folder / "model.safetensors").unlink(),
    "modules": lambda folder: (folder / "modules.json").write_text("{}"),
}


def test_a_model_is_written_out_only_where_all_fits(folders, tmp_path):
    assert find_bert(folders / "small").max_tokens == 32
    assert find_bert(encoder_folder(DEFAULT_ENCODER)).max_tokens == 256
    for name, change in CHANGES.items():
        shutil.copytree(folders / "small", tmp_path / name)
        change(tmp_path / name)
        assert find_bert(tmp_path / name) is None, name


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("embeddings.word_embeddings.weight", 20),
        ("embeddings.position_embeddings.weight", 8),
        ("encoder.layer.1.intermediate.dense.weight", 32),
        ("encoder.layer.0.output.dense.bias", 16),
    ],
)
def test_weights_that_are_cut_are_not_computed_with(folders, tmp_path, name, rows):
    """The compiled loops check no bounds."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "small", tmp_path / "cut")
    weights = load_file(folders / "small" / "model.safetensors")
    assert len(weights[name]) > rows
    save_file(weights | {name: weights[name][:rows].clone()}, tmp_path / "cut" / "model.safetensors")
    assert find_bert(tmp_path / "cut") is None
    with pytest.raises(DataError, match="cut holds no sentence encoder that can be loaded"):
        list(SentenceEncoder(str(tmp_path / "cut"), device="cpu").encode_batches(["a"]))


def test_compiled_loops_that_cannot_be_read_are_named(default, monkeypatch):
    from dlrrec_torchrec.extract import vector_loops

    def damaged(*_):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(vector_loops, "embed", damaged)
    with pytest.raises(DataError, match=r"__pycache__.*Ran out of input.*NUMBA_CACHE_DIR"):
        list(default.encode_batches(["a"]))


def test_half_precision_is_left_to_the_library(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "small", tmp_path / "half")
    weights = load_file(folders / "small" / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, tmp_path / "half" / "model.safetensors")
    assert find_bert(tmp_path / "half") is None


@given(st.lists(st.integers(0, 40), max_size=80), st.integers(1, 300))
def test_batches_hold_every_text_once_longest_first(lengths, batch_tokens):
    lengths = np.asarray(lengths, np.int64)
    packed, batches = packed_batches(lengths, batch_tokens), equal_batches(lengths, batch_tokens)
    for some in (packed, batches):
        order = np.concatenate([[], *some]).astype(int)
        assert sorted(order) == list(range(len(lengths)))
        assert lengths[order].tolist() == sorted(lengths, reverse=True)
    for batch, following in itertools.pairwise([*packed, None]):
        assert lengths[batch].sum() <= batch_tokens or len(batch) == 1
        assert following is None or lengths[batch].sum() + lengths[following[0]] > batch_tokens
    for batch in batches:
        assert len(set(lengths[batch])) == 1
        assert len(batch) * lengths[batch[0]] <= batch_tokens or len(batch) == 1 or not lengths[batch[0]]
        filled = fill(batch, int(lengths[batch[0]]))
        assert filled[: len(batch)].tolist() == batch.tolist() and set(filled) == set(batch)
        assert len(filled) * max(1, lengths[batch[0]]) >= 64


def test_the_identity_names_what_computes(folders):
    import torch

    compiled, library = (
        SentenceEncoder(str(folders / name), device="cpu").identity for name in ("small", "cls")
    )
    assert compiled.endswith(" compiled 1 cpu")
    gpu = SentenceEncoder(str(folders / "small"), device="cuda").identity
    assert f" torch {torch.__version__} cuda" in gpu and " fused " in gpu
    assert " library sentence-transformers " in library and f" torch {torch.__version__} cpu" in library
