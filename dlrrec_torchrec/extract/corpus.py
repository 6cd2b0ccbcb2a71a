"""Documents (reviews, then metadata texts) cut into pieces, each distinct piece embedded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Corpus:
    """D documents, P distinct pieces (sentences or captions).

    texts: D strings or None. offsets i64 [D + 1], piece i64 [M]: document d has the pieces
    piece[offsets[d] : offsets[d + 1]], in order. pieces: P strings. vectors: f16 [P, V], unit length.
    """

    texts: list[str | None]
    offsets: np.ndarray
    piece: np.ndarray
    pieces: list[str]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def pieces_of(self, documents: np.ndarray) -> np.ndarray:
        """The pieces of some documents, one after the other, i64."""
        if not len(documents):
            return np.zeros(0, np.int64)
        return np.concatenate([self.piece[self.offsets[d] : self.offsets[d + 1]] for d in documents])

    def document_means(self, normalize: bool) -> np.ndarray:
        """Mean of each document's piece vectors, f32 [D, V]; zeros where it has no piece."""
        means = np.zeros((len(self), self.vectors.shape[1]), np.float32)
        counts = np.diff(self.offsets)
        for start in range(0, len(self), 4096):  # bounded memory
            stop = min(start + 4096, len(self))
            low, high = self.offsets[start], self.offsets[stop]
            filled = np.flatnonzero(counts[start:stop]) + start
            if len(filled):
                gathered = self.vectors[self.piece[low:high]].astype(np.float32)
                sums = np.add.reduceat(gathered, self.offsets[filled] - low)
                means[filled] = sums / counts[filled, None]
        return unit(means) if normalize else means


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def offsets_of(lengths: Iterable[int]) -> np.ndarray:
    """i64 [D + 1] from the D documents' numbers of pieces."""
    return np.r_[0, np.cumsum(np.fromiter(lengths, np.int64))].astype(np.int64)


def build_corpora(
    sources: Iterable[tuple[list[str | None], list[list[str]]]],
    embed: Callable[[list[str]], np.ndarray],
) -> list[Corpus]:
    """One Corpus for each source (its texts, their pieces), over shared pieces that are embedded together."""
    code: dict[str, int] = {}
    parts = []
    for texts, documents in sources:
        piece = np.fromiter((code.setdefault(p, len(code)) for d in documents for p in d), np.int64)
        parts.append((texts, offsets_of(map(len, documents)), piece))
    pieces = list(code)
    vectors = embed(pieces)
    return [Corpus(texts, offsets, piece, pieces, vectors) for texts, offsets, piece in parts]
