"""The encoder of this project, with its batches embedded on a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlrrec_torchrec.extract.backends import choose_backend
from dlrrec_torchrec.extract.cluster.connection import RayCluster, same_folder, weight_bytes
from dlrrec_torchrec.extract.encoder import DEFAULT_ENCODER, GPU_BATCHES, PROCESS_CHARACTERS, SentenceEncoder
from dlrrec_torchrec.store.errors import DataError

_SETTING = "extract.encoder (--encoder)"


class ClusterEncoder(SentenceEncoder):
    """Texts are tokenised and put into batches here, embedded there.

    On CPUs the bits, and the identity, are those of `SentenceEncoder` on a machine of the same kind. What
    would not keep a process busy is embedded here, on CPUs.

    Args:
        cluster: connected while texts are encoded.
        name, batch_tokens: as of `SentenceEncoder`; a folder must be there under this path on all nodes, a
            name is looked up by each of them.
    """

    def __init__(self, cluster: RayCluster, name: str = DEFAULT_ENCODER, batch_tokens: int = 1024):
        super().__init__(name, batch_tokens, cluster.device)
        self._cluster = cluster
        self._job = _Embedding(same_folder(name), self.device, self.identity, weight_bytes(self.folder))
        if self.device != "cpu":
            self._backend = choose_backend(self.folder, "cpu")  # this machine need not have a GPU

    def _started(self, texts: list[str]) -> contextlib.AbstractContextManager:
        share = PROCESS_CHARACTERS * (1 if self.device == "cpu" else GPU_BATCHES)
        most = sum(map(len, texts)) // share
        if self.device == "cpu" and not most:
            return contextlib.nullcontext()
        return self._cluster.actors(self._job, most)


@dataclasses.dataclass(frozen=True)
class _Embedding:
    """What an actor does: batches as `Backend.take` makes them into unit vectors f32 [n, V]."""

    encoder: str
    device: str
    identity: str
    weights: int
    name = _SETTING

    def load(self) -> Callable[[object], np.ndarray]:
        if Path(self.encoder).is_absolute() and not Path(self.encoder).is_dir():
            raise DataError(
                f"{_SETTING} {self.encoder}: there is no such folder; all nodes must see it under this path, "
                "on storage that they share or as a copy; --engine local embeds on this machine alone"
            )
        encoder = SentenceEncoder(self.encoder, device=self.device)
        if encoder.identity != self.identity:
            raise DataError(
                f"{_SETTING} {self.encoder}: is another encoder ({encoder.identity}) than on the machine "
                f"that started the command ({self.identity}): put the same files and versions on all"
            )
        return encoder.embedding()
