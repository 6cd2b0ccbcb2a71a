"""BERT with mean pooling in whole numbers of eight bits, by CTranslate2: faster, and not the same vectors.

Each row of a product is scaled by its own largest number, so here, too, a text's bits do not depend on what
it is computed with: a test holds that for batches of texts of equal length.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dlrrec_torchrec.extract.bert import BertFiles
from dlrrec_torchrec.store.errors import DataError

COMPUTATION = 1  # part of the cache's keys: another number for any change to the bits
_SETTING = "extract.encoder_precision=int8"
_STALE_SECONDS = 3600  # after which what is half converted belongs to nobody


def check_package() -> None:
    """Raise DataError without CTranslate2, of the extra `int8`."""
    if importlib.util.find_spec("ctranslate2") is None:
        raise DataError(
            f"{_SETTING}: needs ctranslate2: pip install 'dlrrec-torchrec[int8]' (exact needs nothing)"
        )


class Int8Bert:
    """The forward pass; several threads may compute at the same time.

    Args:
        digest: of the model's files.
        folder: where the converted weights (23 MB for the default encoder) lie, or will.
    """

    def __init__(self, files: BertFiles, digest: str, folder: Path) -> None:
        self.files = files
        self.identity = f"int8 {COMPUTATION} ctranslate2 {version('ctranslate2')} cpu"
        self._converted = folder / f"{digest[:16]}-int8-{version('ctranslate2')}"
        self.load = functools.cache(self._load)

    def _load(self) -> Any:
        from ctranslate2 import Encoder

        cores = len(os.sched_getaffinity(0))
        settings = {"device": "cpu", "compute_type": "int8", "inter_threads": cores, "intra_threads": 1}
        if self._converted.exists():
            with contextlib.suppress(RuntimeError):  # damaged: convert again
                return Encoder(str(self._converted), **settings)
            shutil.rmtree(self._converted, ignore_errors=True)
        self._convert()
        try:
            return Encoder(str(self._converted), **settings)
        except RuntimeError as error:
            raise DataError(f"{_SETTING}: {self._converted} cannot be loaded ({error})") from None

    def _convert(self) -> None:
        """Under another name first: a model that is there is whole."""
        from ctranslate2.converters import TransformersConverter
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder, name = self._converted.parent, f"{self._converted.name}.tmp-"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{name}*"):  # by a kill
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=name) as temporary:
            made = Path(temporary) / "model"
            try:
                TransformersConverter(str(self.files.weights.parent)).convert(str(made), quantization="int8")
            except (OSError, ValueError, RuntimeError) as error:
                raise DataError(f"{_SETTING}: {self.files.weights} cannot be converted ({error})") from None
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(made, self._converted)

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Ids of tokens i32 [T] and starts i64 [n + 1], texts of equal length -> unit vectors f32 [n, V]."""
        from ctranslate2 import StorageView

        ids, starts = batch
        texts = len(starts) - 1
        ids = np.ascontiguousarray(ids.reshape(texts, -1))
        lengths = np.full(texts, ids.shape[1], np.int32)
        encoder = self.load()
        made = encoder.forward_batch(StorageView.from_array(ids), StorageView.from_array(lengths))
        means = np.array(made.last_hidden_state).mean(1)
        return means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
