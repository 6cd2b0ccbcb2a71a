"""The wide path against plain formulas; without it the model is what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.models.wide import WidePath
from tests.models.test_models import DENSE, random_inputs, small_model


def with_weights(model, seed: int = 5):
    """The model with scaling and weights in its wide path."""
    draw = torch.Generator().manual_seed(seed)
    model.wide.set_scaling(torch.randn(DENSE, generator=draw), torch.rand(DENSE, generator=draw) + 0.5)
    model.wide.set_weights(torch.randn(DENSE, generator=draw), 0.3)
    return model


@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_path_is_a_linear_model_of_clipped_standardised_features(width, rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 8, (rows, width)).astype(np.float32)
    mean, scale, weight = (rng.normal(size=width).astype(np.float32) for _ in range(3))
    scale = np.abs(scale) + 0.5
    path = WidePath(width)
    path.set_scaling(torch.from_numpy(mean), torch.from_numpy(scale))
    path.set_weights(torch.from_numpy(weight), -0.7)
    z = np.clip((x.astype(np.float64) - mean) / scale, -5, 5)
    logits = path(path.standardize(torch.from_numpy(x))).detach().numpy()
    assert logits == pytest.approx(z @ weight - 0.7, abs=1e-4)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_products_are_a_bilinear_form_of_the_two_groups(left, right, rows, seed):
    """With a matrix W between the groups u and i the logit is w . x + u W i, in plain loops."""
    draw = np.random.default_rng(seed)
    width = 2 + left + right
    x = draw.normal(size=(rows, width)).astype(np.float32)
    path = WidePath(width, (range(1, 1 + left), range(2 + left, width)), limit=1e6)
    weight = draw.normal(size=width + left * right).astype(np.float32)
    path.set_weights(torch.from_numpy(weight), 0.2)
    matrix = weight[width:].reshape(left, right)
    expected = [row @ weight[:width] + row[1 : 1 + left] @ matrix @ row[2 + left :] + 0.2 for row in x]
    logits = path(path.standardize(torch.from_numpy(x))).detach().numpy()
    assert logits == pytest.approx(np.array(expected), abs=1e-4)


def test_a_feature_of_infinite_scale_is_left_out_and_never_learns():
    path = WidePath(2, (range(0, 1), range(1, 2)))
    path.set_scaling(torch.zeros(3), torch.tensor([1.0, 1.0, torch.inf]))
    path.set_weights(torch.tensor([1.0, 2.0, 3.0]), 0.0)
    logits = path(path.standardize(torch.tensor([[1.0, 2.0], [-1.0, 0.5]])))
    assert logits.tolist() == [5.0, 0.0]
    logits.sum().backward()
    assert path.weight.grad.tolist() == [0.0, 2.5, 0.0]


def test_the_first_logits_are_the_linear_paths_whatever_the_deep_part_sees():
    model = with_weights(small_model(wide=True)).train()
    dense, sparse, vectors = random_inputs()
    logits = model(dense, sparse, vectors)
    torch.testing.assert_close(logits, model.wide(model.wide.standardize(dense)), rtol=0, atol=0)
    logits.sum().backward()
    last = model.over_arch.model[-1]
    assert last.weight.grad.any() and last.bias.grad.any()  # the deep part can begin to learn


def test_the_logit_is_the_deep_parts_plus_the_wide_paths():
    """With the same weights, the model without a wide path scores the standardised features alone."""
    both, deep = with_weights(small_model(wide=True)).eval(), small_model().eval()
    for ours, theirs in zip(both.over_arch.parameters(), deep.over_arch.parameters(), strict=True):
        ours.data.copy_(theirs)
    dense, sparse, vectors = random_inputs()
    z = both.wide.standardize(dense)
    expected = deep(z, sparse, vectors) + both.wide(z)
    torch.testing.assert_close(both(dense, sparse, vectors), expected)
    assert deep(z, sparse, vectors).abs().max() > 0.01


def test_without_it_the_model_and_its_first_weights_are_as_they_were():
    plain, wide = small_model(), small_model(wide=True)
    assert not [name for name in plain.state_dict() if "wide" in name]
    last = {f"over_arch.model.{len(plain.over_arch.model) - 1}.{kind}" for kind in ("weight", "bias")}
    for name, value in plain.state_dict().items():
        other = wide.state_dict()[name]
        assert not other.any() if name in last else torch.equal(value, other), name
    new = {"wide.mean", "wide.scale", "wide.weight", "wide.bias", "share"}
    new |= {"wide.kept_weight", "wide.kept_bias"}
    assert wide.state_dict().keys() - plain.state_dict().keys() == new


def test_the_traced_model_has_the_wide_path_too():
    model = with_weights(small_model(wide=True, dropout=0.0)).eval()
    for parameter in model.over_arch.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    traced = torch.fx.symbolic_trace(model)
    for rows in (3, 11):
        inputs = random_inputs(rows=rows, seed=rows)
        torch.testing.assert_close(traced(*inputs), model(*inputs))


def test_vectors_left_out_count_as_missing():
    model = small_model().eval()
    dense, sparse, vectors = random_inputs()

    class Rows:
        managed = None

    batch = Rows()
    batch.dense, batch.sparse, batch.vectors = dense, sparse, vectors
    missing = vectors | {"item_text": torch.zeros_like(vectors["item_text"])}
    torch.testing.assert_close(model.score(batch, without=["item_text"]), model(dense, sparse, missing))
    assert not torch.allclose(model.score(batch), model.score(batch, without=["item_text"]))
