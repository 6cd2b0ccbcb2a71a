"""All columns of a row except its vectors, side by side: taking a row is one copy, not seven."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Their types in a batch; in shards all have 4 bytes.
_TYPES = dict.fromkeys(("label", "rating", "dense"), np.float32) | {"category": np.int32}
_TYPES |= dict.fromkeys(("user", "item", "user_positives", "item_positives"), np.int64)
_SINGLE = ("label", "rating", "user", "item")
_PADDING = dict.fromkeys(("label", "user", "item", "user_positives", "item_positives"), -1)  # 0 elsewhere


class Fields:
    """Where each column is in a row of W numbers of 4 bytes.

    Args:
        dense: dense features D.
        slots: category types of an item, at most; types: how many there are, the padding's code.
        positives: neighbours P of the user and of the item.

    Attributes:
        padding: i32 [W], a row of padding.
    """

    def __init__(self, dense: int, slots: int, types: int, positives: int) -> None:
        widths = {"label": 1, "rating": 1, "dense": dense, "category": slots, "user": 1, "item": 1}
        widths |= {"user_positives": positives, "item_positives": positives}
        self._places: dict[str, slice] = {}
        self._width = 0
        for name, width in widths.items():
            self._places[name] = slice(self._width, self._width + width)
            self._width += width
        padding = _PADDING | {"category": types}
        values = {name: np.full((1, width), padding.get(name, 0)) for name, width in widths.items()}
        short = {n: v.astype(np.float32 if _TYPES[n] is np.float32 else np.int32) for n, v in values.items()}
        self.padding = self.join(short, 1)[0]

    def join(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """i32 [rows, W] of f32 and i32 columns [rows] or [rows, width], wider ones cut off."""
        joined = np.empty((rows, self._width), np.int32)
        for name, place in self._places.items():
            if width := place.stop - place.start:
                values = columns[name].view(np.int32)
                joined[:, place] = values[:, :width] if values.ndim == 2 else values[:, None]
        return joined

    def split(self, joined: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of the columns of i32 [n, W].

        Returns:
            label, rating f32 [n]; dense f32 [n, D]; category i32 [n, slots]; user, item i64 [n];
            user_positives, item_positives i64 [n, P].
        """
        columns = {}
        for name, place in self._places.items():
            column = joined[:, place.start] if name in _SINGLE else joined[:, place]
            kind = _TYPES[name]
            columns[name] = column.view(kind).copy() if kind is np.float32 else column.astype(kind)
        return columns
