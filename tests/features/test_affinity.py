"""Affinity against plain loops, and what it must not know."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.features import affinity as affinities
from dlrrec_torchrec.features import machine_code
from dlrrec_torchrec.features.affinity import Affinity, History, fit_affinity
from dlrrec_torchrec.features.biases import fit_biases
from dlrrec_torchrec.features.factors import factorise
from dlrrec_torchrec.features.review_lists import make_lists
from dlrrec_torchrec.store.errors import DataError

seeds = st.integers(0, 2**32 - 1)
USERS, ITEMS, TYPES = 7, 9, 6


def random_history(seed: int, rows: int = 34) -> History:
    rng = np.random.default_rng(seed)
    pair = rng.permutation(USERS * ITEMS)[:rows]
    rating = rng.integers(1, 6, rows).astype(np.float32)
    vectors = {
        "user_text": rng.normal(size=(USERS, 5)).astype(np.float32),
        "item_text": rng.normal(size=(ITEMS, 5)).astype(np.float32),
        "item_audio": rng.normal(size=(ITEMS, 3)).astype(np.float32),
    }
    vectors["item_text"][rng.integers(ITEMS)] = 0  # missing
    category = np.sort(np.array([rng.permutation(TYPES + 2)[:3] for _ in range(ITEMS)]))
    return History(
        user=pair // ITEMS,
        item=pair % ITEMS,
        rating=rating,
        label=(rating >= 4).astype(np.float32),
        users=USERS,
        items=ITEMS,
        vectors=vectors,
        category=np.minimum(category, TYPES),
        category_types=TYPES,
        price=rng.integers(0, 4, ITEMS),
        likes=np.sort(rng.integers(0, TYPES + 3, (USERS, 2))),
        avoids=rng.integers(0, TYPES + 3, (USERS, 1)),
    )


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(USERS * ITEMS), ITEMS)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else 0.0


def centred_units(vectors: np.ndarray) -> np.ndarray:
    present = vectors.any(1)
    out = np.zeros(vectors.shape)
    out[present] = vectors[present] - vectors[present].mean(0)
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    return np.divide(out, norm, out=out, where=norm > 0)


@settings(max_examples=15)
@given(seed=seeds)
def test_columns_equal_plain_loops(seed):
    history = random_history(seed)
    affinity = fit_affinity(history)
    users, items = every_pair()
    columns = dict(zip(affinity.names, affinity.columns(users, items).T, strict=True))
    biases = fit_biases(history.user, history.item, history.rating, USERS, ITEMS)
    residual = history.rating - biases.mean - biases.user[history.user] - biases.item[history.item]
    text = centred_units(history.vectors["item_text"])
    own = centred_units(history.vectors["user_text"])
    idf = np.log(ITEMS / np.maximum((history.category[..., None] == np.arange(TYPES)).any(1).sum(0), 1))
    types = np.zeros((ITEMS, TYPES))
    for i, slots in enumerate(history.category):
        for place, code in enumerate(slots):
            if code < TYPES:
                types[i, code] = max(idf[code], 0.1) / np.sqrt(1 + place)
    used = (history.category[..., None] == np.arange(TYPES)).any((0, 1))
    size = np.maximum(idf, 0.1) / np.sqrt(np.mean(np.maximum(idf, 0.1)[used] ** 2))
    stated = np.zeros((USERS, TYPES))
    for sign, said in ((1, history.likes), (-1, history.avoids)):
        for u, slots in enumerate(said):
            for place, code in enumerate(slots):
                if code < TYPES:
                    stated[u, code] += sign * 2 * size[code] / np.sqrt(1 + place)
    norm = np.linalg.norm(types, axis=1, keepdims=True)
    types = np.divide(types, norm, out=np.zeros_like(types), where=norm > 0)
    common = np.zeros((ITEMS, ITEMS), int)
    correlation = np.zeros((ITEMS, ITEMS))
    table = np.full((USERS, ITEMS), np.nan)
    table[history.user, history.item] = residual
    for a in range(ITEMS):
        for b in range(ITEMS):
            both = ~np.isnan(table[:, a]) & ~np.isnan(table[:, b])
            common[a, b] = both.sum()
            r = cosine(table[both, a], table[both, b]) if both.any() else 0.0
            correlation[a, b] = r * both.sum() / (both.sum() + 5)
    degree = np.maximum(np.bincount(history.item, minlength=ITEMS), 1)
    for n, (u, i) in enumerate(zip(users, items, strict=True)):
        mine = [k for k in range(len(residual)) if history.user[k] == u]
        them = [k for k in mine if history.item[k] != i]
        walked = sum((text[history.item[k]] for k in mine), np.zeros(5))
        disliked = sum((residual[k] * text[history.item[k]] for k in mine), np.zeros(5))
        profile = sum((types[history.item[k]] for k in mine), np.zeros(TYPES))
        signed = sum((residual[k] * types[history.item[k]] for k in mine), np.zeros(TYPES))
        weights = [max(0.0, text[history.item[k]] @ text[i]) ** 3 for k in them]
        visits = [common[history.item[k], i] / np.sqrt(degree[history.item[k]] * degree[i]) for k in them]
        r = [correlation[history.item[k], i] for k in them]
        values = [residual[k] for k in them]
        tag = [residual[k] for k in mine if history.price[history.item[k]] == history.price[i]]
        expected = {
            "user.bias": biases.user[u],
            "item.count": np.log1p((history.item == i).sum()),
            "item_text.history": cosine(walked, text[i]),
            "item_text.residual": disliked @ text[i] / (2 + len(mine)),
            "item_text.own": own[u] @ text[i],
            "category.cosine": cosine(profile + stated[u], types[i]),
            "category.residual": signed @ types[i] / (1 + profile @ types[i]),
            "item_knn.item_text.mean": np.dot(weights, values) / (sum(weights) + 0.3) if them else 0,
            "item_knn.item_text.mass": np.mean(weights) if them else 0,
            "item_knn.item_text.largest": max(weights, default=0),
            "item_knn.visits.mean": np.dot(visits, values) / (sum(visits) + 0.3),
            "item_knn.visits.correlated": np.dot(r, values) / (sum(map(abs, r)) + 0.3),
            "item_knn.visits.correlated_sum": np.dot(r, values),
            "item_knn.visits.support": sum(common[history.item[k], i] > 0 for k in them),
        }
        if "price.residual" in columns:
            expected["price.residual"] = sum(tag) / (3 + len(tag))
        for name, value in expected.items():
            assert columns[name][n] == pytest.approx(value, abs=3e-4), (name, u, i)
        rank = sum(name.startswith("category.user") for name in columns)
        mine, its = (
            np.array([columns[f"category.{side}{k}"][n] for k in range(rank)]) for side in ("user", "item")
        )
        if rank == TYPES:  # nothing is cut off: turning changes no product of vectors
            product = cosine(profile + stated[u], types[i]) * np.linalg.norm(types[i])
            assert mine @ its == pytest.approx(product, abs=3e-4)


@settings(max_examples=10)
@given(seed=seeds)
def test_users_and_items_change_places(seed):
    """Neighbourhoods of users are those of items in the transposed table."""
    history = random_history(seed)
    turned = dataclasses.replace(
        history, user=history.item, item=history.user, users=ITEMS, items=USERS,
        category=np.full((USERS, 1), TYPES), price=np.zeros(USERS, int), vectors={},
        likes=np.full((ITEMS, 1), TYPES), avoids=np.full((ITEMS, 1), TYPES),
    )  # fmt: skip
    history = dataclasses.replace(
        history, category=np.full((ITEMS, 1), TYPES), price=np.zeros(ITEMS, int), vectors={}
    )
    users, items = every_pair()
    straight, other = fit_affinity(history), fit_affinity(turned)
    a = dict(zip(straight.names, straight.columns(users, items).T, strict=True))
    b = dict(zip(other.names, other.columns(items, users).T, strict=True))
    # the two sides' deviations are fitted one after the other, so residuals differ a little
    for column in ("mass", "largest", "support"):
        np.testing.assert_allclose(a[f"user_knn.visits.{column}"], b[f"item_knn.visits.{column}"], atol=1e-5)
        np.testing.assert_allclose(a[f"item_knn.visits.{column}"], b[f"user_knn.visits.{column}"], atol=1e-5)


@settings(max_examples=10)
@given(seed=seeds, damping=st.sampled_from([0.5, 5.0]))
def test_biases_are_the_ridge_solution(seed, damping):
    history = random_history(seed)
    fitted = fit_biases(history.user, history.item, history.rating, USERS, ITEMS, damping, 500)
    design = np.zeros((len(history.user), USERS + ITEMS))
    design[np.arange(len(history.user)), history.user] = 1
    design[np.arange(len(history.user)), USERS + history.item] = 1
    gram = design.T @ design + damping * np.eye(USERS + ITEMS)
    solution = np.linalg.solve(gram, design.T @ (history.rating - history.rating.mean()))
    np.testing.assert_allclose(np.r_[fitted.user, fitted.item], solution, atol=1e-6)


def test_factors_lower_the_penalised_error_of_what_they_fit():
    rng = np.random.default_rng(0)
    user, item = np.divmod(rng.permutation(40 * 30)[:600], 30)
    value = (rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30)))[user, item].astype(np.float32)
    by_user, by_item = make_lists(user, item, value, 40, 100), make_lists(item, user, value, 30, 100)

    def error(iterations: int) -> float:
        p, q = factorise(by_user, by_item, rank=2, penalty=0.1, iterations=iterations)
        squares = np.square(p).sum() + np.square(q).sum()
        return float(np.square(value - (p[user] * q[item]).sum(1)).sum() + 0.1 * squares)

    errors = [error(n) for n in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    p, q = factorise(by_user, by_item, rank=2, penalty=0.1, iterations=30)
    assert np.corrcoef((p[user] * q[item]).sum(1), value)[0, 1] > 0.99


@settings(max_examples=10)
@given(seed=seeds)
def test_a_user_without_reviews_has_finite_columns_and_a_saved_affinity_the_same(seed, tmp_path_factory):
    history = random_history(seed)
    kept = history.user != 3
    history = dataclasses.replace(
        history, **{n: getattr(history, n)[kept] for n in ("user", "item", "rating", "label")}
    )
    affinity = fit_affinity(history)
    users, items = every_pair()
    columns = affinity.columns(users, items)
    assert np.isfinite(columns).all()
    nothing = columns[users == 3][:, [n.startswith("item_knn") for n in affinity.names]]
    assert not nothing.any()
    folder = tmp_path_factory.mktemp("saved")
    affinity.save(folder)
    assert Affinity.load(folder).names == affinity.names
    assert Affinity.load(folder).columns(users, items).tobytes() == columns.tobytes()
    (folder / "000.npy").write_bytes(b"")
    with pytest.raises(DataError, match="damaged.*dlrrec prepare"):
        Affinity.load(folder)


def test_no_reviews_at_all():
    history = random_history(0, rows=0)
    assert np.isfinite(fit_affinity(history).columns(*every_pair())).all()


def test_long_lists_are_sampled_and_nothing_depends_on_the_threads(monkeypatch):
    rng = np.random.default_rng(1)
    lists = make_lists(np.zeros(500, int), np.arange(500), rng.random(500), 1, 100)
    assert lists.offsets.tolist() == [0, 100] and (np.diff(lists.columns) > 0).all()
    monkeypatch.setattr(affinities, "LIST", 4)
    monkeypatch.setattr(affinities, "SIMILAR", 3)
    users, items = every_pair()
    columns = {}
    for number in (1, 2, 5):
        monkeypatch.setattr(machine_code, "threads", lambda number=number: number)
        columns[number] = fit_affinity(random_history(4)).columns(users, items).tobytes()
    assert columns[1] == columns[2] == columns[5]
