"""The kinds of columns that an affinity has: each computes its own from codes of users and items."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlrrec_torchrec.features.neighbour_kernels import by_graph, by_vectors, pair_dots
from dlrrec_torchrec.features.review_lists import Lists, Similar

VECTOR_COLUMNS = ("mean", "mass", "largest")
GRAPH_COLUMNS = (*VECTOR_COLUMNS, "correlated", "correlated_sum", "support")


@dataclasses.dataclass(frozen=True)
class Own:
    """A number of the user, or of the item, alone.

    Attributes:
        name: of the column; side: "user" or "item"; values: float32 [E].
    """

    name: str
    side: str
    values: np.ndarray

    @property
    def names(self) -> list[str]:
        return [self.name]

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return self.values[user if self.side == "user" else item][:, None]


@dataclasses.dataclass(frozen=True)
class Vector:
    """A vector of the user, or of the item, alone: what a model may multiply with the other side's.

    Attributes:
        name: begins the names of its K columns; side: "user" or "item"; values: float32 [E, K].
    """

    name: str
    side: str
    values: np.ndarray

    @property
    def names(self) -> list[str]:
        return [f"{self.name}{k}" for k in range(self.values.shape[1])]

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return self.values[user if self.side == "user" else item]


@dataclasses.dataclass(frozen=True)
class Dot:
    """u . i, or (u . i) / (1 + s . i) where the user has a support s.

    Attributes:
        name: of the column; user, support: float32 [U, D]; item: float32 [I, D].
    """

    name: str
    user: np.ndarray
    item: np.ndarray
    support: np.ndarray | None = None

    @property
    def names(self) -> list[str]:
        return [self.name]

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        value = pair_dots(self.user, self.item, user, item)
        if self.support is not None:
            value /= 1 + np.maximum(pair_dots(self.support, self.item, user, item), 0)
        return value[:, None]


@dataclasses.dataclass(frozen=True)
class ByVectors:
    """Residuals in the user's history, weighted by how similar each item is to this one by its vector.

    With side "user": residuals of the item's reviewers, weighted by how similar each is to this user. See
    `neighbour_kernels.by_vectors`.

    Attributes:
        name: begins the names of its three columns.
        side: whose vectors are compared, "item" or "user".
        lists: of the other side's entities.
        vectors: float32 [E, D]; power, shrinkage: of the weights.
    """

    name: str
    side: str
    lists: Lists
    vectors: np.ndarray
    power: int
    shrinkage: float

    @property
    def names(self) -> list[str]:
        return [f"{self.name}.{column}" for column in VECTOR_COLUMNS]

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        pairs = _walked_and_target(self.side, user, item)
        return by_vectors(*pairs, *self.lists.arrays, self.vectors, self.power, self.shrinkage)


@dataclasses.dataclass(frozen=True)
class ByVisits:
    """As `ByVectors`, by who reviewed the same and how alike. See `neighbour_kernels.by_graph`."""

    name: str
    side: str
    lists: Lists
    similar: Similar
    shrinkage: float

    @property
    def names(self) -> list[str]:
        return [f"{self.name}.{column}" for column in GRAPH_COLUMNS]

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        pairs = _walked_and_target(self.side, user, item)
        return by_graph(*pairs, *self.lists.arrays, *self.similar.arrays, self.shrinkage)


def _walked_and_target(side: str, user: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whose list is walked through, and what its entries are compared with, of one `side`."""
    return (user, item) if side == "item" else (item, user)


Term = Own | Vector | Dot | ByVectors | ByVisits
KINDS = {kind.__name__: kind for kind in (Own, Vector, Dot, ByVectors, ByVisits)}

Compared = tuple[str, np.ndarray, int, float]  # name, vectors, power, shrinkage of a `ByVectors`
# Terms of one kind of knowledge, by what it compares items, by what it compares users.
Part = tuple[list[Term], list[Compared], list[Compared]]
