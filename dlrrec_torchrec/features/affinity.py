"""Affinity: what a user's own history says of an item, and the item's reviewers of the user.

One function (`Affinity.columns`) makes these features for training rows, evaluation and serving; they differ
only in the rows that the affinity was fitted on (`fit_affinity`): those a training row may see, or all.

Below, r is a rating's residual (`biases`), x a centred vector of unit length, and H(u) a user's history.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sparse

from dlrrec_torchrec.features.affinity_terms import KINDS, ByVectors, ByVisits, Dot, Own, Part, Term
from dlrrec_torchrec.features.biases import fit_biases
from dlrrec_torchrec.features.category_profiles import by_categories
from dlrrec_torchrec.features.factors import factorise
from dlrrec_torchrec.features.low_rank import basis, centred, leading_directions, unit
from dlrrec_torchrec.features.review_lists import Lists, Similar, make_lists, make_similar
from dlrrec_torchrec.store.errors import DataError

LIST = 256  # reviews of a user or an item that neighbourhoods walk through
SIMILAR = 200  # entities that share reviewers, kept of each
TEXT_RANKS = (8, 24)
VISIT_RANKS = (8, 24)
INDEX = "affinity.json"


@dataclasses.dataclass(frozen=True)
class History:
    """The reviews that an affinity is fitted on, and what is known of the items and users by them.

    Attributes:
        user, item: int64 [N] codes; rating, label: float [N].
        users, items: how many there are.
        vectors: modality -> float32 [U, D] of users, [I, D] of items, zeros where missing. Modalities of one
            name after `user_` and `item_` are of one space.
        category: int [I, slots] codes, best first; category_types and above: none.
        price: int [I], positions in PRICE_TAGS.
        likes, avoids: int [U, slots] codes as `category`, of what users say of their taste anywhere.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    label: np.ndarray
    users: int
    items: int
    vectors: Mapping[str, np.ndarray]
    category: np.ndarray
    category_types: int
    price: np.ndarray
    likes: np.ndarray
    avoids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Affinity:
    """Features of any pairs of user and item.

    Attributes:
        terms: what makes the columns, in order.
    """

    terms: tuple[Term, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(name for term in self.terms for name in term.names)

    def columns(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float32 [N, F] of pairs of codes, int [N] each. Finite; 0 where nothing is known."""
        user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
        out = np.zeros((len(user), len(self.names)), np.float32)
        start = 0
        for term in self.terms:
            width = len(term.names)
            out[:, start : start + width] = term.columns(user, item)
            start += width
        return out

    def save(self, folder: Path) -> None:
        """Write the terms to `folder` as .npy files and one JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[int, str] = {}  # an array that several terms share is written once

        def described(value: object) -> object:
            if dataclasses.is_dataclass(value):
                fields = dataclasses.fields(value)
                return {"kind": type(value).__name__} | {
                    f.name: described(getattr(value, f.name)) for f in fields
                }
            if not isinstance(value, np.ndarray):
                return value
            if id(value) not in files:
                files[id(value)] = f"{len(files):03d}.npy"
                np.save(folder / files[id(value)], value, allow_pickle=False)
            return {"file": files[id(value)]}

        terms = [described(term) for term in self.terms]
        (folder / INDEX).write_text(json.dumps(terms, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Affinity:
        """What `save` wrote. Raises DataError for files that are missing or damaged."""
        kinds = KINDS | {"Lists": Lists, "Similar": Similar}
        arrays: dict[str, np.ndarray] = {}

        def made(value: object) -> object:
            if not isinstance(value, dict):
                return value
            if "file" in value:
                name = value["file"]
                if name not in arrays:
                    arrays[name] = np.load(folder / name, allow_pickle=False)
                return arrays[name]
            return kinds[value["kind"]](**{k: made(v) for k, v in value.items() if k != "kind"})

        try:
            terms = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return Affinity(tuple(made(term) for term in terms))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{folder}: damaged ({error}); run `dlrrec prepare` again") from None


def fit_affinity(history: History) -> Affinity:
    """The features of a history.

    Of the user or item alone:
        user.bias, item.bias: of ratings (`fit_biases`); user.label_bias, item.label_bias: of labels;
        user.count, item.count: log(1 + reviews).
    By each modality's vectors, for items (`Dot`):
        M.history: cosine of sum_{j in H(u)} x_j with x_i; M.residual: sum_j r_uj x_j . x_i / (2 + |H(u)|);
        M.own: cosine of the user's own vector of the same space with x_i; M.svdK, M.own_svdK: both in the K
        leading directions of users' vectors.
    By categories: see `category_profiles.by_categories`.
    By price: price.residual: sum of r over the user's items of this tag / (3 + their number); price.share.
    By ids: visits.svdK: of the interactions divided by sqrt(user's count x item's count); factors: product of
        the factors of residuals (`factorise`).
    By neighbours (`ByVectors`, `ByVisits`): item_knn.X.*: residuals of the user at items similar to this one
        by X (a modality, categories, visits: who reviewed both, and the correlation of their residuals);
        user_knn.X.*: residuals at this item of users who are similar by X (own vectors, vectors of the
        history, category profile, visits).
    """
    user, item = np.asarray(history.user, np.int64), np.asarray(history.item, np.int64)
    rating, label = (np.asarray(v, np.float64) for v in (history.rating, history.label))
    users, items = history.users, history.items
    biases, label_biases = (fit_biases(user, item, v, users, items) for v in (rating, label))
    residual = biases.residual(user, item, rating).astype(np.float32)
    user_count, item_count = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    by_user = make_lists(user, item, residual, users, LIST)
    by_item = make_lists(item, user, residual, items, LIST)
    visits = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), (users, items))
    residuals = sparse.csr_matrix((residual, (user, item)), (users, items))

    terms: list[Term] = []
    for side, count, name in (("user", user_count, "user"), ("item", item_count, "item")):
        for column, values in (
            ("bias", getattr(biases, name)),
            ("label_bias", getattr(label_biases, name)),
            ("count", np.log1p(count)),
        ):
            terms.append(Own(f"{side}.{column}", side, values.astype(np.float32)))

    parts = [
        _by_contents(history.vectors, visits, residuals, user_count),
        by_categories(
            history.category, history.likes, history.avoids, history.category_types, visits, residuals
        ),
        _by_prices(history.price, user, item, residual, user_count),
    ]
    terms += [term for own, _, _ in parts for term in own]
    if len(user):
        terms += _by_ids(visits, user_count, item_count, by_user, by_item)
    for side, lists, vectors in (
        ("item", by_user, [v for _, of_items, _ in parts for v in of_items]),
        ("user", by_item, [v for _, _, of_users in parts for v in of_users]),
    ):
        for name, matrix, power, shrinkage in vectors:
            terms.append(ByVectors(f"{side}_knn.{name}", side, lists, matrix, power, shrinkage))
        own, others, degree = (
            (by_item, by_user, item_count) if side == "item" else (by_user, by_item, user_count)
        )
        similar = make_similar(own, others, degree, SIMILAR)
        terms.append(ByVisits(f"{side}_knn.visits", side, lists, similar, 0.3))
    return Affinity(tuple(terms))


def _by_contents(
    vectors: Mapping[str, np.ndarray],
    visits: sparse.csr_matrix,
    residuals: sparse.csr_matrix,
    user_count: np.ndarray,
) -> Part:
    dots, of_items, of_users = [], [], []
    centred_vectors = {}
    for name, matrix in vectors.items():
        present = matrix.any(axis=1)
        mean = matrix[present].mean(0) if present.any() else np.zeros(matrix.shape[1], np.float32)
        centred_vectors[name] = centred(matrix, mean)
    for name, x in centred_vectors.items():
        if name.startswith("user_"):
            of_users.append((name, x, 2, 0.3))
            continue
        walked = unit(visits @ x)
        dots.append(Dot(f"{name}.history", walked, x))
        dots.append(Dot(f"{name}.residual", ((residuals @ x) / (2 + user_count)[:, None]).astype("f4"), x))
        own = centred_vectors.get(name.replace("item_", "user_", 1))
        if own is not None and own.shape[1] != x.shape[1]:
            own = None
        if own is not None:
            dots.append(Dot(f"{name}.own", own, x))
        seen = walked if own is None else np.concatenate([walked, own])
        directions = basis(seen, max(TEXT_RANKS))
        for rank in TEXT_RANKS:
            leading = directions[:, :rank]
            reduced = unit(x @ leading)
            dots.append(Dot(f"{name}.svd{rank}", unit(walked @ leading), reduced))
            if own is not None:
                dots.append(Dot(f"{name}.own_svd{rank}", unit(own @ leading), reduced))
        of_items.append((name, x, 3, 0.3))
        of_users.append((f"{name}_history", walked, 2, 0.5))
    return dots, of_items, of_users


def _by_prices(
    price: np.ndarray, user: np.ndarray, item: np.ndarray, residual: np.ndarray, user_count: np.ndarray
) -> Part:
    tags = int(price.max(initial=0)) + 1
    if len(np.unique(price)) < 2:
        return [], [], []
    place, size = user * tags + price[item], (len(user_count), tags)
    total = np.bincount(place, residual, size[0] * tags).reshape(size)
    count = np.bincount(place, minlength=size[0] * tags).reshape(size)
    one_hot = np.eye(tags, dtype=np.float32)[price]
    share = (count + 0.5) / (user_count[:, None] + 2)
    return (
        [
            Dot("price.residual", (total / (3 + count)).astype(np.float32), one_hot),
            Dot("price.share", share.astype(np.float32), one_hot),
        ],
        [],
        [],
    )


def _by_ids(
    visits: sparse.csr_matrix,
    user_count: np.ndarray,
    item_count: np.ndarray,
    by_user: Lists,
    by_item: Lists,
) -> list[Term]:
    root = np.sqrt(np.maximum(user_count, 1)).astype(np.float32)
    scaled = sparse.diags(1 / root) @ visits @ sparse.diags(1 / np.sqrt(np.maximum(item_count, 1)))
    scaled = scaled.astype(np.float32).tocsr()
    directions = leading_directions(scaled, max(VISIT_RANKS))
    of_user = np.asarray(scaled @ directions) * root[:, None]
    terms: list[Term] = [
        Dot(f"visits.svd{rank}", *(np.ascontiguousarray(m[:, :rank]) for m in (of_user, directions)))
        for rank in VISIT_RANKS
    ]
    return [*terms, Dot("factors", *factorise(by_user, by_item))]
