"""Affinity by categories: those of a user's history and of what she says to like, against an item's."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse

from dlrrec_torchrec.features.affinity_terms import Dot, Part, Term, Vector
from dlrrec_torchrec.features.low_rank import leading_directions, normalised_rows, steady_turn, unit
from dlrrec_torchrec.store.schema import ITEM_PROFILE, USER_PROFILE

CATEGORY_RANK = 64  # of categories, where there are more
PROFILE_RANKS = (4, 8, 16)  # of the users' profiles
SAID = 2.0  # items that a category counts for in a profile, where the user says to like it


def by_categories(
    category: np.ndarray,
    likes: np.ndarray,
    avoids: np.ndarray,
    types: int,
    visits: sparse.csr_matrix,
    residuals: sparse.csr_matrix,
) -> Part:
    """Columns of categories; nothing where no item has any.

    With c_i an item's categories (1 / sqrt(rank) by place, times idf, unit length), r a rating's residual,
    H(u) a user's items, and the profile p_u = sum_{j in H(u)} c_j + SAID (l_u - a_u), where l_u and a_u are
    what the user says to like and to avoid, made as c_i but not of unit length:

        category.cosine: cosine of p_u with c_i; category.residual: sum_j r_uj c_j . c_i / (1 + sum_j c_j .
        c_i); category.svdK: cosine in the K leading directions of all profiles;
        category.userK, category.itemK: numbers of p_u, at unit length, and of c_i in 16 leading directions
        (turned as `low_rank.steady_turn` has it), for products of the two in the model (Rendle 2010,
        "Factorization Machines", equation 1, with a full matrix between the two groups of features).

    Args:
        category: int [I, slots] codes, best first; `types` and above: none.
        likes, avoids: int [U, slots] codes alike.
        visits, residuals: float32 [U, I], ones and residuals of the reviews.
    """
    known = category < types
    if not known.any():
        return [], [], []
    weights = _weights(category, types)
    idf = np.log(len(category) / np.maximum(weights.getnnz(0), 1)).clip(0.1).astype(np.float32)
    of_items = normalised_rows((weights @ sparse.diags(idf)).tocsr())
    walked = (visits @ of_items).tocsr()
    used = np.flatnonzero(weights.getnnz(0))
    scale = idf / np.sqrt(np.mean(np.square(idf[used])))
    said = (_weights(likes, types) - _weights(avoids, types)) @ sparse.diags(scale)
    profile = normalised_rows((walked + SAID * said).tocsr().astype(np.float32))
    if len(used) <= CATEGORY_RANK:
        directions = np.eye(types, dtype=np.float32)[:, used]
    else:
        directions = leading_directions(of_items, CATEGORY_RANK)
    x = np.asarray(of_items @ directions, np.float32)
    terms: list[Term] = [
        Dot("category.cosine", np.asarray(profile @ directions, np.float32), x),
        Dot(
            "category.residual",
            np.asarray(residuals @ of_items @ directions, np.float32),
            x,
            support=np.asarray(walked @ directions, np.float32),
        ),
    ]
    leading = leading_directions(profile, max(PROFILE_RANKS))
    of_user, of_item = np.asarray(profile @ leading), np.asarray(of_items @ leading)
    for rank in PROFILE_RANKS:
        terms.append(Dot(f"category.svd{rank}", unit(of_user[:, :rank]), unit(of_item[:, :rank])))
    turn = steady_turn(leading)
    terms.append(Vector(USER_PROFILE, "user", unit(of_user @ turn)))
    terms.append(Vector(ITEM_PROFILE, "item", of_item @ turn))
    return terms, [("category", x, 1, 0.5)], [("category", unit(of_user), 2, 0.5)]


def _weights(codes: np.ndarray, types: int) -> sparse.csr_matrix:
    """float32 [E, types]: 1 / sqrt(rank) of codes int [E, slots], best first; `types` and above: none."""
    known = codes < types
    place = np.broadcast_to(1 / np.sqrt(1 + np.arange(codes.shape[1])), known.shape)
    rows = np.broadcast_to(np.arange(len(codes))[:, None], known.shape)
    entries = place[known].astype(np.float32), (rows[known], codes[known])
    return sparse.csr_matrix(entries, (len(codes), types))
