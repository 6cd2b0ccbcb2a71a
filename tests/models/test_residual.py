"""The residual path and the deep part's share, against plain formulas; what each loss teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from dlrrec_torchrec.models.wide import DECAY, ResidualPath
from dlrrec_torchrec.training.trainer import SHARES, best_share
from dlrrec_torchrec.training.warm_start import LEAST_ROWS, may_choose
from tests.models.test_models import DENSE, random_inputs, small_model
from tests.models.test_wide import with_weights
from tests.models.test_wrapper import random_batch, small_wrapper

RESIDUAL = {"wide": True, "residual": [6, 4], "dropout": 0.0}


def with_values(module: torch.nn.Module, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=draw)


@given(st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_predictions_are_an_mlp_by_the_mean_weights(width, layers, rows):
    path = ResidualPath(width, layers).eval()
    z = torch.randn(rows, width)
    assert not path(z).any()
    with_values(path.mean)
    x = z.double().numpy()
    linear = [m for m in path.mean.model if isinstance(m, torch.nn.Linear)]
    for n, layer in enumerate(linear):
        x = x @ layer.weight.double().numpy().T + layer.bias.double().numpy()
        x = np.maximum(x, 0) if n < len(linear) - 1 else x
    assert path(z).detach().numpy() == pytest.approx(x[:, 0], abs=1e-5)


def test_the_mean_follows_the_weights_step_by_step():
    path, draw = ResidualPath(3, [4]), np.random.default_rng(0)
    weight = path.layers.model[0].weight
    kept, seen = path.mean.model[0].weight.detach().double().numpy().copy(), 0
    for step in range(1, 1200):
        weight.data += torch.from_numpy(draw.normal(size=weight.shape)).float()
        path.train()(torch.randn(2, 3))
        path.eval()(torch.randn(2, 3))  # moves nothing
        share = min((1 + step) / (10 + step), DECAY)
        seen += share == DECAY
        kept = share * kept + (1 - share) * weight.detach().double().numpy()
    assert seen > 100
    np.testing.assert_allclose(path.mean.model[0].weight.numpy(), kept, rtol=1e-3, atol=1e-2)
    assert not any(p.requires_grad for p in path.mean.parameters())


def test_the_logit_is_the_base_and_a_share_of_the_deep_part():
    model = with_weights(small_model(**RESIDUAL)).eval()
    with_values(model.residual.mean)
    with_values(model.over_arch)
    dense, sparse, vectors = random_inputs()
    z = model.wide.standardize(dense)
    now, kept, deep = model.parts(dense, sparse, model.reduce(vectors))
    torch.testing.assert_close(now, model.wide(z) + model.residual(z))
    torch.testing.assert_close(kept, model.wide(z))  # the start's: nothing else was kept yet
    for share in (0.0, 0.25, 1.0):
        model.share.fill_(share)
        torch.testing.assert_close(model(dense, sparse, vectors), kept + share * deep)
    model.keep_base()
    torch.testing.assert_close(model(dense, sparse, vectors), now + deep)
    model.wide.weight.data += 1
    with_values(model.residual.mean, seed=7)
    torch.testing.assert_close(model(dense, sparse, vectors), now + deep)  # until it is kept again
    assert deep.abs().max() > 0.01 and model.residual(z).abs().max() > 0.01
    assert small_model().parts(dense, sparse, small_model().reduce(vectors))[:2] == (None, None)


def test_each_part_learns_from_its_own_loss():
    """Wide and residual path as if there were no deep part; the deep part from what they leave."""

    def gradients(change) -> dict[str, torch.Tensor]:
        wrapper = small_wrapper(RESIDUAL, item_weight=0, user_weight=0)
        with_weights(wrapper.model)
        for part in (wrapper.model.residual.layers, wrapper.model.residual.mean, wrapper.model.over_arch):
            with_values(part)
        wrapper.model.keep_base()
        change(wrapper.model)
        torch.manual_seed(0)  # of the path's dropout
        wrapper.train()(random_batch())[0].backward()
        return {name: p.grad for name, p in wrapper.model.named_parameters() if p.grad is not None}

    def other_deep(model):
        with_values(model.over_arch, seed=2)

    def other_base(model):
        model.wide.kept_bias += 1

    plain, deep, base = (gradients(change) for change in (lambda _: None, other_deep, other_base))
    of_base = {name for name in plain if name.startswith(("wide.", "residual.layers."))}
    assert len(of_base) == 8 and not any(part in name for name in plain for part in (".mean.", ".kept."))
    for name in of_base:
        torch.testing.assert_close(plain[name], deep[name], rtol=0, atol=0)
        torch.testing.assert_close(plain[name], base[name], rtol=0, atol=0)
    assert not torch.allclose(plain["over_arch.model.0.weight"], base["over_arch.model.0.weight"])


def test_the_reported_loss_is_of_the_whole():
    wrapper = small_wrapper(RESIDUAL, item_weight=0, user_weight=0)
    with_weights(wrapper.model)
    with_values(wrapper.model.over_arch)
    with_values(wrapper.model.residual.mean)
    batch = random_batch()
    loss, parts = wrapper.eval()(batch)
    now, kept, deep = wrapper.model.score_parts(batch)
    assert not torch.allclose(now, kept)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(parts["loss_rec"], bce(kept + deep, batch.label))
    torch.testing.assert_close(loss, bce(kept + deep, batch.label) + bce(now, batch.label))
    torch.testing.assert_close(parts["logits"], (kept + deep).detach())


@given(st.integers(1, 200), st.floats(-2, 2), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_the_share_is_the_best_for_the_rows(rows, truth, seed):
    draw = np.random.default_rng(seed)
    base, deep = draw.normal(size=(2, rows))
    label = (draw.random(rows) < 1 / (1 + np.exp(-(base + truth * deep)))).astype(float)
    losses = [log_loss(label, 1 / (1 + np.exp(-(base + s * deep))), labels=[0, 1]) for s in SHARES]
    assert losses[SHARES.index(best_share(label, base, deep))] == pytest.approx(min(losses), abs=1e-12)


def test_few_rows_and_rows_of_one_label_choose_nothing():
    label = np.arange(LEAST_ROWS) % 2.0
    assert may_choose(label) and not may_choose(label[1:])
    assert not may_choose(np.ones(1000)) and not may_choose(np.zeros(1000))


def test_of_equal_shares_it_is_the_smallest():
    assert best_share(np.array([0.0, 1.0]), np.zeros(2), np.zeros(2)) == 0


def test_the_traced_model_has_the_residual_path_too():
    model = with_weights(small_model(**RESIDUAL)).eval()
    with_values(model.residual.mean)
    model.keep_base()
    traced = torch.fx.symbolic_trace(model)
    for rows in (3, 11):
        inputs = random_inputs(rows=rows, seed=rows)
        torch.testing.assert_close(traced(*inputs), model(*inputs))
    assert model.residual(torch.ones(1, DENSE)).any()
