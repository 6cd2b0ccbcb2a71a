"""Captions by BLIP-2 (Li et al. 2023) without a prompt, as the papers made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from dlrrec_torchrec.extract.model_files import loading, model_digest, model_folder
from dlrrec_torchrec.extract.pictures.captions import Batches, Described, describe_here
from dlrrec_torchrec.extract.pictures.halves import in_halves

DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
SETTING = "pictures.captioner_model (--captioner-model)"
_MOST_TOKENS = 30
_FIRST = {"do_sample": False, "num_beams": 1}
# A caption that says nothing is tried once more: longer, by a wider search, and without repeating itself.
_AGAIN = {"do_sample": False, "num_beams": 5, "min_new_tokens": 5, "repetition_penalty": 1.5}


class Blip2Captioner:
    """BLIP-2 of transformers, loaded when the first picture is there; half precision on a GPU.

    Args:
        name: a folder, or a name on the model hub.
        device: torch device; None: CUDA where there is one, else CPU.

    Attributes:
        identity: changes whenever captions could.

    Raises DataError where the weights cannot be found or loaded.
    """

    def __init__(self, name: str = DEFAULT_MODEL, device: str | None = None):
        self.name = name
        self.folder = model_folder(name, SETTING, "let --captioner none do without")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._type = torch.float16 if self.device.startswith("cuda") else torch.float32
        self.identity = f"blip2 {model_digest(self.folder)} {self._type} {_MOST_TOKENS} {_FIRST} {_AGAIN}"
        self._processor: Any = None
        self._model: Any = None

    def describe(self, batches: Batches, most: int) -> Described:
        """As of `Captioner`, one batch after the other."""
        return describe_here(self.captions, batches)

    def captions(self, pictures: list[Image.Image], again: bool = False) -> list[str]:
        """One caption a picture, as the model writes it; `again`: by a wider search."""
        return self.words(self.pixels(pictures), again)

    def pixels(self, pictures: list[Image.Image]) -> list[np.ndarray]:
        """What the model sees of each, f32 [3, H, W]. Does not load the model."""
        return list(self._loaded_processor()(images=pictures, return_tensors="pt")["pixel_values"].numpy())

    def words(self, pixels: list[np.ndarray], again: bool = False) -> list[str]:
        """One caption for each picture's `pixels`."""
        self.load()

        def written(pixels: list[np.ndarray]) -> list[str]:
            values = torch.from_numpy(np.stack(pixels)).to(self.device, self._type)
            with torch.inference_mode():
                found = self._model.generate(
                    pixel_values=values, max_new_tokens=_MOST_TOKENS, **(_AGAIN if again else _FIRST)
                )
            texts = self._loaded_processor().batch_decode(found, skip_special_tokens=True)
            return [text.strip() for text in texts]

        return in_halves(written, pixels, f"{SETTING} '{self.name}'", self.device)

    def close(self) -> None:
        """Give the model's memory back; a later call loads it again."""
        self._model = None

    def load(self) -> None:
        """Read the weights, once. The first picture does so too."""
        if self._model is None:
            from transformers import Blip2ForConditionalGeneration
            from transformers.utils import logging

            logging.disable_progress_bar()
            with loading(SETTING, self.folder, "BLIP-2 model"):
                model = Blip2ForConditionalGeneration.from_pretrained(
                    self.folder, dtype=self._type, local_files_only=True
                )
            self._model = model.to(self.device).eval()

    def _loaded_processor(self) -> Any:
        if self._processor is None:
            from transformers import Blip2Processor

            with loading(SETTING, self.folder, "BLIP-2 model"):
                self._processor = Blip2Processor.from_pretrained(self.folder, local_files_only=True)
        return self._processor
