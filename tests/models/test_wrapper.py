"""The training wrapper against its loss by hand, traced, resumed and learning."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.draws import choose_positives, draw_negatives, draw_weighted, popularity
from dlrrec_torchrec.models import wrapper as module
from dlrrec_torchrec.models.build import build_wrapper
from dlrrec_torchrec.models.compared import distinct_uses, every_use
from dlrrec_torchrec.models.contrastive import TermWeight
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.store.errors import DataError
from tests.helpers.shards import DIM, MODALITIES, TYPES, build, make_facts
from tests.models.test_contrastive import naive_info_nce, naive_semi_hard

USERS, ITEMS, ROWS, DENSE = 12, 9, 24, 7
NEGATIVES = ["corpus", "batch", "popularity", "semi_hard", "swing_hard"]
HARD = 2
CUMULATIVE = {"user": popularity(torch.arange(USERS)), "item": popularity(torch.arange(ITEMS) % 4)}


def random_corpus(seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = {"user_text": USERS, "item_text": ITEMS, "item_image": ITEMS}
    corpus = {m: torch.randn(n, DIM, generator=rng).half() for m, n in sizes.items()}
    corpus["user_text"][2] = 0
    corpus["item_text"][4] = corpus["item_image"][4] = 0
    return corpus


def random_batch(seed=0, rows=ROWS, part=slice(None)):
    """The rows `part` of a random batch: jagged ids, missing vectors, up to three neighbours."""
    rng = torch.Generator().manual_seed(100 + seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=rng)

    category = integers(0, TYPES + 1, rows, 11)
    user, item = integers(0, USERS, rows), integers(0, ITEMS, rows)
    vectors = {m: torch.randn(rows, DIM, generator=rng).half() for m in MODALITIES}
    for m in MODALITIES:
        vectors[m][integers(0, 6, rows) == 0] = 0
    positives, hard = {}, {}
    for side, size, own in (("user", USERS, user), ("item", ITEMS, item)):
        listed = integers(0, size, rows, 3)
        length = integers(0, 4, rows, 1)
        listed = torch.where(torch.arange(3) < length, listed, -1)
        positives[side] = listed[part]
        drawn = integers(-1, size, rows, HARD)
        near = torch.cat([own[:, None], listed], dim=1)
        hard[side] = torch.where((drawn[:, :, None] == near[:, None]).any(2), -1, drawn)[part]
    return Batch(
        dense=torch.randn(rows, DENSE, generator=rng)[part],
        sparse=make_sparse(category[part], user[part], item[part], ["category"], TYPES),
        vectors={m: v[part] for m, v in vectors.items()},
        label=integers(0, 2, rows).float()[part],
        rating=torch.linspace(1, 5, rows)[part],
        user=user[part],
        item=item[part],
        user_positives=positives["user"],
        item_positives=positives["item"],
        user_hard=hard["user"],
        item_hard=hard["item"],
    )


def small_wrapper(model=None, class_weights=(1.0, 1.0), seed=5, corpus=None, **contrastive):
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
    config = dataclasses.replace(
        ModelConfig(), **sizes | {"over_arch": [20, 6, 1], "dropout": 0.0, "wide": False} | (model or {})
    )
    built = build(config, dense=DENSE, users=USERS, items=ITEMS)
    settings = dataclasses.replace(
        ContrastiveConfig(), **{"num_negatives": 5, "num_hard": HARD} | contrastive
    )
    corpus = random_corpus() if corpus is None else corpus
    facts = make_facts(dense=DENSE, users=USERS, items=ITEMS)
    spec = batch_spec(config, facts, settings, seed)
    if settings.negatives == "popularity":
        draws = [dataclasses.replace(d, cumulative=CUMULATIVE[d.side]) for d in spec.draws]
        spec = dataclasses.replace(spec, draws=tuple(draws))
    return build_wrapper(built, settings, corpus=corpus, class_weights=class_weights, seed=seed, spec=spec)


def plain_side(wrapper, batch, side, step):
    """The side's mean InfoNCE, from the towers' parameters by hand."""
    names = [m for m in MODALITIES if m.startswith(side)]
    entity = getattr(batch, side)
    listed = getattr(batch, f"{side}_positives")
    seed = 2 * wrapper.seed + (side == "user")
    chosen = choose_positives(listed, entity, wrapper.positive, seed, step)
    hard = getattr(batch, f"{side}_hard") if wrapper.negatives == "swing_hard" else entity[:0, None]
    if wrapper.negatives == "batch":
        drawn = entity
    elif wrapper.negatives == "popularity":
        drawn = draw_weighted(wrapper.num_negatives, CUMULATIVE[side], seed, step)
    else:
        size = USERS if side == "user" else ITEMS
        drawn = draw_negatives(wrapper.num_negatives, size, seed, step)

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
        own = torch.cat([chosen, hard.flatten()])
        own = torch.where((own >= 0)[:, None], corpus[name][own], 0)
        far = own[:0] if wrapper.negatives == "batch" else corpus[name][drawn]
        others.append(tower(name, torch.cat([own, far])))
    anchors, others = torch.cat(anchors, 1), torch.cat(others, 1)
    positives, owned = others[: len(anchors)], others[len(anchors) : len(anchors) + hard.numel()]
    negatives = anchors if wrapper.negatives == "batch" else others[len(anchors) + hard.numel() :]
    valid = anchors.any(1) & positives.any(1)
    mask = torch.zeros(len(anchors), len(negatives), dtype=torch.bool)
    seen = set()
    for k, code in enumerate(drawn.tolist()):
        if not negatives[k].any() or (wrapper.negatives == "batch" and code in seen):
            continue
        seen.add(code)
        for j in range(len(anchors)):
            mask[j, k] = code != entity[j] and code not in listed[j].tolist()
    if wrapper.negatives == "semi_hard":
        mask = naive_semi_hard(anchors, positives, negatives, mask, HARD)
    if len(owned):
        of_anchor = torch.arange(len(anchors)).repeat_interleave(HARD) == torch.arange(len(anchors))[:, None]
        negatives, mask = torch.cat([negatives, owned]), torch.cat([mask, of_anchor & owned.any(1)], 1)
    total, count = naive_info_nce(
        anchors, positives, negatives, valid, mask, wrapper.temperature, wrapper.normalize
    )
    return total / count


@pytest.mark.parametrize("negatives", NEGATIVES)
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
    expected = rec + 0.3 * ii + 0.7 * uu
    torch.testing.assert_close(loss, expected)
    for name, value in {"rec": rec, "ii": ii, "uu": uu}.items():
        torch.testing.assert_close(parts[f"loss_{name}"], value.detach())
        assert not parts[f"loss_{name}"].requires_grad
    torch.testing.assert_close(parts["logits"], logits.detach())
    parameters = [p for p in wrapper.parameters() if p.requires_grad]
    gradients, by_hand = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    torch.testing.assert_close(gradients, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_an_entity_counts_as_often_as_it_is_used(negatives, monkeypatch):
    """Whether entities pass the towers once, as on a CPU, or at each use."""
    results, passed = [], []
    for uses in (distinct_uses, every_use):
        monkeypatch.setattr(module, "distinct_uses", uses)
        wrapper, batch = small_wrapper(negatives=negatives), random_batch(rows=64)
        for tower in wrapper.model.dense_arch.towers.values():
            tower.layers.register_forward_hook(lambda *call: passed.append(len(call[2])))
        loss, parts = wrapper(batch, step=3)
        loss.backward()
        gradients = {name: p.grad for name, p in wrapper.named_parameters() if p.grad is not None}
        results.append((loss.detach(), parts["logits"], dict(wrapper.named_buffers()), gradients))
    torch.testing.assert_close(results[0], results[1])
    once, always = np.array(passed).reshape(2, -1)
    assert (once <= always).all() and once.sum() < always.sum()


def test_contrastive_terms_leave_prediction_and_its_statistics_alone():
    batch = random_batch()
    results = []
    for weight in (0.0, 0.5):
        wrapper = small_wrapper(item_weight=weight, user_weight=weight)
        _, parts = wrapper(batch)
        results.append((parts["logits"], parts["loss_rec"], dict(wrapper.model.named_buffers())))
    torch.testing.assert_close(*results)
    assert results[0][2]["dense_arch.towers.user_text.norm.running_mean"].any()


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
@pytest.mark.parametrize("negatives", NEGATIVES)
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
            {"corpus": {m: torch.zeros(n, DIM) for n, m in enumerate(MODALITIES)}},
            ["different numbers of rows"],
        ),
        ({"corpus": {m: torch.zeros(0, DIM) for m in MODALITIES}}, ["no items"]),
        ({"temperature": 0.0}, ["contrastive.temperature"]),
        ({"num_negatives": 0}, ["contrastive.num_negatives"]),
        ({"negatives": "hard"}, ["contrastive.negatives", "corpus, batch"]),
        ({"negatives": "semi_hard", "num_hard": 0}, ["contrastive.num_hard"]),
        ({"positive": "all"}, ["contrastive.positive", "best, sample"]),
        ({"item_weight": -1.0}, ["contrastive.item_weight", "-1.0"]),
    ],
)
def test_errors_name_the_flags(arguments, words):
    with pytest.raises(DataError) as caught:
        small_wrapper(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
