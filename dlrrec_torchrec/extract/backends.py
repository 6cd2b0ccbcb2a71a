"""How texts become vectors: BERT written out where it fits, else sentence-transformers' own forward pass.

Padding would make the last bits of a vector depend on what it was batched with, so nothing is padded: BERT
written out needs no padding, and the library gets batches of texts of equal length. Nothing heavy is imported
before the first text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from dlrrec_torchrec.extract import compiled_bert, int8_bert, torch_bert
from dlrrec_torchrec.extract.bert import BertFiles, find_bert
from dlrrec_torchrec.extract.model_files import loading
from dlrrec_torchrec.store.errors import DataError

_LENGTHS_CHUNK = 8192  # texts tokenised at once
_LEAST_TOKENS = 64  # of fewer rows (4 with MKL) a matrix product takes another path, with other last bits


class Prepared(Protocol):
    """N tokenised texts; `lengths` i64 [N] is their tokens."""

    lengths: np.ndarray

    def take(self, positions: np.ndarray) -> Any:
        """What `Backend.forward` needs of a batch; it can be pickled."""
        ...


class Backend(Protocol):
    """`identity` names it and the versions of what computes it; `dim` is the numbers V of a vector.

    `threads`: whether several threads gain by calling `forward` at the same time; otherwise processes do.
    """

    identity: str
    threads: bool

    @property
    def dim(self) -> int: ...

    def load(self) -> Any:
        """Read the weights, once. The first text does so too."""
        ...

    def prepare(self, texts: list[str]) -> Prepared: ...

    def batches(self, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
        """Positions of texts, longest first, in batches of one text or at most so many tokens."""
        ...

    def one_thread(self) -> contextlib.AbstractContextManager:
        """In it, one thread computes a product: how it is shared among threads changes its last bits."""
        ...

    def forward(self, taken: Any) -> np.ndarray:
        """Unit vectors f32, of the batch [n, V] first; some of its texts may follow again."""
        ...


def choose_backend(folder: Path, device: str) -> Backend:
    """The exact one for the sentence encoder in `folder`. Reads its settings only, not its weights."""
    files = find_bert(folder)
    return _Library(folder, device) if files is None else _Bert(files, device)


def int8_backend(folder: Path, digest: str, converted: Path) -> Backend:
    """The lossy one.

    Args:
        digest: of the model's files.
        converted: the folder for converted weights.

    Raises DataError where the model is not such a BERT, and without the package.
    """
    int8_bert.check_package()
    files = find_bert(folder)
    if files is None:
        raise DataError(
            f"extract.encoder_precision=int8: {folder} is not a BERT with mean pooling "
            "in single precision; use exact"
        )
    return _Bert(files, "cpu", int8_bert.Int8Bert(files, digest, converted))


def packed_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Positions of texts, longest first, in batches of one text or at most so many tokens."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.concatenate([[0], np.cumsum(lengths[order])])
    batches, start = [], 0
    while start < len(order):
        stop = int(np.searchsorted(ends, ends[start] + batch_tokens, side="right")) - 1
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def equal_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Positions of texts of equal length, longest first, in batches of one text or at most so many tokens."""
    order = np.argsort(-lengths, kind="stable")
    batches = []
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        if len(group):
            size = max(1, batch_tokens // max(1, int(lengths[group[0]])))
            batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def fill(batch: np.ndarray, length: int) -> np.ndarray:
    """Positions of texts of `length` tokens, repeated where they are so few that their bits would differ."""
    return np.resize(batch, max(len(batch), -(-_LEAST_TOKENS // max(1, length))))


@contextlib.contextmanager
def one_thread_of_torch() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tokens:
    """Ids of tokens, one text after the other."""

    def __init__(self, ids: list[np.ndarray]) -> None:
        self.lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([np.zeros(0, np.int32), *ids])

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """i32 [T], the tokens of all texts, and i64 [n + 1], where each begins, and the end."""
        ends = np.cumsum(self.lengths[positions])
        starts = np.concatenate([[0], ends])
        shift = np.repeat(self._starts[positions] - starts[:-1], self.lengths[positions])
        return self._ids[np.arange(starts[-1]) + shift], starts


class _Bert:
    """BERT written out: by torch on a GPU, else compiled, or `lossy`."""

    def __init__(self, files: BertFiles, device: str, lossy: int8_bert.Int8Bert | None = None) -> None:
        self.files, self.dim = files, files.width
        self.threads, self.batches = device == "cpu", packed_batches
        if lossy:
            bert, self.identity, self.batches = lossy, lossy.identity, equal_batches
            self.one_thread = contextlib.nullcontext
        elif self.threads:
            bert = compiled_bert.CompiledBert(files)
            self.identity = f"compiled {compiled_bert.COMPUTATION} {device}"
            self.one_thread = contextlib.nullcontext  # there are no others
        else:
            bert = torch_bert.TorchBert(files, device)
            self.identity = f"fused {torch_bert.COMPUTATION} torch {version('torch')} {device}"
            self.one_thread = one_thread_of_torch
        self.forward, self.load = bert.forward, bert.load

    @cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.files.tokenizer))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.files.max_tokens)
        return tokenizer

    def prepare(self, texts: list[str]) -> _Tokens:
        ids = []
        for start in range(0, len(texts), _LENGTHS_CHUNK):
            encoded = self._tokenizer.encode_batch_fast(texts[start : start + _LENGTHS_CHUNK])
            ids += [np.asarray(text.ids, np.int32) for text in encoded]
        return _Tokens(ids)


class _Texts:
    def __init__(self, texts: list[str], lengths: np.ndarray) -> None:
        self.lengths, self._texts = lengths, texts

    def take(self, positions: np.ndarray) -> list[str]:
        """Texts of equal length, some of them again at the end if they are few."""
        return [self._texts[i] for i in fill(positions, int(self.lengths[positions[0]]))]


class _Library:
    threads: ClassVar = False  # much of it is Python, which runs in one thread at a time

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device, self._model = folder, device, None
        made_by = [f"{name} {version(name)}" for name in ("sentence-transformers", "transformers", "torch")]
        self.identity = f"library {' '.join(made_by)} {device}"
        self.one_thread, self.batches = one_thread_of_torch, equal_batches

    @property
    def dim(self) -> int:
        return self.load().get_embedding_dimension()

    def load(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # takes seconds: only where needed
            from transformers.utils import logging

            logging.disable_progress_bar()  # that of loading the weights below
            with loading("extract.encoder", self.folder, "sentence encoder"):
                model = SentenceTransformer(str(self.folder), device=self.device, local_files_only=True)
            if not model.get_embedding_dimension():
                raise DataError(
                    f"extract.encoder: {self.folder} does not say how many numbers its vectors have; choose "
                    "another encoder"
                )
            self._model = model.eval()
        return self._model

    def prepare(self, texts: list[str]) -> _Texts:
        model = self.load()
        prompt = model.prompts.get(model.default_prompt_name)
        lengths = [np.zeros(0, np.int64)]
        for start in range(0, len(texts), _LENGTHS_CHUNK):
            chunk = texts[start : start + _LENGTHS_CHUNK]
            mask = model.preprocess(chunk, prompt=prompt).get("attention_mask")
            # Without a mask nothing is padded: a text's words are summed one by one.
            lengths.append(np.ones(len(chunk), np.int64) if mask is None else mask.sum(1).cpu().numpy())
        return _Texts(texts, np.concatenate(lengths))

    def forward(self, taken: list[str]) -> np.ndarray:
        vectors = self.load().encode(
            taken,
            batch_size=len(taken),
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        return np.asarray(vectors, np.float32)
