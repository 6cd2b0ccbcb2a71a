import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.evaluation.peers import rating_peers as rating_module
from dlrrec_torchrec.evaluation.peers.histories import Histories, liked_matrix, pair_matrix
from dlrrec_torchrec.evaluation.peers.list_peers import list_peers
from dlrrec_torchrec.evaluation.peers.rating_peers import rating_peers
from dlrrec_torchrec.metrics import cross_entropy, roc_auc, sigmoid
from dlrrec_torchrec.ranking import ease as ease_module
from dlrrec_torchrec.ranking.ease import ease
from dlrrec_torchrec.ranking.full_ranking import Relevant, rank_lists
from dlrrec_torchrec.swing_stage import item_similarities

USERS, ITEMS = 80, 60


def tastes(seed=0, per_user=14):
    """Ratings of a world of four kinds of users and items; the parts are training, validation, test."""
    rng = np.random.default_rng(seed)
    of_user, of_item, quality = rng.integers(0, 4, USERS), rng.integers(0, 4, ITEMS), rng.normal(size=ITEMS)
    rows = []
    for user in range(USERS):
        weight = np.exp(0.5 * quality + 2.0 * (of_item == of_user[user]))
        for item in rng.choice(ITEMS, per_user, replace=False, p=weight / weight.sum()):
            match = of_item[item] == of_user[user]
            rows.append((user, item, np.clip(np.round(3 + 1.5 * match + rng.normal(0, 0.7)), 1, 5)))
    user, item, rating = (np.array(column) for column in zip(*rows, strict=True))
    part = np.arange(len(user)) % 7  # of a user's 14 rows: 10 train, 2 val, 2 test
    return [rows_of(user[m], item[m], rating[m]) for m in (part < 5, part == 5, part == 6)]


def rows_of(user, item, rating, dense=None):
    label, rating = (rating >= 4).astype(np.float32), rating.astype(np.float32)
    dense = np.zeros((len(user), 0), np.float32) if dense is None else dense
    return Rows(label, rating, user.astype(np.int32), item.astype(np.int32), dense)


def random_matrix(seed, users, items):
    rng = np.random.default_rng(seed)
    return (rng.random((users, items)) < rng.uniform(0.1, 0.5)).astype(np.float32)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([(6, 11), (11, 6), (8, 8)]), st.sampled_from([0.5, 20, 300]))
def test_ease_is_the_least_squares_solution(seed, shape, penalty):
    """Against its definition: column j minimises |x_j - X b|² + λ |b|², solved without item j."""
    dense = random_matrix(seed, *shape).astype(np.float64)
    weights = np.zeros((shape[1], shape[1]))
    for j in range(shape[1]):
        others = [i for i in range(shape[1]) if i != j]
        x = dense[:, others]
        weights[others, j] = np.linalg.solve(x.T @ x + penalty * np.eye(len(others)), x.T @ dense[:, j])
    matrix = sparse.csr_matrix(dense, dtype=np.float32)
    users = np.array([3, 0, 5])
    for form in (ease, ease_module._primal, ease_module._dual):
        np.testing.assert_allclose(form(matrix, penalty)(users), (dense @ weights)[users], atol=2e-4)


def test_ease_says_when_it_is_too_large():
    assert ease_module.ease_refusal(10**6, 300) is None
    assert "above 20,000 x 20,000" in ease_module.ease_refusal(30_000, 25_000)
    assert "above 500,000,000 numbers" in ease_module.ease_refusal(2_000, 10**6)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_similarities_against_plain_ones(seed):
    dense = random_matrix(seed, 8, 9)
    users, items = np.nonzero(dense)
    shared = dense.T @ dense
    size = np.sqrt(np.outer(shared.diagonal(), shared.diagonal()))
    cosine = np.divide(shared, size, out=np.zeros_like(shared), where=size > 0)
    np.fill_diagonal(cosine, 0)
    found = item_similarities(users, items, 9, "cosine", 9).toarray()
    np.testing.assert_allclose(found, cosine, atol=1e-6)
    overlap = dense @ dense.T
    swing = np.zeros((9, 9))
    for i in range(9):
        for j in range(9):
            both = np.flatnonzero(dense[:, i] * dense[:, j])
            pairs = [(u, v) for u in both for v in both if u < v and i != j]
            swing[i, j] = sum(1 / (1 + overlap[u, v]) for u, v in pairs)
    found = item_similarities(users, items, 9, "swing", 9).toarray()
    np.testing.assert_allclose(found, swing, atol=1e-5)
    for row, best in zip(item_similarities(users, items, 9, "swing", 2).toarray(), swing, strict=True):
        np.testing.assert_allclose(np.sort(row)[-2:], np.sort(best)[-2:], atol=1e-5)


