"""Captions by BLIP-2 (Li et al. 2023) without a prompt, as the papers made them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from dlrrec_torchrec.extract.model_files import model_folder
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import file_digest

DEFAULT_MODEL = "Salesforce/blip2-opt-2.7b"
_SETTING = "pictures.captioner_model (--captioner-model)"
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
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
        self._folder = model_folder(name, _SETTING, "let --captioner none do without")
        files = [path for pattern in _MODEL_FILES for path in self._folder.rglob(pattern)]
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._type = torch.float16 if self._device.startswith("cuda") else torch.float32
        self.identity = f"blip2 {file_digest(files)} {self._type} {_MOST_TOKENS} {_FIRST} {_AGAIN}"
        self._loaded: tuple[Any, Any] | None = None

    def captions(self, pictures: list[Image.Image], again: bool = False) -> list[str]:
        """One caption a picture, as the model writes it; `again`: by a wider search."""
        processor, model = self._load()
        inputs = processor(images=pictures, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._type)
        try:
            with torch.inference_mode():
                found = model.generate(
                    pixel_values=pixels, max_new_tokens=_MOST_TOKENS, **(_AGAIN if again else _FIRST)
                )
        except torch.OutOfMemoryError:
            if len(pictures) == 1:
                raise DataError(
                    f"{_SETTING} '{self.name}': no memory on {self._device} for a single picture; name a "
                    "smaller model"
                ) from None
            half = len(pictures) // 2
            return self.captions(pictures[:half], again) + self.captions(pictures[half:], again)
        return [text.strip() for text in processor.batch_decode(found, skip_special_tokens=True)]

    def close(self) -> None:
        """Give the model's memory back; a later call loads it again."""
        self._loaded = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from safetensors import SafetensorError
            from transformers import Blip2ForConditionalGeneration, Blip2Processor
            from transformers.utils import logging

            logging.disable_progress_bar()
            try:
                processor = Blip2Processor.from_pretrained(self._folder, local_files_only=True)
                model = Blip2ForConditionalGeneration.from_pretrained(
                    self._folder, dtype=self._type, local_files_only=True
                )
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
                raise DataError(
                    f"{_SETTING}: {self._folder} holds no BLIP-2 model that can be loaded "
                    f" ({str(error).splitlines()[0]:.200})"
                ) from None
            self._loaded = processor, model.to(self._device).eval()
        return self._loaded
