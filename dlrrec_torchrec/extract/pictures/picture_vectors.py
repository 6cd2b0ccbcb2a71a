"""Vectors that a model makes of pictures themselves, in the place of those of their captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrrec_torchrec.config import PicturesConfig
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.extract.pictures.picture_words import Listed, PictureWords
from dlrrec_torchrec.extract.pictures.resnet import ResNetVectors
from dlrrec_torchrec.extract.strings import Strings
from dlrrec_torchrec.store.mapped import mapped_zeros


class PictureVectors(PictureWords):
    """Pictures of documents by their SHA-256, and a vector of each.

    What PictureWords does with captions, this does with vectors; captions that the source gives count for
    nothing. Vectors stay in the cache (captions.sqlite), not in memory.
    """

    makes, way_out = "vector", "--picture-vectors captions"

    def __init__(self, settings: PicturesConfig, folder: Path | None, cache_dir: Path):
        self.resnet = ResNetVectors(settings.resnet_model)
        super().__init__(settings, self.resnet, folder, cache_dir)

    def _wanted(self, captions: Listed, pictures: Listed) -> list[str]:
        return pictures or []

    def __call__(self, captions: list[Listed], pictures: list[Listed]) -> list[list[str]]:
        """SHA-256 of the pictures of each document that have a vector; `look` has seen them."""
        return [
            [
                found.sha256
                for source in listed or []
                if (found := self.found.get(source)) and not found.problem
            ]
            for listed in pictures
        ]

    def embed(self, pieces: Strings, path: Path) -> np.ndarray:
        """The vectors f16 [P, V] of pictures by their SHA-256, mapped from the file `path`."""
        shape, identity = (len(pieces), self.resnet.dim), self.resnet.identity
        vectors, store = mapped_zeros(path, np.float16, shape), CaptionStore(self.cache_dir)
        try:
            for row, sha in enumerate(pieces):
                vectors[row] = np.frombuffer(store.of_picture(identity, sha), np.float16)
        finally:
            store.close()
        return vectors
