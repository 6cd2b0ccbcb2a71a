"""Content vectors in tables against the same vectors in the rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_wrapper import DENSE, ITEMS, USERS, random_batch, random_corpus

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.models.build import build_lookups, build_model, build_wrapper
from dlrrec_torchrec.models.content import distinct_codes
from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.schema import MODALITIES

SIZES = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
SIZES |= {"over_arch": [20, 6, 1], "dropout": 0.0}
NUMBERS = {"num_users": USERS, "num_items": ITEMS}


def configs(vectors: str, model: dict | None = None, **contrastive) -> tuple[ModelConfig, ContrastiveConfig]:
    chosen = ModelConfig(**SIZES | {"vectors": vectors} | (model or {}))
    return chosen, ContrastiveConfig(**{"num_negatives": 5} | contrastive)


def wrapper_of(vectors: str, model: dict | None = None, **contrastive) -> TrainWrapper:
    """Weights follow from the seed, so both kinds have the same; tables hold `random_corpus`."""
    chosen, terms = configs(vectors, model, **contrastive)
    torch.manual_seed(0)
    built = build_model(chosen, dense_width=DENSE, **NUMBERS)
    if built.content is not None:
        for name, vector in random_corpus().items():
            built.content.tables.embeddings[f"t_{name}"].weight.copy_(vector)
    corpus = random_corpus() if vectors == "row" else {}
    return build_wrapper(built, terms, corpus=corpus, seed=5)


def entity_batch(seed: int = 0, part: slice = slice(None), padding: bool = False) -> Batch:
    """A random batch whose vectors are its entities'; the last row may be padding."""
    batch = random_batch(seed, part=part)
    corpus = random_corpus()
    if padding:
        for name in ("user", "item", "label", "user_positives", "item_positives"):
            getattr(batch, name)[-1] = -1
    for name in MODALITIES:
        codes = getattr(batch, name.split("_")[0])
        batch.vectors[name] = torch.where((codes >= 0)[:, None], corpus[name][codes], 0)
    return batch


def with_lookup(batch: Batch, step: int, model: dict | None = None, **contrastive) -> Batch:
    lookups = build_lookups(*configs("table", model, **contrastive), **NUMBERS, seed=5)
    return dataclasses.replace(lookups(batch, step), vectors={})


CASES = {
    "corpus": {},
    "sampled positives": {"positive": "sample", "item_weight": 0.7},
    "batch": {"negatives": "batch", "temperature": 1.0},
    "one term": {"user_weight": 0.0},
    "no term": {"user_weight": 0.0, "item_weight": 0.0},
}


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("case", CASES)
def test_tables_equal_rows(case, norm):
    """Logits, losses, gradients, and the statistics of batch normalisation, over several steps."""
    found = []
    for vectors in ("row", "table"):
        model = {"tower_norm": norm}
        wrapper = wrapper_of(vectors, model, **CASES[case])
        optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], lr=0.1)
        steps = []
        for step in range(3):
            batch = entity_batch(step, padding=step == 1)
            if vectors == "table":
                batch = with_lookup(batch, step, model, **CASES[case])
            optimizer.zero_grad()
            loss, parts = wrapper(batch)
            loss.backward()
            gradients = {n: p.grad.clone() for n, p in wrapper.named_parameters() if p.requires_grad}
            steps.append((loss.detach(), parts, gradients))
            optimizer.step()
        held_out = entity_batch(9)
        if vectors == "table":
            held_out = build_lookups(configs("table")[0])(held_out)
        with torch.no_grad():
            scores = wrapper.eval().model.score(held_out)
        found.append((steps, scores, dict(wrapper.model.dense_arch.named_buffers())))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert found[0][2] or norm != "batch"


def test_a_repeated_entity_passes_its_tower_once():
    wrapper = wrapper_of("table")
    batch = entity_batch()
    rows = {}
    for name, tower in wrapper.model.dense_arch.towers.items():
        tower.layers.register_forward_hook(
            lambda _, given, made, name=name: rows.setdefault(name, []).append(len(made))
        )
    looked_up = with_lookup(batch, 0)
    wrapper(looked_up)
    plain = wrapper_of("row")
    for side in ("user", "item"):
        draws = plain.draws[side]
        neighbours = getattr(batch, f"{side}_positives")
        wanted = {*getattr(batch, side).tolist(), *draws.corpus(0).tolist()}
        wanted |= {*draws.positives(neighbours, getattr(batch, side), 0).tolist()} - {-1}
        assert looked_up.lookup.codes[side].tolist() == sorted(wanted)
        for name in MODALITIES:
            if name.startswith(side):
                assert rows[name] == [len(wanted)]
    assert len(batch) > sum(rows["item_text"])  # many rows, few items


def test_table_vectors_are_never_trained_and_have_no_gradient():
    wrapper = wrapper_of("table")
    loss, _ = wrapper(with_lookup(entity_batch(), 0))
    loss.backward()
    for table in wrapper.model.content.parameters():
        assert not table.requires_grad and table.grad is None and table.dtype == torch.float16


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=12))
def test_distinct_codes(codes):
    distinct, place = distinct_codes(torch.tensor(codes, dtype=torch.int64))
    assert distinct.tolist() == sorted({*codes} - {-1})
    padded = [*distinct.tolist(), -1]
    assert [padded[k] for k in place.tolist()] == codes


@pytest.mark.parametrize("rows", [0, 1, 7, 24])
def test_ids_are_spread_over_the_rows_in_order(rows):
    made = with_lookup(entity_batch(part=slice(rows)), 3).lookup
    assert made.ids.stride() == max(rows, 1)
    for name, jagged in made.ids.to_dict().items():
        assert jagged.values().equal(made.codes[name.split("_")[0]])
        assert jagged.lengths().max() - jagged.lengths().min() <= 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["corpus", "batch"])
def test_traced_wrapper_equals_plain(case, training):
    plain = wrapper_of("table", **CASES[case]).train(training)
    traced = torch.fx.symbolic_trace(wrapper_of("table", **CASES[case]).train(training))
    for step in range(2):
        batch = with_lookup(entity_batch(step), step, **CASES[case])
        torch.testing.assert_close(traced(batch), plain(batch))
