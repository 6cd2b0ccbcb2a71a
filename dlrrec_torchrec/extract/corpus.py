"""Documents (reviews, then metadata texts) cut into pieces, each distinct piece embedded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from dlrrec_torchrec.extract.strings import StringFile, Strings, distinct

BLOCK = 4096  # documents whose vectors are in memory at a time
GATHERED = 16384  # vectors of pieces that are in memory at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """D documents, P distinct pieces (sentences or captions).

    texts: D strings or None. offsets i64 [D + 1], piece i32 [M]: document d has the pieces
    piece[offsets[d] : offsets[d + 1]], in order. pieces: P strings. vectors: f16 [P, V], unit length, mapped
    from a file where there are many.
    """

    texts: Sequence[str | None]
    offsets: np.ndarray
    piece: np.ndarray
    pieces: Sequence[str]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pieces_of(self, documents: np.ndarray) -> np.ndarray:
        """The pieces of some documents, one after the other, i32."""
        return self.piece[spans(self.offsets, documents)]

    def counts_of(self, documents: np.ndarray) -> np.ndarray:
        """How many pieces each of some documents has, i64 [n]."""
        return self.offsets[documents + 1] - self.offsets[documents]

    def document_means(self, normalize: bool, documents: np.ndarray | None = None) -> np.ndarray:
        """Mean of the piece vectors of each of some documents (default: all), f32 [n, V]; zeros where it has
        no piece."""
        documents = np.arange(len(self)) if documents is None else documents
        means = group_means(self.vectors, self.pieces_of(documents), self.counts_of(documents))
        return unit(means) if normalize else means


def group_means(
    vectors: np.ndarray, piece: np.ndarray, counts: np.ndarray, at_once: int = GATHERED
) -> np.ndarray:
    """Mean vector f32 [G, V] of each group of pieces, zeros where a group is empty.

    Args:
        vectors: f16 [P, V]; piece: i32 [M], positions in them; counts: i64 [G], of each group's, in order.
        at_once: vectors that are gathered at a time.
    """
    sums = np.zeros((len(counts), vectors.shape[1]), np.float32)
    group = np.repeat(np.arange(len(counts)), counts)
    for start in range(0, len(piece), at_once):
        numbers = group[start : start + at_once]
        gathered = vectors[piece[start : start + at_once]].astype(np.float32)
        if len(numbers) and start and numbers[0] == group[start - 1]:
            gathered[0] += sums[numbers[0]]  # goes on with the group, in the same order of additions
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        sums[numbers[first]] = np.add.reduceat(gathered, first)
    return np.divide(sums, counts[:, None], out=sums, where=counts[:, None] > 0)


def spans(offsets: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Positions i64 of all that belongs to the documents, one after the other.

    Args:
        offsets: i64 [D + 1], of each document's first; documents: i64 [n].
    """
    first, counts = offsets[documents], offsets[documents + 1] - offsets[documents]
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def offsets_of(lengths: Iterable[int]) -> np.ndarray:
    """i64 [D + 1] from the D documents' numbers of pieces."""
    return np.r_[0, np.cumsum(np.fromiter(lengths, np.int64))].astype(np.int64)


def build_corpora(
    sources: Iterable[tuple[Sequence[str | None], Iterable[list[list[str]]]]],
    embed: Callable[[Strings, Path], np.ndarray],
    scratch: Path,
) -> list[Corpus]:
    """One Corpus for each source (its texts; their pieces, in batches of documents), over shared pieces that
    are embedded together.

    In memory are, of each document and piece, some numbers; the distinct pieces while they are found; strings
    and vectors are files in the folder `scratch`, which must live as long as the corpora.
    """
    occurring, parts = StringFile(scratch / "occurring.arrow"), []
    for texts, batches in sources:
        lengths = [np.zeros(0, np.int64)]
        for documents in batches:
            lengths.append(np.fromiter(map(len, documents), np.int64, len(documents)))
            occurring.write([piece for document in documents for piece in document])
        parts.append((texts, offsets_of(np.concatenate(lengths))))
    pieces, code = distinct(occurring.close(), scratch / "pieces.arrow")
    (scratch / "occurring.arrow").unlink()
    vectors = embed(pieces, scratch / "vectors")
    corpora, start = [], 0
    for texts, offsets in parts:
        stop = start + int(offsets[-1])
        corpora.append(Corpus(texts, offsets, code[start:stop], pieces, vectors))
        start = stop
    return corpora