def test_without_shared_users_there_are_no_similarities():
    nothing = np.zeros(0, np.int64)
    for users, items in ((nothing, nothing), (np.arange(4), np.arange(4))):
        assert item_similarities(users, items, 5, "swing", 3).nnz == 0
        assert item_similarities(users, items, 5, "cosine", 3).nnz == 0


def test_list_peers_find_tastes():
    train, validation, test = tastes()
    histories = Histories.of(train, USERS, ITEMS, (1.0, 5.0))
    in_train = pair_matrix(train.user, train.item, USERS, ITEMS)
    in_both = in_train + pair_matrix(validation.user, validation.item, USERS, ITEMS)
    task = Relevant.of(liked_matrix(test, USERS, ITEMS), in_both)
    found, chosen = {}, {}
    for name, fit in list_peers(histories, Relevant.of(liked_matrix(validation, USERS, ITEMS), in_train)):
        peer = fit()
        block = peer.scores(np.array([4, 1]))
        assert block.shape == (2, ITEMS) and np.isfinite(block).all()
        np.testing.assert_allclose(block[1], peer.scores(np.array([1]))[0], rtol=1e-5, atol=1e-6)
        found[name] = rank_lists(peer.scores, task, histories.counts).means()["ndcg@10"]
        chosen[name] = peer.settings
    others = {"item kNN", "SWING", "EASE", "EASE, graded", "ALS", "BPR"}
    assert set(found) == others | {"popularity"}
    assert all(found[name] > found["popularity"] + 0.05 for name in others), found
    assert chosen["EASE"].startswith("λ = ") and chosen["popularity"] == ""


def test_the_settings_are_those_that_validation_prefers():
    """The penalty of EASE is searched once more by hand."""
    train, validation, _ = tastes(3)
    histories = Histories.of(train, USERS, ITEMS, (1.0, 5.0))
    seen = pair_matrix(train.user, train.item, USERS, ITEMS)
    task = Relevant.of(liked_matrix(validation, USERS, ITEMS), seen)
    peer = dict(list_peers(histories, task))["EASE"]()
    worth = {
        penalty: rank_lists(ease(histories.liked, penalty), task, histories.counts).means()["ndcg@20"]
        for penalty in (30, 100, 300, 1000)
    }
    assert worth[int(peer.settings.removeprefix("λ = "))] == max(worth.values())
    nothing = Relevant.of(seen * 0, seen)
    assert dict(list_peers(histories, nothing))["EASE"]().settings == "λ = 100"  # the default


def test_what_is_unknown_is_ranked_by_popularity():
    user, item = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 2, 1, 3])
    rating = np.array([5, 5, 5, 5, 5, 5, 1])  # user 3 likes nothing; item 1 is liked by most
    histories = Histories.of(rows_of(user, item, rating), 4, 5, (1.0, 5.0))
    nothing = Relevant.of(histories.liked * 0, histories.liked)
    for name, fit in list_peers(histories, nothing):
        order = np.argsort(-fit().scores(np.array([3]))[0], kind="stable")
        assert order.tolist() == [1, 0, 2, 3, 4], name
    scores = dict(list_peers(histories, nothing))["item kNN"]().scores(np.array([0]))[0]
    assert scores[0] > 0 and scores[2] > 0  # neighbours of items 0 and 1
    assert scores[3] == scores[4] == -1  # nobody likes them: behind all others


def test_graded_values_and_repeated_pairs():
    user, item, rating = np.array([0, 0, 0, 0]), np.array([0, 1, 2, 2]), np.array([5.0, 1.0, 2.6, 3.8])
    histories = Histories.of(rows_of(user, item, rating), 1, 3, (1.0, 5.0))
    np.testing.assert_allclose(histories.graded.toarray(), [[1, -0.2, 0.5]], atol=1e-6)
    assert histories.counts.tolist() == [1, 1, 2]


def test_peers_without_their_packages_name_the_extra(monkeypatch):
    train, validation, test = tastes()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dense = np.ones((len(train), 1), np.float32)
    left_out = dict(
        rating_peers(rows_of(train.user, train.item, train.rating, dense), validation, test, (1, 5))
    )
    histories = Histories.of(train, USERS, ITEMS, (1.0, 5.0))
    left_out |= dict(list_peers(histories, Relevant.of(histories.liked * 0, histories.liked)))
    for name, package in {"SVD++": "scikit-surprise", "LightGBM": "lightgbm", "BPR": "implicit"}.items():
        assert left_out[name] == f"it needs {package}: pip install 'dlrrec-torchrec[peers]'"
    assert callable(left_out["EASE"])


