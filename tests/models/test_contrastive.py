"""InfoNCE, its masks and draws against double loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.data.draws import choose_positives, draw_negatives
from dlrrec_torchrec.models.contrastive import batch_loss, corpus_loss, info_nce, semi_hard
from dlrrec_torchrec.models.masks import first_occurrences, negative_mask


def codes(*values):
    return torch.tensor(values, dtype=torch.int64)


def naive_info_nce(anchors, positives, negatives, valid, mask, temperature, normalize):
    """DLRREC equation 1 in float64, term by term."""
    total = anchors.new_zeros(())

    def score(a, b):
        if normalize:
            a, b = a / a.norm().clamp(min=1e-12), b / b.norm().clamp(min=1e-12)
        return torch.exp((a @ b) / temperature)

    for j in range(len(anchors)):
        if valid[j]:
            near = score(anchors[j], positives[j])
            far = [score(anchors[j], negatives[k]) for k in range(len(negatives)) if mask[j, k]]
            total = total - torch.log(near / (near + sum(far)))
    return total, int(valid.sum())


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 6), st.integers(0, 7), st.integers(1, 5)),
    temperature=st.floats(0.05, 3),
    normalize=st.booleans(),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_info_nce_equals_the_double_loop(shape, temperature, normalize, share, seed):
    rng = torch.Generator().manual_seed(seed)
    rows, number, width = shape
    vectors = [torch.randn(n, width, dtype=torch.float64, generator=rng) for n in (rows, rows, number)]
    valid = torch.rand(rows, generator=rng) < share
    mask = torch.rand(rows, number, generator=rng) < 0.7
    outcomes = []
    for function in (info_nce, naive_info_nce):
        inputs = [v.clone().requires_grad_() for v in vectors]
        total, count = function(*inputs, valid, mask, temperature, normalize)
        gradients = torch.autograd.grad(total + 0 * sum(v.sum() for v in inputs), inputs)
        outcomes.append((total.detach(), int(count), gradients))
    torch.testing.assert_close(*outcomes, rtol=1e-7, atol=1e-9)


def naive_semi_hard(anchors, positives, negatives, mask, number):
    """The `number` most similar by cosine of those that are below the positive; else the least similar."""
    kept = torch.zeros_like(mask)
    for j in range(len(anchors)):

        def similar(vector, j=j):
            return float(F.cosine_similarity(anchors[j], vector, dim=0))

        scores = {k: similar(negatives[k]) for k in range(len(negatives)) if mask[j, k]}
        near = similar(positives[j])
        farther = sorted((s for s in scores.values() if s < near), reverse=True)[:number]
        for k, score in scores.items():
            kept[j, k] = farther[-1] <= score < near if farther else score == min(scores.values())
    return kept


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 4)),
    number=st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
def test_semi_hard_equals_the_double_loop(shape, number, seed):
    rng = torch.Generator().manual_seed(seed)
    rows, count, width = shape
    anchors, positives, negatives = (
        torch.randn(n, width + 1, dtype=torch.float64, generator=rng) for n in (rows, rows, count)
    )
    allowed = torch.rand(rows, count, generator=rng) < 0.7
    found = semi_hard(anchors, positives, negatives, allowed, number, True)
    assert found.equal(naive_semi_hard(anchors, positives, negatives, allowed, number))


def test_an_anchor_whose_negatives_are_all_nearer_keeps_the_farthest():
    anchors, positives = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    negatives = torch.tensor([[1.0, 0.1], [1.0, 0.5], [1.0, 0.5]])
    allowed = torch.tensor([[True, True, True], [True, False, False]])
    found = semi_hard(anchors, positives, negatives, allowed, 1, True)
    assert found.tolist() == [[False, True, True], [True, False, False]]


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), st.integers(1, 4)),
    normalize=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_own_negatives_count_for_their_anchor_alone(shape, normalize, seed):
    rng = torch.Generator().manual_seed(seed)
    rows, number, hard, width = shape
    anchors, positives, negatives = (
        torch.randn(n, width, dtype=torch.float64, generator=rng) for n in (rows, rows, number)
    )
    own = torch.randn(rows, hard, width, dtype=torch.float64, generator=rng)
    missing = torch.rand(rows, hard, generator=rng) < 0.3
    own[missing] = 0
    found = corpus_loss(
        anchors, torch.arange(rows), torch.full((rows, 1), -1), positives, negatives,
        torch.arange(number) + 100, 0.5, normalize, own,
    )  # fmt: skip
    block = torch.arange(rows).repeat_interleave(hard) == torch.arange(rows)[:, None]
    mask = torch.cat([torch.ones(rows, number, dtype=torch.bool), block & ~missing.flatten()], dim=1)
    everything = torch.cat([negatives, own.flatten(0, 1)])
    expected = naive_info_nce(
        anchors, positives, everything, torch.ones(rows, dtype=torch.bool), mask, 0.5, normalize
    )
    torch.testing.assert_close(found[0], expected[0])
    assert int(found[1]) == expected[1]


@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_valid_is_zero_with_finite_gradients(normalize):
    inputs = [torch.zeros(3, 4, requires_grad=True) for _ in range(3)]
    valid, mask = torch.zeros(3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    total, count = info_nce(*inputs, valid, mask, 0.1, normalize)
    total.backward()
    assert total == 0 and count == 0 and all(not v.grad.any() for v in inputs)


def test_info_nce_is_exact_far_from_zero():
    """Dot products without normalisation overflow exp() in float32; the loss must not."""
    anchors, positives = torch.tensor([[100.0], [100.0]]), torch.tensor([[5.0], [-5.0]])
    total, _ = info_nce(anchors, positives, torch.tensor([[4.0]]), *all_allowed(2, 1), 1.0, False)
    assert float(total) == pytest.approx(math.log1p(math.exp(-100)) + 900)


def all_allowed(rows, number):
    return torch.ones(rows, dtype=torch.bool), torch.ones(rows, number, dtype=torch.bool)


@settings(max_examples=80)
@given(
    anchors=st.lists(st.integers(0, 9), max_size=6),
    negatives=st.lists(st.integers(-1, 9), max_size=8),
    width=st.integers(0, 3),
    data=st.data(),
)
def test_negative_mask_equals_the_triple_loop(anchors, negatives, width, data):
    listed = [data.draw(st.lists(st.integers(-1, 9), min_size=width, max_size=width)) for _ in anchors]
    positives = torch.tensor(listed, dtype=torch.int64).reshape(len(anchors), width)
    mask = negative_mask(codes(*anchors), positives, codes(*negatives))
    expected = [
        [n != a and n not in near for n in negatives] for a, near in zip(anchors, listed, strict=True)
    ]
    assert mask.dtype == torch.bool and mask.tolist() == expected


@given(st.lists(st.integers(-1, 5), max_size=10))
def test_first_occurrences(values):
    expected = [v >= 0 and v not in values[:k] for k, v in enumerate(values)]
    assert first_occurrences(codes(*values)).tolist() == expected


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 2**40))
def test_draws_are_repeatable_and_distinct(number, corpus, seed, step):
    negatives = draw_negatives(number, corpus, seed, step)
    assert negatives.equal(draw_negatives(number, corpus, seed, torch.tensor(step)))
    assert negatives.min() >= 0 and negatives.max() < corpus and len(negatives) == number
    if number <= corpus:
        assert len(set(negatives.tolist())) == number
    else:
        counts = np.bincount(negatives.numpy(), minlength=corpus)
        assert counts.max() <= math.ceil(number / corpus) + 1


def test_draws_are_uniform_and_change_with_step_and_seed():
    steps, number, corpus = 2000, 7, 23
    negatives = torch.stack([draw_negatives(number, corpus, 3, s) for s in range(steps)])
    expected = steps * number / corpus
    counts = np.bincount(negatives.flatten().numpy(), minlength=corpus)
    # variance of a binomial count bounds that of the stratified one; five standard deviations
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    # neighbouring steps and seeds share no more than chance
    overlap = np.mean([len(set(a) & set(b)) for a, b in zip(negatives[:-1].tolist(), negatives[1:].tolist())])  # noqa: B905
    assert overlap == pytest.approx(number * number / corpus, rel=0.1)
    other = torch.stack([draw_negatives(number, corpus, 4, s) for s in range(200)])
    assert not negatives[:200].equal(other)


def test_positives():
    listed = torch.tensor([[4, 5, 6], [7, -1, -1], [-1, -1, -1], [4, 5, 6]])
    anchors = codes(1, 2, 3, 1)
    assert choose_positives(listed, anchors, "best", 0, 0).tolist() == [4, 7, -1, 4]
    assert choose_positives(listed[:, :0], anchors, "best", 0, 0).tolist() == [-1] * 4
    sampled = torch.stack([choose_positives(listed, anchors, "sample", 0, s) for s in range(1200)])
    assert sampled[:, 0].equal(sampled[:, 3])  # the same entity, the same sample
    assert sampled[:, 1].eq(7).all() and sampled[:, 2].eq(-1).all()
    counts = np.bincount(sampled[:, 0].numpy())[4:]
    assert np.abs(counts - 400).max() < 5 * math.sqrt(400)


def test_missing_vectors_do_not_take_part():
    torch.manual_seed(0)
    anchors, positives, negatives = (torch.randn(n, 3, dtype=torch.float64) for n in (4, 4, 5))
    anchors[1] = positives[2] = negatives[3] = 0
    loss_and_count = corpus_loss(
        anchors,
        codes(0, 1, 2, 3),
        codes(-1, -1, -1, 9)[:, None],
        positives,
        negatives,
        codes(5, 6, 0, 8, 9),
        0.5,
        True,
    )
    valid = torch.tensor([True, False, False, True])
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 3] = mask[0, 2] = mask[3, 4] = False
    torch.testing.assert_close(
        loss_and_count[0], naive_info_nce(anchors, positives, negatives, valid, mask, 0.5, True)[0]
    )
    assert loss_and_count[1] == 2


def test_batch_negatives_are_the_other_entities_once():
    torch.manual_seed(0)
    anchors, positives = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    anchors[0] = 0  # code 7 is missing here, present in row 3
    entity = codes(7, 8, 8, 7, 9)
    listed = codes(1, 9, 9, 2, 3)[:, None]
    loss_and_count = batch_loss(anchors, entity, listed, positives, 0.5, False)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    for row, allowed in {1: [3], 2: [3], 3: [1, 4], 4: [1, 3]}.items():
        mask[row, allowed] = True
    valid = torch.tensor([False, True, True, True, True])
    torch.testing.assert_close(
        loss_and_count[0], naive_info_nce(anchors, positives, anchors, valid, mask, 0.5, False)[0]
    )
    assert loss_and_count[1] == 4
