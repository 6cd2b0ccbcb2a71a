import time

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG
from scipy import sparse

from dlrrec_torchrec.ranking.full_ranking import Relevant, popularity_percentile, rank_lists
from dlrrec_torchrec.store.errors import DataError

CUTOFFS = (1, 3, 7)


def world(seed, users=9, items=23, levels=None):
    """Random scores (of `levels` distinct values: ties), relevant and seen pairs, which may overlap."""
    rng = np.random.default_rng(seed)
    scores = rng.random((users, items)).astype(np.float32)
    if levels:
        scores = np.floor(scores * levels).astype(np.float32)
    relevant = rng.random((users, items)) < rng.uniform(0.02, 0.5)
    seen = rng.random((users, items)) < rng.uniform(0, 0.7)
    return scores, relevant, seen, rng.integers(0, 9, items)


def ranked(scores, relevant, seen, counts, **options):
    task = Relevant.of(sparse.csr_matrix(relevant), sparse.csr_matrix(seen))
    return rank_lists(lambda users: scores[users], task, counts, CUTOFFS, **options)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([None, 2, 5]), st.sampled_from([1, 2, 4, None]))
def test_equal_to_ir_measures(seed, levels, block):
    scores, relevant, seen, counts = world(seed, levels=levels)
    result = ranked(scores, relevant, seen, counts, block_users=block, threads=2)
    relevant &= ~seen
    users = np.flatnonzero(relevant.any(axis=1))
    np.testing.assert_array_equal(result.users, users)
    names = {"recall": R, "ndcg": nDCG, "mrr": RR, "map": AP, "hit": Success}
    measures = {f"{name}@{k}": measure @ k for name, measure in names.items() for k in CUTOFFS}
    qrels = [ir_measures.Qrel(str(u), f"i{i}", 1) for u in users for i in np.flatnonzero(relevant[u])]
    run = [
        ir_measures.ScoredDoc(str(u), f"i{i}", float(-rank))  # the ties, by code
        for u in users
        for rank, i in enumerate(np.lexsort((np.arange(scores.shape[1]), -scores[u])))
        if not seen[u, i]
    ]
    expected = {name: dict.fromkeys(users, 0.0) for name in measures}
    of = {measure: name for name, measure in measures.items()}
    for value in ir_measures.iter_calc(list(of), qrels, run) if qrels else ():
        expected[of[value.measure]][int(value.query_id)] = value.value
    for name, values in expected.items():
        np.testing.assert_allclose(result.per_user[name], list(values.values()), atol=1e-9, err_msg=name)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_catalogue_numbers_against_plain_ones(seed):
    scores, relevant, seen, counts = world(seed, levels=4)
    result = ranked(scores, relevant, seen, counts, block_users=2)
    percentile = np.array([((counts < c).sum() + (counts == c).sum() / 2) / len(counts) for c in counts])
    np.testing.assert_allclose(popularity_percentile(counts), percentile)
    lists = []
    for user in result.users:
        order = [i for i in sorted(range(scores.shape[1]), key=lambda i: (-scores[user, i], i))]
        lists.append([i for i in order if not seen[user, i]])
    for k in CUTOFFS:
        everyone = {i for items in lists for i in items[:k]}
        if lists:
            assert result.catalogue[f"coverage@{k}"] == pytest.approx(len(everyone) / scores.shape[1])
        means = [percentile[items[:k]].mean() for items in lists]
        np.testing.assert_allclose(result.per_user[f"popularity@{k}"], means)
    of_relevant = [percentile[relevant[u] & ~seen[u]].mean() for u in result.users]
    np.testing.assert_allclose(result.per_user["popularity of relevant"], of_relevant)


def test_neither_blocks_nor_threads_change_the_result():
    scores, relevant, seen, counts = world(3, users=40, items=60, levels=3)
    whole = ranked(scores, relevant, seen, counts, block_users=40, threads=1)
    parts = ranked(scores, relevant, seen, counts, block_users=7, threads=3)
    assert whole.catalogue == parts.catalogue
    for name, values in whole.per_user.items():
        np.testing.assert_array_equal(values, parts.per_user[name], err_msg=name)


def test_scores_are_asked_for_in_blocks_and_left_as_they_are():
    scores, relevant, seen, counts = world(5, users=30)
    before, sizes = scores.copy(), []
    task = Relevant.of(sparse.csr_matrix(relevant), sparse.csr_matrix(seen))

    def block(users):
        sizes.append(len(users))
        return scores[users]

    rank_lists(block, task, counts, CUTOFFS, block_users=4)
    assert max(sizes) == 4 and sum(sizes) == len(task.users)
    np.testing.assert_array_equal(scores, before)


def test_a_list_of_a_user_who_saw_nearly_everything_is_short():
    seen = np.ones((1, 5), bool)
    seen[0, [1, 4]] = False
    relevant = np.array([[0, 0, 0, 0, 1]], bool)
    scores = np.array([[9, 1, 9, 9, -np.inf]], np.float32)
    result = ranked(scores, relevant, seen, np.ones(5))
    assert result.per_user["recall@1"][0] == 0 and result.per_user["recall@7"][0] == 1
    assert result.per_user["mrr@7"][0] == 0.5 and result.catalogue["coverage@7"] == 2 / 5


def test_no_users_and_no_numbers():
    scores, relevant, seen, counts = world(1)
    none = ranked(scores, relevant & False, seen, counts)
    assert len(none.users) == 0 and np.isnan(none.means()["ndcg@3"]) and np.isnan(none.means()["coverage@3"])
    scores[2] = np.nan
    relevant[2, 0], seen[2, 0] = True, False
    with pytest.raises(DataError, match="user 2 has a score that is not a number"):
        ranked(scores, relevant, seen, counts)
    with pytest.raises(ValueError, match="scores have shape"):
        ranked(scores[:, :4], relevant, seen, counts)


def test_a_sample_of_users_keeps_their_rows():
    _, relevant, seen, _ = world(8, users=50)
    task = Relevant.of(sparse.csr_matrix(relevant), sparse.csr_matrix(seen))
    some = task.sample(10, seed=1)
    assert len(some.users) == 10 and set(some.users) < set(task.users)
    np.testing.assert_array_equal(some.relevant.toarray() > 0, (relevant & ~seen)[some.users])
    np.testing.assert_array_equal(some.seen.toarray() > 0, seen[some.users])
    assert task.sample(10**6) is task


def test_it_is_fast():
    """Ranking alone does thousands of users a second with 5,000 items; the bound leaves much room."""
    rng = np.random.default_rng(0)
    block = rng.random((500, 5000), np.float32)
    relevant = sparse.random(500, 5000, 0.002, "csr", random_state=0)
    task = Relevant.of(relevant, sparse.random(500, 5000, 0.02, "csr", random_state=1))
    run = lambda: rank_lists(lambda users: block[users], task, np.ones(5000))  # noqa: E731
    run()
    start = time.perf_counter()
    run()
    assert len(task.users) / (time.perf_counter() - start) > 300
