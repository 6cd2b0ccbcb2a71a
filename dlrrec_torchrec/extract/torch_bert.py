"""BERT with mean pooling in torch, for a GPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from dlrrec_torchrec.extract.bert import LAYER, PROJECTIONS, BertFiles
from dlrrec_torchrec.store.errors import DataError

if TYPE_CHECKING:
    import torch

COMPUTATION = 2  # part of the cache's keys: another number for any change to the bits


class TorchBert:
    """The forward pass. The weights are read when they are first asked for."""

    def __init__(self, files: BertFiles, device: str) -> None:
        self.files, self.device = files, device
        self.load = functools.cache(self._load)

    def _load(self) -> tuple:
        """Vectors of words f32 [W, V] and of places f32 [P, V]; scale and shift f32 [V]; the layers'."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = load_file(self.files.weights, device=self.device)
        except (OSError, SafetensorError) as error:
            raise DataError(f"extract.encoder: {self.files.weights} cannot be read ({error})") from None
        places = (
            stored["embeddings.position_embeddings.weight"]
            + stored["embeddings.token_type_embeddings.weight"][0]
        )
        layers = []
        for number in range(self.files.layers):
            weight, bias = (
                torch.cat([stored[f"encoder.layer.{number}.{name}.{kind}"] for name in PROJECTIONS])
                for kind in ("weight", "bias")
            )
            layers.append((weight, bias, *(stored[f"encoder.layer.{number}.{name}"] for name in LAYER)))
        norm = stored["embeddings.LayerNorm.weight"], stored["embeddings.LayerNorm.bias"]
        return stored["embeddings.word_embeddings.weight"], places, norm, layers

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Ids of tokens i32 [T] and the texts' starts i64 [n + 1] -> unit vectors f32 [n, V].

        Attention takes neighbours of equal length together: texts should come sorted by their lengths.
        """
        import torch
        from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize

        words, places, norm, layers = self.load()
        ids, starts = batch
        lengths = np.diff(starts)
        groups = np.split(lengths, np.flatnonzero(np.diff(lengths)) + 1)
        shapes = [(len(group), int(group[0])) for group in groups]
        sizes = [texts * length for texts, length in shapes]
        shape, epsilon = (self.files.width,), self.files.epsilon
        with torch.inference_mode():
            place = torch.from_numpy(np.arange(len(ids)) - np.repeat(starts[:-1], lengths)).to(self.device)
            x = embedding(torch.from_numpy(ids).to(self.device), words).add_(places[place])
            x = layer_norm(x, shape, *norm, epsilon)
            for qkv, qkv_bias, out, out_bias, g1, b1, wide, wide_bias, back, back_bias, g2, b2 in layers:
                parts = linear(x, qkv, qkv_bias).split(sizes)
                seen = [self._attention(part, *form) for part, form in zip(parts, shapes, strict=True)]
                x = layer_norm(linear(torch.cat(seen), out, out_bias).add_(x), shape, g1, b1, epsilon)
                hidden = gelu(linear(x, wide, wide_bias))
                x = layer_norm(linear(hidden, back, back_bias).add_(x), shape, g2, b2, epsilon)
            means = [part.view(*form, -1).mean(1) for part, form in zip(x.split(sizes), shapes, strict=True)]
            return normalize(torch.cat(means), dim=1).cpu().numpy()

    def _attention(self, qkv: torch.Tensor, texts: int, length: int) -> torch.Tensor:
        """Queries, keys and values f32 [texts · length, 3 V] -> f32 [texts · length, V]."""
        from torch.nn.functional import scaled_dot_product_attention

        parts = qkv.view(texts, length, 3, self.files.heads, -1).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(*parts).transpose(1, 2).reshape(texts * length, -1)
