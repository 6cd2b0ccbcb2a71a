"""Strings in Arrow's columns and files equal plain lists of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.extract.corpus import build_corpora, group_means, spans, unit
from dlrrec_torchrec.extract.providers.offline import SparseEvidence
from dlrrec_torchrec.extract.strings import StringFile, Strings, distinct, mapped

WORDS = st.sampled_from(["", "a", "b", "food", "\u00fc", "b\nc", "\U0001f600"])
BATCHES = st.lists(st.lists(WORDS, max_size=6), max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.none() | WORDS, max_size=6), max_size=5), st.integers(1, 4))
def test_a_file_of_strings_is_a_sequence(batches, size):
    expected = [value for batch in batches for value in batch]
    with tempfile.TemporaryDirectory() as folder:
        for strings in (
            mapped((pa.array(batch, pa.string()) for batch in batches), Path(folder, "strings")),
            Strings(pa.array(batch, pa.large_string()) for batch in batches),
        ):
            assert len(strings) == len(expected) and list(strings) == expected
            assert [strings[place] for place in range(len(expected))] == expected
            parts = list(strings.batches(size))
            assert sum(parts, []) == expected and all(len(part) <= size for part in parts)
            with pytest.raises(IndexError):
                strings[len(expected)]


@settings(max_examples=40, deadline=None)
@given(BATCHES)
def test_distinct_strings_are_in_order_of_appearance(batches):
    with tempfile.TemporaryDirectory() as folder:
        file = StringFile(Path(folder, "all"))
        for batch in batches:
            file.write(batch)
        found, code = distinct(file.close(), Path(folder, "distinct"))
        known: dict[str, int] = {}
        expected = [known.setdefault(value, len(known)) for batch in batches for value in batch]
        assert list(found) == list(known) and code.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=8), st.integers(1, 3), st.randoms())
def test_a_corpus_equals_plain_lists(documents, size, random):
    other = [["food"], [], ["new"]]
    rng = np.random.default_rng(0)

    def embed(pieces, path):
        assert path.parent.is_dir()
        return rng.standard_normal((len(pieces), 5)).astype(np.float16)

    batches = [documents[k : k + size] for k in range(0, len(documents), size)]
    with tempfile.TemporaryDirectory() as folder:
        first, second = build_corpora(
            [([" ".join(d) for d in documents], batches), ((), [other])], embed, Path(folder)
        )
        pieces = list(first.pieces)
        for corpus, lists in ((first, documents), (second, other)):
            assert len(corpus) == len(lists)
            order = [random.randrange(len(lists)) for _ in range(5)]
            told = [pieces[p] for p in corpus.pieces_of(np.array(order))]
            assert told == [piece for d in order for piece in lists[d]]
            means = corpus.document_means(normalize=False)
            for d, document in enumerate(lists):
                vectors = [first.vectors[pieces.index(piece)].astype(np.float32) for piece in document]
                expected = np.mean(vectors, axis=0) if vectors else np.zeros(5)
                np.testing.assert_allclose(means[d], expected, atol=1e-6)
            np.testing.assert_array_equal(corpus.document_means(False, np.arange(1, len(lists))), means[1:])
            np.testing.assert_array_equal(corpus.document_means(True), unit(means))


def test_spans_and_means_of_nothing():
    assert spans(np.array([0, 2, 2]), np.zeros(0, np.int64)).tolist() == []
    assert spans(np.array([0, 2, 2, 3]), np.array([2, 1, 0])).tolist() == [2, 0, 1]
    means = group_means(np.ones((1, 3), np.float16), np.zeros(0, np.int32), np.array([0, 0]))
    assert means.shape == (2, 3) and not means.any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_means_have_the_same_bits_however_many_are_gathered(counts, at_once):
    rng = np.random.default_rng(0)
    vectors, counts = rng.standard_normal((6, 5)).astype(np.float16), np.array(counts, np.int64)
    piece = rng.integers(0, 6, counts.sum()).astype(np.int32)
    means, start = group_means(vectors, piece, counts, at_once), 0
    for mean, count in zip(means, counts, strict=True):
        total = np.zeros(5, np.float32)
        for p in piece[start : start + count]:
            total = total + vectors[p].astype(np.float32)
        np.testing.assert_array_equal(mean, total / np.float32(count) if count else total)
        start += count


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_sparse_evidence_adds_up_as_the_whole_matrix(seed, things):
    rng = np.random.default_rng(seed)
    whole = rng.random((9, things), np.float32) * (rng.random((9, things)) < 0.1)
    documents = rng.integers(0, 9, 6)
    sparse = SparseEvidence([whole[:4], whole[4:4], whole[4:]])
    np.testing.assert_array_equal(sparse.total(documents), whole[documents].sum(axis=0))
    assert not sparse.total(documents[:0]).any()
