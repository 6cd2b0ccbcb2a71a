"""InfoNCE, its masks and draws, and the training wrapper against double loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.contrastive import TermWeight, batch_loss, corpus_loss, info_nce
from dlrrec_torchrec.models.sampling import (
    choose_positives,
    draw_negatives,
    first_occurrences,
    negative_mask,
)
from dlrrec_torchrec.schema import MODALITIES, PAD_CATEGORY, VECTOR_DIM, DataError

USERS, ITEMS, ROWS, DENSE = 12, 9, 24, 7


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


@settings(max_examples=60, deadline=None)
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
    found = []
    for function in (info_nce, naive_info_nce):
        inputs = [v.clone().requires_grad_() for v in vectors]
        total, count = function(*inputs, valid, mask, temperature, normalize)
        gradients = torch.autograd.grad(total + 0 * sum(v.sum() for v in inputs), inputs)
        found.append((total.detach(), int(count), gradients))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


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


@settings(max_examples=80, deadline=None)
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
    wanted = [[n != a and n not in near for n in negatives] for a, near in zip(anchors, listed, strict=True)]
    assert mask.dtype == torch.bool and mask.tolist() == wanted


@given(st.lists(st.integers(-1, 5), max_size=10))
def test_first_occurrences(values):
    wanted = [v >= 0 and v not in values[:k] for k, v in enumerate(values)]
    assert first_occurrences(codes(*values)).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 2**40))
def test_draws_are_repeatable_and_distinct(number, corpus, seed, step):
    drawn = draw_negatives(number, corpus, seed, step)
    assert drawn.equal(draw_negatives(number, corpus, seed, torch.tensor(step)))
    assert drawn.min() >= 0 and drawn.max() < corpus and len(drawn) == number
    if number <= corpus:
        assert len(set(drawn.tolist())) == number
    else:
        counts = np.bincount(drawn.numpy(), minlength=corpus)
        assert counts.max() <= math.ceil(number / corpus) + 1


def test_draws_are_uniform_and_change_with_step_and_seed():
    steps, number, corpus = 2000, 7, 23
    drawn = torch.stack([draw_negatives(number, corpus, 3, s) for s in range(steps)])
    expected = steps * number / corpus
    counts = np.bincount(drawn.flatten().numpy(), minlength=corpus)
    # variance of a binomial count bounds that of the stratified one; five standard deviations
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    # neighbouring steps and seeds share no more than chance
    overlap = np.mean([len(set(a) & set(b)) for a, b in zip(drawn[:-1].tolist(), drawn[1:].tolist())])  # noqa: B905
    assert overlap == pytest.approx(number * number / corpus, rel=0.1)
    other = torch.stack([draw_negatives(number, corpus, 4, s) for s in range(200)])
    assert not drawn[:200].equal(other)


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
    found = corpus_loss(
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
        found[0], naive_info_nce(anchors, positives, negatives, valid, mask, 0.5, True)[0]
    )
    assert found[1] == 2


def test_batch_negatives_are_the_other_entities_once():
    torch.manual_seed(0)
    anchors, positives = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    anchors[0] = 0  # code 7 is missing here, present in row 3
    entity = codes(7, 8, 8, 7, 9)
    listed = codes(1, 9, 9, 2, 3)[:, None]
    found = batch_loss(anchors, entity, listed, positives, 0.5, False)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    for row, allowed in {1: [3], 2: [3], 3: [1, 4], 4: [1, 3]}.items():
        mask[row, allowed] = True
    valid = torch.tensor([False, True, True, True, True])
    torch.testing.assert_close(
        found[0], naive_info_nce(anchors, positives, anchors, valid, mask, 0.5, False)[0]
    )
    assert found[1] == 4


# ---- the wrapper ----


def random_corpus(seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = {"user_text": USERS, "item_text": ITEMS, "item_image": ITEMS}
    corpus = {m: torch.randn(n, VECTOR_DIM, generator=rng).half() for m, n in sizes.items()}
    corpus["user_text"][2] = 0
    corpus["item_text"][4] = corpus["item_image"][4] = 0
    return corpus


def random_batch(seed=0, rows=ROWS, part=slice(None)):
    """The rows `part` of a random batch: jagged ids, missing vectors, up to three neighbours."""
    rng = torch.Generator().manual_seed(100 + seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=rng)

    category = integers(0, PAD_CATEGORY + 1, rows, 11)
    user, item = integers(0, USERS, rows), integers(0, ITEMS, rows)
    vectors = {m: torch.randn(rows, VECTOR_DIM, generator=rng).half() for m in MODALITIES}
    for m in MODALITIES:
        vectors[m][integers(0, 6, rows) == 0] = 0
    positives = {}
    for side, size in (("user", USERS), ("item", ITEMS)):
        listed = integers(0, size, rows, 3)
        length = integers(0, 4, rows, 1)
        positives[side] = torch.where(torch.arange(3) < length, listed, -1)[part]
    return Batch(
        dense=torch.randn(rows, DENSE, generator=rng)[part],
        sparse=make_sparse(category[part], user[part], item[part], ["category"]),
        vectors={m: v[part] for m, v in vectors.items()},
        label=integers(0, 2, rows).float()[part],
        user=user[part],
        item=item[part],
        user_positives=positives["user"],
        item_positives=positives["item"],
    )


def small_wrapper(model=None, class_weights=(1.0, 1.0), seed=5, corpus=None, **contrastive):
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
    config = dataclasses.replace(
        ModelConfig(), **sizes | {"over_arch": [20, 6, 1], "dropout": 0.0} | (model or {})
    )
    built = build_model(config, dense_width=DENSE, num_users=USERS, num_items=ITEMS)
    settings = dataclasses.replace(ContrastiveConfig(), **{"num_negatives": 5} | contrastive)
    corpus = random_corpus() if corpus is None else corpus
    return build_wrapper(built, settings, corpus=corpus, class_weights=class_weights, seed=seed)


def plain_side(wrapper, batch, side, step):
    """The side's mean InfoNCE, from the towers' parameters by hand."""
    names = [m for m in MODALITIES if m.startswith(side)]
    entity = getattr(batch, side)
    listed = getattr(batch, f"{side}_positives")
    seed = 2 * wrapper.seed + (side == "user")
    chosen = choose_positives(listed, entity, wrapper.positive, seed, step)
    if wrapper.negatives == "corpus":
        size = USERS if side == "user" else ITEMS
        drawn = draw_negatives(wrapper.num_negatives, size, seed, step)
    else:
        drawn = entity

    def tower(name, rows):
        t = wrapper.model.dense_arch.towers[name]
        rows = rows.float()
        present = rows.any(1)
        out = rows.new_zeros(len(rows), 8)
        reduced = t.layers(rows[present])
        reduced = (reduced - reduced.mean(0)) / (reduced.var(0, correction=0) + 1e-5).sqrt()
        out[present] = reduced * t.norm.weight + t.norm.bias
        return out

    corpus = random_corpus()
    anchors, others = [], []
    for name in names:
        anchors.append(tower(name, batch.vectors[name]))
        near = torch.where((chosen >= 0)[:, None], corpus[name][chosen], 0)
        far = corpus[name][drawn] if wrapper.negatives == "corpus" else near[:0]
        others.append(tower(name, torch.cat([near, far])))
    anchors, others = torch.cat(anchors, 1), torch.cat(others, 1)
    positives = others[: len(anchors)]
    negatives = others[len(anchors) :] if wrapper.negatives == "corpus" else anchors
    valid = anchors.any(1) & positives.any(1)
    mask = torch.zeros(len(anchors), len(negatives), dtype=torch.bool)
    seen = set()
    for k, code in enumerate(drawn.tolist()):
        if not negatives[k].any() or (wrapper.negatives == "batch" and code in seen):
            continue
        seen.add(code)
        for j in range(len(anchors)):
            mask[j, k] = code != entity[j] and code not in listed[j].tolist()
    total, count = naive_info_nce(
        anchors, positives, negatives, valid, mask, wrapper.temperature, wrapper.normalize
    )
    return total / count


@pytest.mark.parametrize("negatives", ["corpus", "batch"])
@pytest.mark.parametrize("positive", ["best", "sample"])
def test_wrapper_equals_the_loss_by_hand(negatives, positive):
    wrapper = small_wrapper(
        negatives=negatives, positive=positive, item_weight=0.3, user_weight=0.7, class_weights=(2.0, 0.5)
    )
    batch = random_batch()
    loss, parts = wrapper(batch, step=4)
    logits = wrapper.model.eval()(batch.dense, batch.sparse, batch.vectors)
    wrapper.train()
    logits = wrapper.model(batch.dense, batch.sparse, batch.vectors)
    weight = torch.where(batch.label > 0, 0.5, 2.0)
    rec = F.binary_cross_entropy_with_logits(logits, batch.label, weight=weight)
    ii, uu = (plain_side(wrapper, batch, side, 4) for side in ("item", "user"))
    wanted = rec + 0.3 * ii + 0.7 * uu
    torch.testing.assert_close(loss, wanted)
    for name, value in {"rec": rec, "ii": ii, "uu": uu}.items():
        torch.testing.assert_close(parts[f"loss_{name}"], value.detach())
        assert not parts[f"loss_{name}"].requires_grad
    torch.testing.assert_close(parts["logits"], logits.detach())
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    found, by_hand = (torch.autograd.grad(x, parameters) for x in (loss, wanted))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_contrastive_terms_leave_prediction_and_its_statistics_alone():
    batch = random_batch()
    both = []
    for weight in (0.0, 0.5):
        wrapper = small_wrapper(item_weight=weight, user_weight=weight)
        _, parts = wrapper(batch)
        both.append((parts["logits"], parts["loss_rec"], dict(wrapper.model.named_buffers())))
    torch.testing.assert_close(*both)
    assert both[0][2]["dense_arch.towers.user_text.norm.running_mean"].any()


def test_switched_off_terms_are_zero_and_need_nothing():
    wrapper = small_wrapper(model={"modalities": []}, item_weight=0.0, user_weight=0.0, corpus={})
    loss, parts = wrapper(random_batch())
    torch.testing.assert_close(loss.detach(), parts["loss_rec"])
    assert parts["loss_ii"] == 0 and parts["loss_uu"] == 0


def test_the_step_count_drives_the_draws_and_is_kept():
    batch = random_batch()
    wrapper = small_wrapper(positive="sample")
    for tower in wrapper.model.dense_arch.towers.values():
        tower.norm.momentum = 0.0
    losses = [float(wrapper(batch)[1]["loss_uu"]) for _ in range(4)]
    assert len(set(losses)) > 1 and int(wrapper.step) == 4
    again = small_wrapper(positive="sample")
    state = wrapper.state_dict()
    assert "step" in state and not any("corpus" in name for name in state)
    again.load_state_dict(state | {"step": torch.tensor(2)})
    assert [float(again(batch)[1]["loss_uu"]) for _ in range(2)] == losses[2:]
    assert float(wrapper(batch, step=1)[1]["loss_uu"]) == losses[1] and int(wrapper.step) == 2
    wrapper.eval()
    wrapper(batch)
    assert int(wrapper.step) == 2  # only training counts


def test_learnable_weights():
    wrapper = small_wrapper(learnable=True, item_weight=0.3, user_weight=0.0)
    assert list(wrapper.weights) == ["item"]
    fixed = small_wrapper(item_weight=0.3, user_weight=0.0)
    batch = random_batch()
    loss, parts = wrapper(batch, step=1)
    s = -math.log(0.3)
    assert float(loss) == pytest.approx(float(fixed(batch, step=1)[0]) + s, rel=1e-5)
    loss.backward()
    assert float(wrapper.weights["item"].s.grad) == pytest.approx(1 - 0.3 * float(parts["loss_ii"]), rel=1e-4)
    assert not list(TermWeight(0.3).parameters()) and not list(TermWeight(0.0, True).parameters())


def test_learning_brings_neighbours_together():
    wrapper = small_wrapper(item_weight=1.0, user_weight=1.0)
    batch = random_batch()
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=0.01)
    track = []
    for _ in range(30):
        loss, parts = wrapper(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        track.append([float(parts[f"loss_{n}"]) for n in ("rec", "ii", "uu")])
    assert (np.array(track[-1]) < 0.7 * np.array(track[0])).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("negatives", ["corpus", "batch"])
def test_traced_wrapper_equals_plain(training, negatives):
    plain = small_wrapper(negatives=negatives).train(training)
    traced = torch.fx.symbolic_trace(small_wrapper(negatives=negatives).train(training))
    for seed in range(3):
        batch = random_batch(seed)
        torch.testing.assert_close(traced(batch), plain(batch))
    assert int(traced.step) == int(plain.step) == (3 if training else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": {"modalities": ["user_text"]}}, ["contrastive.item_weight", "model.modalities"]),
        ({"model": {"modalities": ["item_image"]}}, ["contrastive.user_weight", "model.modalities"]),
        ({"corpus": {}}, ["contrastive.item_weight", "item_text, item_image", "prepare.modalities"]),
        (
            {"corpus": {m: torch.zeros(n, 384) for n, m in enumerate(MODALITIES)}},
            ["different numbers of rows"],
        ),
        ({"corpus": {m: torch.zeros(0, 384) for m in MODALITIES}}, ["no items"]),
        ({"temperature": 0.0}, ["contrastive.temperature"]),
        ({"num_negatives": 0}, ["contrastive.num_negatives"]),
        ({"negatives": "hard"}, ["contrastive.negatives", "corpus, batch"]),
        ({"positive": "all"}, ["contrastive.positive", "best, sample"]),
        ({"item_weight": -1.0}, ["contrastive.item_weight", "-1.0"]),
    ],
)
def test_errors_name_the_flags(arguments, words):
    with pytest.raises(DataError) as caught:
        small_wrapper(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
