"""Vectors of pictures themselves: ResNet's pooled features (He et al. 2016), as MMREC takes them.

By transformers, whose weights of ResNet-50 are those that torchvision knows, so torchvision is not needed.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from dlrrec_torchrec.extract.model_files import loading, model_digest, model_folder
from dlrrec_torchrec.extract.pictures.captions import Batches, Described
from dlrrec_torchrec.extract.pictures.halves import in_halves

SETTING = "pictures.resnet_model (--resnet-model)"
_SHORT_SIDE, _SIZE = 256, 224  # a picture is scaled to the first, its middle taken, as He et al. test
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet's pixels in [0, 1], red, green, blue
_SD = np.array([0.229, 0.224, 0.225], np.float32)


class ResNetVectors:
    """The features after the last average pooling, at unit length; loaded when the first picture is there.

    Args:
        name: a folder, or a name on the model hub.
        device: torch device; None: CUDA where there is one, else CPU.

    Attributes:
        identity: changes whenever vectors could; the last bits may also depend on a batch and on threads.
        dim: numbers of a vector, 2,048 of ResNet-50.

    Raises DataError where the weights cannot be found or are not a ResNet's.
    """

    def __init__(self, name: str, device: str | None = None):
        self.name = name
        self._folder = model_folder(name, SETTING, "let --picture-vectors captions do without")
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with loading(SETTING, self._folder, "ResNet"):
            settings = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
            if settings["model_type"] != "resnet":
                raise ValueError(f"it is a {settings['model_type']}")
            self.dim = int(settings["hidden_sizes"][-1])
        self.identity = f"resnet 1 {model_digest(self._folder)} {_SHORT_SIDE} {_SIZE}"
        self._model: Any = None

    def describe(self, batches: Batches, most: int) -> Described:
        """As of `captions.Captioner`, with the bytes of float16 [dim] for a caption."""
        for number, pictures in enumerate(batches):
            yield number, [vector.tobytes() for vector in self.vectors(pictures).astype(np.float16)]

    def vectors(self, pictures: list[Image.Image]) -> np.ndarray:
        """Unit vectors f32 [n, dim]; a zero vector stays zero."""
        if self._model is None:
            self._model = self._loaded()

        def seen(pictures: list[Image.Image]) -> list[np.ndarray]:
            values = torch.from_numpy(np.stack([pixels(picture) for picture in pictures])).to(self._device)
            with torch.inference_mode():
                found = self._model(values).pooler_output.flatten(1)
            return list(torch.nn.functional.normalize(found.float(), dim=1).cpu().numpy())

        return np.stack(in_halves(seen, pictures, f"{SETTING} '{self.name}'", self._device))

    def close(self) -> None:
        """Give the model's memory back; a later call loads it again."""
        self._model = None

    def _loaded(self) -> Any:
        from transformers import ResNetModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        with loading(SETTING, self._folder, "ResNet"):
            model = ResNetModel.from_pretrained(self._folder, local_files_only=True)
        return model.to(self._device).eval()


def pixels(picture: Image.Image) -> np.ndarray:
    """What the model sees of a picture, f32 [3, 224, 224]."""
    picture = picture.convert("RGB")
    scale = _SHORT_SIDE / min(picture.size)
    width, height = (max(_SIZE, round(side * scale)) for side in picture.size)
    left, top = (width - _SIZE) // 2, (height - _SIZE) // 2
    middle = tuple(edge / scale for edge in (left, top, left + _SIZE, top + _SIZE))
    middle = (middle[0], middle[1], min(middle[2], picture.width), min(middle[3], picture.height))
    # The middle alone is scaled: of a long strip the whole could be too large.
    small = picture.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR, box=middle)
    values = (np.asarray(small, np.float32) / 255 - _MEAN) / _SD
    return np.ascontiguousarray(values.transpose(2, 0, 1))
