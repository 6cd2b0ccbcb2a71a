"""The similarities beside SWING: against the plain formulas, exact fractions and sparse matrix products."""

from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import swing
from swing import interactions, reference
from swing.config import SIMILARITIES
from tests.helpers.graphs import assert_equals_the_formula, configs, frame, random_pairs, small_graphs

OTHERS = [name for name in SIMILARITIES if name != "swing"]
SIDES = ["items", "users"]


@settings(max_examples=200)
@given(small_graphs, configs(similarity=st.sampled_from(OTHERS)), st.sampled_from(SIDES))
def test_small_graphs_equal_the_formula(pairs, config, side):
    assert_equals_the_formula(pairs, config, side)


@settings(max_examples=50)
@given(small_graphs)
def test_the_reference_is_the_formula_in_exact_fractions(pairs):
    users_of = {i: {u for u, j in pairs if j == i} for _, i in pairs}
    for similarity, power in (("common", 1), ("jaccard", 1), ("cosine", 2)):
        limits = {"min_user_items": 1, "max_item_users": None}
        scores = reference.scores(pairs, swing.SwingConfig(similarity, **limits))
        for i, users_i in users_of.items():
            for j, users_j in users_of.items():
                size = {
                    "common": 1,
                    "jaccard": len(users_i | users_j),
                    "cosine": len(users_i) * len(users_j),
                }[similarity]
                exact = Fraction(len(users_i & users_j) ** power, size) if i != j else 0
                assert scores[i].get(j, 0.0) ** power == pytest.approx(float(exact), rel=1e-12)


def products(matrix: scipy.sparse.csr_array, similarity: str) -> np.ndarray:
    """The similarities of the columns of a matrix of zeros and ones, as products of sparse matrices."""
    size, activity = matrix.sum(axis=0), matrix.sum(axis=1)
    if similarity == "adamic_adar":
        with np.errstate(divide="ignore"):  # a row with a single one takes part in the diagonal only
            weight = np.where(activity > 1, 1 / np.log(activity), 0.0)
        result = (matrix.T @ scipy.sparse.diags_array(weight) @ matrix).toarray()
    else:
        result = (matrix.T @ matrix).toarray()
    if similarity == "cosine":
        result /= np.sqrt(np.outer(size, size))
    if similarity == "jaccard":
        result /= size[:, None] + size[None, :] - result
    np.fill_diagonal(result, 0)
    return result


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("similarity", OTHERS)
def test_larger_graphs_equal_sparse_matrix_products(similarity, side):
    pairs = random_pairs(13, 1500, 900, 20_000, skew=1.7)
    lists = swing.similar(
        frame(pairs),
        swing.preset("recfarm", similarity=similarity, top_k=2000),  # no limits, all pairs
        side,
    )
    read = swing.read(frame(pairs))
    ones = np.ones(len(read.item_idx))
    matrix = scipy.sparse.csr_array((ones, read.item_idx, read.user_ptr))
    expected = products(matrix if side == "items" else matrix.T.tocsr(), similarity)

    assert lists["id"].equals((read.item_ids if side == "items" else read.user_ids).alias("id"))
    place = pl.Series(np.arange(len(lists)))
    code = lists["neighbors"].explode().replace_strict(lists["id"], place).to_numpy()
    row = np.repeat(np.arange(len(lists)), lists["neighbors"].list.len())
    result = np.zeros_like(expected)
    result[row, code] = lists["scores"].explode().to_numpy()
    assert len(row) == np.count_nonzero(expected) > 100_000
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("similarity", OTHERS)
def test_scores_are_symmetric_to_the_bit(similarity):
    config = swing.preset(similarity=similarity, max_item_users=10)
    lists = swing.similar(frame(random_pairs(2, 90, 20, 1000)), config)
    score = {(i, j): s for i, row, scores in lists.iter_rows() for j, s in zip(row, scores, strict=True)}
    assert score and all(score[j, i] == s for (i, j), s in score.items())


def test_sizes_are_those_that_the_limits_leave():
    """x has users a, b, c; c has nothing else, so min_user_items=2 leaves two of them."""
    table = frame(["ax", "ay", "bx", "bz", "cx"])
    for minimum, size in ((1, 3), (2, 2)):
        config = swing.preset(similarity="jaccard", min_user_items=minimum)
        graph = interactions.build(swing.read(table), config)
        assert graph.anchor_size.tolist() == [size, 1, 1]
        scores = swing.similar(table, config)["scores"].to_list()
        assert scores == [pytest.approx([1 / size] * 2), pytest.approx([1 / size]), pytest.approx([1 / size])]