def test_rating_peers_see_tastes_and_are_calibrated():
    train, validation, test = tastes(per_user=28)
    means = np.bincount(train.item, train.rating, ITEMS) / np.maximum(
        np.bincount(train.item, minlength=ITEMS), 1
    )
    peers = dict(rating_peers(train, validation, test, (1.0, 5.0)))
    assert peers.pop("LightGBM") == "the shards have no dense features"
    for name, predict in peers.items():
        prediction = predict()
        assert roc_auc(test.label, prediction.score) > roc_auc(test.label, means[test.item]) + 0.02, name
        constant = np.full(len(test), test.label.mean())
        assert cross_entropy(test.label, prediction.probability) < cross_entropy(test.label, constant), name


def test_item_knn_is_what_the_package_makes_of_the_same_file(tmp_path):
    """The training set built from codes against the one that scikit-surprise reads from text."""
    from surprise import Dataset, KNNBaseline, Reader

    train, validation, test = tastes(1)
    lines = [f"{u} {i} {r}" for u, i, r in zip(train.user, train.item, train.rating, strict=True)]
    (tmp_path / "ratings").write_text("\n".join(lines))
    reader = Reader(line_format="user item rating", sep=" ", rating_scale=(1, 5))
    data = Dataset.load_from_file(str(tmp_path / "ratings"), reader).build_full_trainset()
    by_items = {"name": "pearson_baseline", "user_based": False}
    algorithm = KNNBaseline(k=40, sim_options=by_items, verbose=False).fit(data)
    pairs = zip(test.user, test.item, strict=True)
    expected = [algorithm.predict(str(u), str(i), clip=False).est for u, i in pairs]
    prediction = dict(rating_peers(train, validation, test, (1.0, 5.0)))["item kNN"]()
    np.testing.assert_allclose(prediction.score, expected, atol=1e-6)


@pytest.mark.parametrize("with_validation", [True, False])
def test_probabilities_of_noise_stay_at_the_base_rate(with_validation):
    """Trees fitted to noise are sure of their own rows; a probability from other rows is not."""
    rng = np.random.default_rng(0)

    def noise(rows):
        numbers = [rng.integers(0, 50, rows), rng.integers(0, 50, rows), rng.choice([3.0, 5.0], rows)]
        return rows_of(*numbers, rng.normal(size=(rows, 6)).astype(np.float32))

    train, validation, test = noise(6000), noise(1000 if with_validation else 0), noise(2000)
    prediction = dict(rating_peers(train, validation, test, (1.0, 5.0)))["LightGBM"]()
    assert cross_entropy(test.label, prediction.probability) < np.log(2) + 0.008
    if not with_validation:  # nothing stopped the trees: they are far surer
        assert cross_entropy(test.label, sigmoid(prediction.score)) > np.log(2) + 0.012
    assert ("no validation rows" in prediction.note) == (not with_validation)


def test_long_histories_leave_the_slow_peers_out(monkeypatch):
    train, validation, test = tastes()
    monkeypatch.setattr(rating_module, "_MOST_STEPS", 1000)
    steps = (np.bincount(train.user) ** 2).sum()
    peers = dict(rating_peers(train, validation, test, (1.0, 5.0)))
    assert f"{steps:,}, is above 1,000" in peers["SVD++"] and f"{steps:,}" in peers["item kNN"]
    monkeypatch.setattr(rating_module, "_MOST_ITEMS", 10)
    assert "60 x 60 items is above" in dict(rating_peers(train, validation, test, (1.0, 5.0)))["item kNN"]
    none = rows_of(*(np.zeros(0),) * 3)
    assert set(dict(rating_peers(none, none, none, (1.0, 5.0))).values()) == {"there are no training rows"}


def test_ratings_that_are_all_the_same_leave_the_rating_peers_out():
    """scikit-surprise divides by their spread."""
    ones = np.ones(40, np.float32)
    codes = np.arange(40, dtype=np.int32)
    rows = Rows(ones, ones, codes % 8, codes % 5, np.zeros((40, 1), np.float32))
    peers = list(rating_peers(rows, rows, rows, (0.0, 1.0)))
    assert peers and all(why == "all training ratings are the same" for _, why in peers)
