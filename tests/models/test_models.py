"""Towers, interactions, losses and the whole model against plain torch and TorchRec."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrrec_torchrec.config import ModelConfig
from dlrrec_torchrec.data.batch import make_sparse
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.interactions import OverArch, PairwiseInteraction
from dlrrec_torchrec.models.losses import class_weights, weighted_bce_sum
from dlrrec_torchrec.models.norm import MaskedBatchNorm
from dlrrec_torchrec.models.towers import Tower
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.shards import DIM, MODALITIES, TYPES, build

USERS, ITEMS, DENSE = 50, 40, 7


def random_inputs(rows=16, seed=0, keys=("category", "user", "item")):
    """dense, sparse and vectors of random rows, about one vector in four missing."""
    rng = torch.Generator().manual_seed(seed)
    category = torch.randint(0, TYPES + 1, (rows, 11), generator=rng)
    category[torch.rand(rows, 11, generator=rng) < 0.5] = TYPES
    user, item = (torch.randint(0, n, (rows,), generator=rng) for n in (USERS, ITEMS))
    vectors = {m: torch.randn(rows, DIM, generator=rng).half() for m in MODALITIES}
    for value in vectors.values():
        value[torch.rand(rows, generator=rng) < 0.25] = 0
    return torch.randn(rows, DENSE, generator=rng), make_sparse(category, user, item, keys, TYPES), vectors


def small_model(**changes):
    torch.manual_seed(0)
    settings = {"user_id": True, "item_id": True, "embedding_dim": 8, "dense_arch": [16, 8]}
    settings |= {"text_tower": [24, 8], "image_tower": [12, 8], "over_arch": [20, 6, 1], "wide": False}
    config = dataclasses.replace(ModelConfig(), **settings | changes)
    return build(config, dense=DENSE, users=USERS, items=ITEMS)


# ---- batch normalisation and towers ----


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_batch_norm_equals_torch(offset):
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(6).double(), nn.BatchNorm1d(6).double()
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 6))
            norm.bias.copy_(torch.linspace(-1, 1, 6))
    present = torch.ones(11, dtype=torch.bool)
    for _ in range(3):
        x = (torch.randn(11, 6, dtype=torch.float64) + offset).requires_grad_()
        y = x.detach().clone().requires_grad_()
        out, expected = ours(x, present), theirs(y)
        torch.testing.assert_close(out, expected)
        slope = torch.randn_like(out)
        for norm, result in ((ours, out), (theirs, expected)):
            norm.zero_grad()
            (result * slope).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, present), theirs(x))


def test_batch_norm_in_float32_does_not_cancel():
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + 3000
    out = MaskedBatchNorm(3)(x, torch.ones(4096, dtype=torch.bool))
    exact = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    assert (out - exact).abs().max() < 2e-3  # E[x^2] - E[x]^2 is off by more than 1 here


@pytest.mark.parametrize("share", [None, torch.tensor([1, 1, 0.5, 0.5, 1, 0.25])])
def test_batch_norm_gradient_with_absent_and_shared_rows(share):
    torch.manual_seed(0)
    norm = MaskedBatchNorm(3).double()
    present = torch.tensor([True, False, True, True, False, True])

    def function(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, present, False, share))

    inputs = [torch.randn(6, 3), torch.randn(3), torch.randn(3)]
    assert torch.autograd.gradcheck(function, [x.double().requires_grad_() for x in inputs])


def test_two_half_rows_count_as_one():
    torch.manual_seed(0)
    single, halved = MaskedBatchNorm(3), MaskedBatchNorm(3)
    x = torch.randn(5, 3)
    out = single(x, torch.ones(5, dtype=torch.bool))
    doubled = torch.cat([x, x[:2]])
    share = torch.tensor([0.5, 0.5, 1, 1, 1, 0.5, 0.5])
    torch.testing.assert_close(halved(doubled, torch.ones(7, dtype=torch.bool), True, share)[:5], out)
    torch.testing.assert_close(halved.running_var, single.running_var)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_missing_vectors_change_nothing(norm, training):
    torch.manual_seed(0)
    towers = [Tower(20, [10, 4], norm) for _ in range(2)]
    towers[1].load_state_dict(towers[0].state_dict())
    rows = torch.randn(9, 20).half()
    missing = torch.tensor([1, 4, 5])
    present_rows = torch.tensor([0, 2, 3, 6, 7, 8])
    rows[missing] = 0
    slope = torch.randn(9, 4)
    with_missing, without = (t.train(training) for t in towers)
    out, expected = with_missing(rows), without(rows[present_rows])
    assert out[missing].abs().max() == 0
    torch.testing.assert_close(out[present_rows], expected)
    (out * slope).sum().backward()
    (expected * slope[present_rows]).sum().backward()
    for a, b in zip(with_missing.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(with_missing.buffers(), without.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_vector_at_all(rows):
    tower = Tower(20, [10, 4])
    out = tower(torch.zeros(rows, 20).half())
    out.sum().backward()
    assert out.shape == (rows, 4) and not out.any()
    assert all(not p.grad.any() for p in tower.parameters())
    assert not tower.norm.running_mean.any() and (tower.norm.running_var == 1).all()


def test_tower_is_the_papers():
    torch.manual_seed(0)
    tower = Tower(384, [256, 32])
    plain = nn.Sequential(nn.Linear(384, 256), nn.ReLU(), nn.Linear(256, 32), nn.BatchNorm1d(32))
    # Batch normalisation takes the last layer's bias away again, whatever it is: the tower has none.
    with_ours = [parameter for name, parameter in plain.named_parameters() if name != "2.bias"]
    for ours, theirs in zip(tower.parameters(), with_ours, strict=True):
        theirs.data.copy_(ours)
    rows = torch.randn(12, 384).half()
    torch.testing.assert_close(tower(rows), plain(rows.float()))


# ---- interactions and losses ----


@settings(max_examples=20)
@given(rows=st.integers(0, 5), width=st.integers(1, 9), seed=st.integers(0, 999))
def test_pairwise_products(rows, width, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x.requires_grad_()
    out = PairwiseInteraction(width)(x)
    pairs = [x[:, i] * x[:, j] for i in range(width) for j in range(i + 1, width)]
    expected = torch.cat([x, *(p.unsqueeze(1) for p in pairs)], dim=1)
    assert out.shape[1] == PairwiseInteraction(width).out_features
    torch.testing.assert_close(out, expected)
    slope = torch.randn(out.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((out * slope).sum(), x)
    (expected_grad,) = torch.autograd.grad((expected * slope).sum(), x)
    torch.testing.assert_close(grad, expected_grad)


def test_over_arch_drops_between_layers_only():
    arch = OverArch(6, [5, 4, 1], 0.3)
    assert [type(m).__name__ for m in arch.model] == (["Linear", "ReLU", "Dropout"] * 2 + ["Linear"])
    assert {m.p for m in arch.model if isinstance(m, nn.Dropout)} == {0.3}


def test_class_weights():
    assert class_weights("none", 0, 8) == (1, 1)
    assert class_weights("basic", 1, 7) == pytest.approx((7 / 8, 1 / 8))
    assert class_weights("sqrt", 1, 7) == pytest.approx((np.sqrt(7 / 8), np.sqrt(1 / 8)))
    negative, positive = class_weights("normalized", 100, 700)
    assert (negative, positive) == pytest.approx((800 / 200, 800 / 1400))
    assert (100 * negative + 700 * positive) / 800 == pytest.approx(1)
    rooted = class_weights("sqrt_normalized", 100, 700)
    assert (100 * rooted[0] + 700 * rooted[1]) / 800 == pytest.approx(1)
    assert rooted[0] / rooted[1] == pytest.approx(np.sqrt(7))
    with pytest.raises(DataError, match="train.class_weights.*0 negatives"):
        class_weights("basic", 0, 8)
    with pytest.raises(DataError, match="unknown 'cubic'"):
        class_weights("cubic", 1, 8)


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1)), min_size=1, max_size=9),
    weights=st.tuples(st.floats(0, 4), st.floats(0, 4)),
)
def test_weighted_bce(rows, weights):
    logits, label = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    loss = weighted_bce_sum(logits, label, torch.tensor(weights, dtype=torch.float64))
    p = [1 / (1 + np.exp(-x)) for x in logits.numpy()]
    expected = sum(
        -weights[1] * np.log(a) if y else -weights[0] * np.log1p(-a) for a, y in zip(p, label, strict=True)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    plain = F.binary_cross_entropy_with_logits(logits, label, reduction="sum")
    assert float(weighted_bce_sum(logits, label, torch.ones(2))) == pytest.approx(float(plain))


# ---- the model ----


def test_pooled_category_equals_embedding_bag():
    torch.manual_seed(0)
    bags = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name="t_category",
                embedding_dim=8,
                num_embeddings=TYPES + 1,
                feature_names=["category"],
            )
        ]
    )
    slots = torch.randint(0, TYPES + 1, (40, 11))
    slots[torch.rand(40, 11) < 0.6] = TYPES
    slots[3] = TYPES
    ids = torch.zeros(40, dtype=torch.long)
    table = bags.embedding_bags["t_category"].weight
    plain = nn.EmbeddingBag(TYPES + 1, 8, padding_idx=TYPES, mode="sum")
    plain.weight.data.copy_(table)
    pooled = bags(make_sparse(slots, ids, ids, ["category"], TYPES)).values()
    expected = plain(slots)
    torch.testing.assert_close(pooled, expected)
    slope = torch.randn(40, 8)
    (pooled * slope).sum().backward()
    (expected * slope).sum().backward()
    torch.testing.assert_close(table.grad, plain.weight.grad)
    assert not table.grad[TYPES].any() and table.grad.any()


def test_without_modalities_it_is_torchrecs_dlrm():
    ours = small_model(modalities=[], dropout=0.5).eval()
    theirs = DLRM(ours.sparse_arch.embedding_bag_collection, DENSE, [16, 8], [20, 6, 1])
    parts = ("dense_arch", "sparse_arch", "over_arch")
    for part in parts:
        pairs = zip(getattr(theirs, part).parameters(), getattr(ours, part).parameters(), strict=True)
        for a, b in pairs:
            a.data.copy_(b)
    dense, sparse, vectors = random_inputs()
    outcomes = []
    for model, inputs in ((ours, (dense, sparse, vectors)), (theirs, (dense, sparse))):
        model.zero_grad()
        logits = model(*inputs).flatten()
        (logits * torch.linspace(-1, 1, 16)).sum().backward()
        gradients = [p.grad.clone() for part in parts for p in getattr(model, part).parameters()]
        outcomes.append([logits.detach(), *gradients])
    torch.testing.assert_close(*outcomes)


def plain_logits(model, dense, sparse, vectors):
    """The model written out in plain torch, in eval mode."""
    x = F.relu(model.dense_arch.model._mlp[0]._linear(dense))
    parts = [F.relu(model.dense_arch.model._mlp[1]._linear(x))]
    for key, table in model.sparse_arch.embedding_bag_collection.embedding_bags.items():
        jagged = sparse[key.removeprefix("t_")]
        parts.append(F.embedding_bag(jagged.values(), table.weight, jagged.offsets()[:-1], mode="sum"))
    for name in (modality.name for modality in model.modalities):
        first, _, second = model.dense_arch.towers[name].layers
        norm = model.dense_arch.towers[name].norm
        rows = vectors[name].float()
        out = second(F.relu(first(rows)))
        out = F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        parts.append(out * rows.any(1, keepdim=True))
    flat = torch.cat(parts, dim=1)
    if model.interaction == "dot":
        pairs = [(a * b).sum(1) for i, a in enumerate(parts) for b in parts[i + 1 :]]
        crossed = torch.cat([parts[0], torch.stack(pairs, 1)], dim=1)
    elif model.interaction == "pairwise":
        i, j = torch.triu_indices(flat.shape[1], flat.shape[1], offset=1)
        crossed = torch.cat([flat, flat[:, i] * flat[:, j]], dim=1)
    else:
        crossed, net = flat, model.inter_arch
        for w, v, b in zip(net.W_kernels, net.V_kernels, net.bias, strict=True):
            crossed = flat * (crossed @ v.T @ w.T + b) + crossed
    first, second, last = (m for m in model.over_arch.model if isinstance(m, nn.Linear))
    return last(F.relu(second(F.relu(first(crossed))))).squeeze(1)


@pytest.mark.parametrize("interaction", ["dot", "pairwise", "dcn"])
def test_model_equals_plain_torch(interaction):
    model = small_model(interaction=interaction).train()
    with torch.no_grad():  # give batch norm something to remember
        for seed in range(3):
            model(*random_inputs(seed=seed))
    model.eval()
    inputs = random_inputs(seed=9)
    outcomes = []
    for logits in (model(*inputs), plain_logits(model, *inputs)):
        model.zero_grad()
        (logits * torch.linspace(-1, 1, 16)).sum().backward()
        outcomes.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("interaction", ["dot", "pairwise", "dcn"])
@pytest.mark.parametrize("training", [True, False])
def test_traced_model_equals_plain(interaction, training):
    model = small_model(interaction=interaction, dropout=0.0, tower_norm="batch").train(training)
    traced = torch.fx.symbolic_trace(small_model(interaction=interaction, dropout=0.0).train(training))
    for seed in range(2):
        inputs = random_inputs(rows=12 + seed, seed=seed)
        torch.testing.assert_close(traced(*inputs), model(*inputs))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(traced.state_dict()[name], value)


def test_wide_interactions_take_any_sizes():
    model = small_model(interaction="dcn", text_tower=[9, 5], image_tower=[3], dense_arch=[4])
    assert model(*random_inputs()).shape == (16,)
    assert model.inter_arch.out_features == 4 + 3 * 8 + 5 + 5 + 3


def test_reduce_then_predict_is_forward():
    model = small_model().eval()
    dense, sparse, vectors = random_inputs()
    reduced = model.reduce(vectors)
    assert {k: v.shape for k, v in reduced.items()} == {m: (16, 8) for m in MODALITIES}
    torch.testing.assert_close(model.predict(dense, sparse, reduced), model(dense, sparse, vectors))


def test_tables_on_meta_leave_the_dense_part_real():
    config = dataclasses.replace(ModelConfig(), user_id=True)
    model = build(config, users=10**9, items=5, device="meta")
    devices = {n: p.device.type for n, p in model.named_parameters()}
    assert {n for n, d in devices.items() if d == "meta"} == {
        f"sparse_arch.embedding_bag_collection.embedding_bags.t_{t}.weight" for t in ("category", "user")
    }


def test_weights_follow_from_the_seed():
    a, b = small_model().state_dict(), small_model().state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense_arch": [16, 9]}, ["model.dense_arch", "[16, 9]", "model.embedding_dim (8)"]),
        ({"text_tower": [16, 9]}, ["model.text_tower", "[16, 9]", "model.embedding_dim (8)"]),
        ({"image_tower": [16, 9]}, ["model.image_tower", "[16, 9]"]),
        ({"over_arch": [16, 2]}, ["model.over_arch", "must end in 1"]),
        ({"over_arch": []}, ["model.over_arch", "at least one layer"]),
        ({"modalities": ["user_sound"]}, ["model.modalities", "user_sound", "item_image"]),
        ({"modalities": ["user_text", "user_text"]}, ["model.modalities", "twice"]),
        ({"interaction": "sum"}, ["model.interaction", "dot, pairwise, dcn"]),
        ({"tower_norm": "group"}, ["model.tower_norm", "batch, layer, none"]),
        ({"dropout": 1.0}, ["model.dropout"]),
        ({"embedding_dim": 0}, ["model.embedding_dim"]),
        ({"joined": ["user_text+item_sound"]}, ["model.joined", "'item_sound'", "item_image"]),
        ({"joined": ["user_text+item_text"], "vectors": "table"}, ["model.joined", "model.vectors=row"]),
    ],
)
def test_errors_name_the_flags(changes, words):
    with pytest.raises(DataError) as caught:
        small_model(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_image_tower_is_checked_only_where_used():
    assert isinstance(small_model(image_tower=[5], modalities=["user_text"]), DLRREC)
