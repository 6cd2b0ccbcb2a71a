"""Negatives by popularity and by the graph, against counts and plain loops."""

import doctest
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.data import hard_negatives
from dlrrec_torchrec.data.draws import choose_hard, draw_weighted, popularity
from dlrrec_torchrec.data.hard_negatives import second_neighbours, shares


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    number=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**40),
)
def test_popular_ones_come_as_often_as_they_should(counts, number, seed, step):
    cumulative = popularity(torch.tensor(counts))
    weights = np.array(counts, float) ** 0.75 if any(counts) else np.ones(len(counts))
    share = weights / weights.sum()
    np.testing.assert_allclose(np.diff(cumulative.numpy(), prepend=0), share, atol=1e-12)
    drawn = draw_weighted(number, cumulative, seed, step)
    assert drawn.equal(draw_weighted(number, cumulative, seed, torch.tensor(step)))
    times = np.bincount(drawn.numpy(), minlength=len(counts))
    assert times.sum() == number and len(times) == len(counts)
    assert (times[share == 0] == 0).all() and (times <= number * share + 2).all()


def test_weighted_draws_have_their_expectation():
    counts = torch.tensor([1, 4, 9, 100, 3])
    cumulative, steps, number = popularity(counts), 3000, 3
    drawn = torch.cat([draw_weighted(number, cumulative, 5, step) for step in range(steps)])
    expected = steps * number * (counts**0.75 / (counts**0.75).sum()).numpy()
    times = np.bincount(drawn.numpy(), minlength=5)
    # variance of a binomial count bounds that of the stratified one; five standard deviations
    assert (np.abs(times - expected) < 5 * np.sqrt(expected)).all()
    assert not draw_weighted(20, cumulative, 6, 0).equal(draw_weighted(20, cumulative, 6, 1))


def naive_second(positives, entity):
    """Neighbours' neighbours with how many of the neighbours list them."""
    first = [n for n in positives[entity] if n >= 0]
    seen = {}
    for neighbour in first:
        for other in positives[neighbour]:
            if other >= 0 and other != entity and other not in first and entity not in positives[other]:
                seen[other] = seen.get(other, 0) + 1
    return seen


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000), number=st.integers(1, 25), width=st.integers(0, 4), most=st.integers(1, 8)
)
def test_second_neighbours_equal_the_loop(seed, number, width, most):
    rng = np.random.default_rng(seed)
    positives = np.full((number, width), -1)
    for entity in range(number):
        others = rng.permutation([n for n in range(number) if n != entity])[: rng.integers(0, width + 1)]
        positives[entity, : len(others)] = others
    near = second_neighbours(positives, most)
    assert near.shape == (number, most)
    for entity in range(number):
        expected = naive_second(positives.tolist(), entity)
        found = [n for n in near[entity].tolist() if n >= 0]
        assert near[entity].tolist() == found + [-1] * (most - len(found))
        assert len(set(found)) == len(found) == min(most, len(expected)) and set(found) <= set(expected)
        times = [expected[n] for n in found]
        assert times == sorted(expected.values(), reverse=True)[:most]
    assert np.array_equal(near, second_neighbours(positives, most))


def test_who_has_any_is_said():
    near = {"item": np.array([[1, -1], [-1, -1]]), "user": np.zeros((0, 3), int)}
    assert "50% of the items and 0% of the users have any" in shares(near)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    number=st.integers(1, 7),
    step=st.integers(0, 2**40),
    data=st.data(),
)
def test_hard_ones_are_drawn_from_those_that_are_near(lengths, number, step, data):
    near = torch.tensor(
        [[10 * k + n if n < length else -1 for n in range(5)] for k, length in enumerate(lengths)]
    )
    codes = torch.tensor(
        data.draw(st.lists(st.integers(-1, len(lengths) - 1), max_size=8)), dtype=torch.int64
    )
    drawn = choose_hard(near, codes, number, 3, step)
    assert drawn.shape == (len(codes), number)
    for code, row in zip(codes.tolist(), drawn.tolist(), strict=True):
        found = [n for n in row if n >= 0]
        listed = [n for n in near[code].tolist() if n >= 0] if code >= 0 else []
        assert row == found + [-1] * (number - len(found))
        assert len(set(found)) == len(found) == min(number, len(listed)) and set(found) <= set(listed)
        assert row == choose_hard(near, torch.tensor([code]), number, 3, torch.tensor(step))[0].tolist()


def test_every_near_one_is_drawn_as_often():
    near = torch.tensor([[4, 5, 6, -1]])
    drawn = torch.cat([choose_hard(near, torch.tensor([0]), 1, 0, step) for step in range(1200)])
    assert np.abs(np.bincount(drawn[:, 0].numpy())[4:] - 400).max() < 5 * math.sqrt(400)


def test_the_example_runs():
    assert not doctest.testmod(hard_negatives).failed
