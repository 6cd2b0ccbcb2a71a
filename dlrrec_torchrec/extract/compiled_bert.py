"""BERT with mean pooling for a CPU, by the compiled loops of `vector_loops.py`.

Without torch, whose import takes 2.5 s of processor time, and without a library for matrix products: in
those, the last bits of a row depend on its place among the others (OpenBLAS) or on their number (MKL), and on
the machine. Here a text's vector has the same bits whatever it is computed with.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np

from dlrrec_torchrec.extract.bert import LAYER, PROJECTIONS, BertFiles
from dlrrec_torchrec.store.errors import DataError

COMPUTATION = 1  # part of the cache's keys: another number for any change to the bits
_ROWS, _PANEL = 6, 16  # of `vector_loops.product`
_MATRICES = ("attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight")


class CompiledBert:
    """The forward pass; several threads may compute at the same time. The weights are read when they are
    first asked for."""

    def __init__(self, files: BertFiles) -> None:
        self.files = files
        self.load = functools.cache(self._load)

    def _load(self) -> tuple:
        """Vectors of words f32 [W, V] and of places f32 [P, V]; scale and shift f32 [V]; the layers'."""
        import numba  # takes a third of a second: not where all vectors are known
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if numba.config.DISABLE_JIT:
            raise DataError(
                "NUMBA_DISABLE_JIT (or disable_jit in .numba_config.yaml) is set, and the loops of "
                "extract.encoder are no plain Python: unset it; all stages but extract and swing can be "
                "debugged with it"
            )
        try:
            stored = load_file(self.files.weights)
        except (OSError, SafetensorError) as error:
            raise DataError(f"extract.encoder: {self.files.weights} cannot be read ({error})") from None
        places = (
            stored["embeddings.position_embeddings.weight"]
            + stored["embeddings.token_type_embeddings.weight"][0]
        )
        layers = [self._layer(stored, f"encoder.layer.{number}") for number in range(self.files.layers)]
        norm = stored["embeddings.LayerNorm.weight"], stored["embeddings.LayerNorm.bias"]
        return stored["embeddings.word_embeddings.weight"], places, norm, layers

    def _layer(self, stored: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
        """Queries, keys and values, their bias f32 [3 V], and the rest in the order of `LAYER`. Queries are
        scaled for softmax; matrices lie as `product` reads them."""
        scale = np.float32((self.files.width // self.files.heads) ** -0.5)
        weights, biases = (
            [stored[f"{prefix}.{name}.{kind}"] for name in PROJECTIONS] for kind in ("weight", "bias")
        )
        own = {name: stored[f"{prefix}.{name}"] for name in LAYER}
        own |= {name: _panels(own[name]) for name in _MATRICES}
        weight, bias = (np.concatenate([query * scale, *rest]) for query, *rest in (weights, biases))
        return [_panels(weight), bias, *own.values()]

    def forward(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Ids of tokens i32 [T] and the texts' starts i64 [n + 1] -> unit vectors f32 [n, V]."""
        from dlrrec_torchrec.extract import vector_loops as loops  # compiled when first used

        try:
            return self._forward(loops, *batch)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise DataError(
                f"{loops.product.stats.cache_path}: loops compiled for extract.encoder cannot be read or "
                f"kept there ({error}): delete what is in it, or name another folder by NUMBA_CACHE_DIR"
            ) from None

    def _forward(self, loops: Any, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        words, places, norm, layers = self.load()
        lengths = np.diff(starts)
        place = (np.arange(len(ids)) - np.repeat(starts[:-1], lengths)).astype(np.int32)
        width, size = self.files.width, self.files.width // self.files.heads
        epsilon = np.float32(self.files.epsilon)
        rows = -(-len(ids) // _ROWS) * _ROWS
        x, y, seen, qkv, hidden = (
            np.empty((rows, numbers), np.float32)
            for numbers in (width, width, width, 3 * width, len(layers[0][7]))
        )
        seen[len(ids) :] = 0
        wide = -(-int(lengths.max()) // _PANEL) * _PANEL
        scratch = np.zeros(size * wide, np.float32), np.zeros(4 * wide, np.float32)
        loops.embed(ids, place, words, places, *norm, epsilon, x)
        for into, into_bias, out, out_bias, g1, b1, widen, wide_bias, back, back_bias, g2, b2 in layers:
            loops.product(x, into, into_bias, False, qkv)
            loops.attention(qkv, starts, size, *scratch, seen)
            loops.product(seen, out, out_bias, False, y)
            loops.add_norm(x, y, g1, b1, epsilon)
            loops.product(x, widen, wide_bias, True, hidden)
            loops.product(hidden, back, back_bias, False, y)
            loops.add_norm(x, y, g2, b2, epsilon)
        vectors = np.empty((len(lengths), width), np.float32)
        loops.pool(x, starts, vectors)
        return vectors


def _panels(weight: np.ndarray) -> np.ndarray:
    """f32 [N, K] -> [N / 16, K, 16]"""
    outputs, inputs = weight.shape
    return np.ascontiguousarray(weight.reshape(outputs // _PANEL, _PANEL, inputs).transpose(0, 2, 1))
