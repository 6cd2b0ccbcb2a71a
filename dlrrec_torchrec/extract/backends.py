"""How texts become vectors: BERT written out where it fits, else sentence-transformers' own forward pass.

Both take batches of texts of equal length in tokens. Padding would make the last bits of a vector depend on
what it was batched with; texts of equal length need none. Nothing heavy is imported before the first text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlrrec_torchrec.extract.bert import COMPUTATION, Bert, BertFiles, find_bert
from dlrrec_torchrec.store.errors import DataError

_LENGTHS_CHUNK = 8192  # texts tokenised at once
_LEAST_TOKENS = 64  # of fewer rows (4 with MKL) a matrix product takes another path, with other last bits


class Prepared(Protocol):
    """N tokenised texts; `lengths` i64 [N] is their tokens."""

    lengths: np.ndarray

    def take(self, positions: np.ndarray) -> Any:
        """What `Backend.forward` needs of some texts of equal length; it can be pickled."""
        ...


class Backend(Protocol):
    """`identity` names it and the versions of what computes it; `dim` is the numbers V of a vector."""

    identity: str

    @property
    def dim(self) -> int: ...

    def load(self) -> Any:
        """Read the weights, once. The first text does so too."""
        ...

    def prepare(self, texts: list[str]) -> Prepared: ...

    def forward(self, taken: Any) -> np.ndarray:
        """Unit vectors f32 [n, V]."""
        ...


def choose_backend(folder: Path, device: str) -> Backend:
    """The one for the sentence encoder in `folder`. Reads its settings only, not its weights."""
    files = find_bert(folder)
    return _Library(folder, device) if files is None else _Fused(files, device)


def fill(batch: np.ndarray, length: int) -> np.ndarray:
    """Positions of texts of `length` tokens, repeated where they are so few that their bits would differ."""
    return np.resize(batch, max(len(batch), -(-_LEAST_TOKENS // max(1, length))))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch within the block: how a product is shared among threads changes its last bits."""
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

    def take(self, positions: np.ndarray) -> np.ndarray:
        """i32 [n, L]."""
        return self._ids[self._starts[positions, None] + np.arange(self.lengths[positions[0]])]


class _Fused:
    def __init__(self, files: BertFiles, device: str) -> None:
        self.files, self.dim = files, files.width
        self.identity = f"fused {COMPUTATION} torch {version('torch')} {device}"
        self._bert = Bert(files, device)
        self.forward = self._bert.forward
        self.load = self._bert.load

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
        return [self._texts[i] for i in positions]


class _Library:
    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device, self._model = folder, device, None
        made_by = [f"{name} {version(name)}" for name in ("sentence-transformers", "transformers", "torch")]
        self.identity = f"library {' '.join(made_by)} {device}"

    @property
    def dim(self) -> int:
        return self.load().get_embedding_dimension()

    def load(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # takes seconds: only where needed
            from transformers.utils import logging

            logging.disable_progress_bar()  # that of loading the weights below
            try:
                model = SentenceTransformer(str(self.folder), device=self.device, local_files_only=True)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(
                    f"extract.encoder: {self.folder} holds no sentence encoder that can be loaded ({reason})"
                ) from None
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
