"""The list head against a plain softmax: losses, gradients, masks, log-q, dropped ids, and the tracer."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig
from dlrrec_torchrec.data.batch import split_rows
from dlrrec_torchrec.data.draws import draw_negatives, kept_codes
from dlrrec_torchrec.data.listing import CANDIDATES, recent_ranges
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.list_loss import allowed_candidates, softmax_sum
from dlrrec_torchrec.models.spec import batch_spec, with_rows
from tests.helpers.shards import SLOTS, TYPES, make_facts
from tests.models.test_wrapper import DENSE, ITEMS, USERS, random_batch, random_corpus

COUNTS = torch.arange(1, ITEMS + 1)


@functools.cache
def categories():
    """Up to three types of each item."""
    rng = np.random.default_rng(3)
    types = rng.integers(0, TYPES, (ITEMS, SLOTS)).astype(np.int32)
    types[np.arange(SLOTS) >= rng.integers(0, 4, (ITEMS, 1))] = TYPES
    return types


@functools.cache
def sequences():
    """Of every user some items, in an order that is not that of their codes."""
    rng = np.random.default_rng(4)
    lists = [rng.permutation(ITEMS)[: rng.integers(0, 7)] for _ in range(USERS)]
    offsets = np.concatenate([[0], np.cumsum([len(codes) for codes in lists])])
    return Sequences(offsets, np.concatenate(lists).astype(np.int32))


def items_of(user):
    known = sequences()
    return known.items[known.offsets[user] : known.offsets[user + 1]].tolist()


def list_wrapper(**changes):
    """A wrapper with a list head of random weights, and the spec of its batches."""
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
    model = dataclasses.replace(
        ModelConfig(), **sizes | {"over_arch": [20, 6, 1], "dropout": 0.0, "tower_norm": "layer"}
    )
    lists = dataclasses.replace(ListConfig(), **{"dim": 8, "num_candidates": 5, "id_dropout": 0.4} | changes)
    terms = ContrastiveConfig(num_negatives=5)
    spec = batch_spec(model, make_facts(users=USERS, items=ITEMS, dense=DENSE), terms, 5, lists)
    spec = with_rows(spec, categories(), sequences())
    built = build_model(model, spec, lists=lists)
    wrapper = build_wrapper(
        built,
        terms,
        corpus=random_corpus(),
        seed=5,
        lists=lists,
        list_rows=spec.lists,
        item_counts=COUNTS,
        rating_range=(1.0, 5.0),
    )
    with torch.no_grad():
        for part in built.list_head.maps.values():  # they begin at zero
            part.weight.normal_()
        if built.list_head.recent:
            built.list_head.recent_map.weight.normal_()
            built.list_head.recent_weight.normal_()
        built.list_head.set_popularity(COUNTS)
        built.list_head.popularity.fill_(0.6)
    return wrapper, spec


def list_batch(spec, seed=0, step=0, part=slice(None)):
    return spec.complete(random_batch(seed, part=part), step)


def by_hand(wrapper, spec, batch, step):
    """The mean loss of the list over the rows, one row and one candidate after the other."""
    head, term, corpus = wrapper.model.list_head, wrapper.lists, random_corpus()
    weights = {
        config.name: head.tables.embedding_bags[config.name].weight
        for config in head.tables.embedding_bag_configs()
    }
    towers = wrapper.model.dense_arch.towers

    def content(side, vectors):
        parts = [
            head.maps[name](towers[name](vectors[name].unsqueeze(0)).float())[0] for name in head.sides[side]
        ]
        return sum(parts) if parts else torch.zeros(8)

    def item_vector(code):
        vector = weights["t_list_item"][code]
        if head.by_category:
            types = categories()[code]
            vector = vector + weights["t_list_category"][types[types < TYPES].astype(np.int64)].sum(0)
        return vector

    def latest(user, item):
        """What came before the item, weighted by how far back; all of it where she has no such item."""
        known, total = items_of(user), torch.zeros(8)
        before = known[: known.index(item)] if item in known else known
        for weight, (first, last) in zip(head.recent_weight, recent_ranges(wanted_recent), strict=True):
            for code in before[::-1][first:last]:
                total = total + weight * item_vector(code) / (last - first)
        return head.recent_map.weight @ total

    wanted_recent = head.recent[-1][1] if head.recent else 0

    def side(name, code, vectors, item=None):
        added = content(name, vectors)
        if item is not None and head.recent:
            added = added + latest(code, item)
        if name == "item" and head.by_category:
            types = categories()[code]
            added = added + weights["t_list_category"][types[types < TYPES].astype(np.int64)].sum(0)
        kept = not term.id_dropout or bool(
            kept_codes(torch.tensor([code]), term.id_dropout, 2 * wrapper.seed + (name == "user"), step)
        )
        identity = weights[f"t_list_{name}"][code] if kept or not added.any() else torch.zeros(8)
        return F.normalize(identity + added, dim=0)

    if term.candidates == "catalogue":
        codes, log_pi = list(range(ITEMS)), [0.0] * ITEMS
    elif term.candidates == "sampled":
        codes = draw_negatives(5, ITEMS, 2 * wrapper.seed + 5, step).tolist()
        log_pi = [math.log(5 / ITEMS)] * 5
    else:
        codes = list(dict.fromkeys(batch.item.tolist()))
        share = COUNTS / COUNTS.sum()
        log_pi = [math.log(1 - (1 - share[code]) ** len(batch)) for code in codes]
    total = 0.0
    for row in range(len(batch)):
        user, item = int(batch.user[row]), int(batch.item[row])
        vectors = {name: matrix[row] for name, matrix in batch.vectors.items()}
        mine = side("user", user, vectors, item)
        own = side("item", item, vectors)
        popular = head.popularity * torch.log1p(COUNTS.float())
        scores = [(mine * own).sum() / head.temperature + popular[item]]
        for code, log in zip(codes, log_pi, strict=True):
            if code == item or (spec.lists.mask_seen and code in items_of(user)):
                continue
            if term.candidates == "batch":  # as it is in the first row that has it
                first = batch.item.tolist().index(code)
                vectors_of = {name: matrix[first] for name, matrix in batch.vectors.items()}
            else:
                vectors_of = {name: corpus[name][code] for name in corpus if name.startswith("item")}
            near = (mine * side("item", code, vectors_of)).sum() / head.temperature
            scores.append(near + popular[code] - log)
        loss = torch.logsumexp(torch.stack(scores), 0) - scores[0]
        worth = (float(batch.rating[row]) - 2.6) / 2.4 if term.rating_range else float(batch.label[row])
        total = total + loss * min(max(worth, term.low_weight), 1.0)
    return total / len(batch)


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"content": False},
        {"mask_seen": False},
        {"graded": False},
        {"recent": 5},
        {"recent": 1, "content": False},
    ],
    ids=str,
)
def test_the_loss_equals_one_by_hand(candidates, changes):
    wrapper, spec = list_wrapper(candidates=candidates, low_weight=0.25, weight=0.7, **changes)
    batch = list_batch(spec, step=3)
    loss, parts = wrapper(batch, step=3)
    expected = by_hand(wrapper, spec, batch, 3)
    torch.testing.assert_close(parts["loss_list"], expected.detach())
    assert not parts["loss_list"].requires_grad
    parameters = [p for name, p in wrapper.named_parameters() if "list_head" in name]
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(0.7 * expected, parameters, allow_unused=True)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_rest_of_the_loss_stays_as_it_is():
    wrapper, spec = list_wrapper(weight=0.5)
    batch = list_batch(spec)
    loss, parts = wrapper(batch, step=0)
    without, of_without = wrapper.__class__.forward(
        _without_list(wrapper), dataclasses.replace(batch, listed=None), 0
    )
    torch.testing.assert_close(loss - 0.5 * parts["loss_list"], without)
    torch.testing.assert_close(parts["logits"], of_without["logits"])
    assert of_without["loss_list"] == 0 and parts["loss_list"] > 0


def _without_list(wrapper):
    wrapper.lists, wrapper.compared = None, []
    return wrapper


def test_labels_that_are_all_positive_train_the_list_alone():
    wrapper, spec = list_wrapper()
    wrapper.rating, wrapper.weights = False, torch.nn.ModuleDict()
    wrapper.sides = {}
    loss, parts = wrapper(list_batch(spec), step=0)
    torch.testing.assert_close(loss.detach(), parts["loss_list"])
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in wrapper.model.over_arch.parameters())
    assert wrapper.model.list_head.tables.embedding_bags["t_list_user"].weight.grad.any()


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_allowed_candidates_are_neither_own_nor_seen(data):
    codes = data.draw(st.lists(st.integers(-1, 12), max_size=9, unique=True))
    item = data.draw(st.lists(st.integers(-1, 12), min_size=1, max_size=5))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, len(item) - 1), st.integers(0, 12)), max_size=20))
    rows, items = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in (0, 1))
    got = allowed_candidates(torch.tensor(codes, dtype=torch.int64), torch.tensor(item), rows, items)
    expected = [[c >= 0 and c != i and (r, c) not in pairs for c in codes] for r, i in enumerate(item)]
    assert got.tolist() == expected


def test_a_sample_of_all_items_is_the_catalogue():
    losses = []
    for candidates in ("catalogue", "sampled"):
        wrapper, spec = list_wrapper(candidates=candidates, num_candidates=ITEMS)
        losses.append(wrapper(list_batch(spec))[1]["loss_list"])
    torch.testing.assert_close(*losses)


def test_log_q_makes_a_sample_estimate_the_sum_over_the_catalogue():
    """The mean over many samples of sum exp(s - log pi) is the sum over all items."""
    rng = torch.Generator().manual_seed(0)
    user, items = (F.normalize(torch.randn(n, 4, generator=rng), dim=1) for n in (1, 200))
    whole = torch.exp(user @ items.T / 0.5).sum()
    sums = []
    for step in range(400):
        codes = draw_negatives(40, 200, 1, step)
        # The own item, of a cosine of -1e9, adds nothing.
        loss = softmax_sum(
            user,
            user * -1e3,
            items[codes],
            torch.ones(1, 40, dtype=torch.bool),
            torch.full((40,), math.log(40 / 200)),
            torch.ones(1),
            0.5,
        )
        sums.append(torch.exp(loss.double() - 1e3 / 0.5))
    assert float(torch.stack(sums).mean() / whole) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("recent", [0, 4])
def test_padding_counts_nothing(recent):
    wrapper, spec = list_wrapper(id_dropout=0.0, recent=recent)
    batch = list_batch(spec)
    real, _ = wrapper(batch, step=0)
    plain = random_batch()
    padded = {
        "label": torch.cat([plain.label, torch.tensor([-1.0])]),
        "user": torch.cat([plain.user, torch.tensor([-1])]),
        "item": torch.cat([plain.item, torch.tensor([-1])]),
    }
    listed = spec.lists.of_batch(padded["user"], padded["item"], 0)
    sides = wrapper.model.list_head(
        listed,
        padded["item"],
        {m: torch.cat([v, torch.zeros(1, 8)]) for m, v in wrapper.model.reduce(plain.vectors).items()},
        {m: wrapper.model.dense_arch.towers[m](random_corpus()[m]) for m in wrapper.compared},
    )
    rating, head = torch.cat([plain.rating, torch.zeros(1)]), wrapper.model.list_head
    total = wrapper.lists(sides, listed, padded["item"], padded["label"], head.temperature, rating)
    torch.testing.assert_close(total / len(plain), wrapper(batch, step=0)[1]["loss_list"])


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("recent", [0, 4])
def test_rows_of_a_batch_look_up_what_they_did_in_it(candidates, recent):
    wrapper, spec = list_wrapper(candidates=candidates, recent=recent)
    whole = list_batch(spec)
    first, second = split_rows(whole, 2)
    for part, rows in ((first, slice(0, 12)), (second, slice(12, 24))):
        direct = spec.lists.of_batch(whole.user[rows], whole.item[rows], 0)
        assert part.listed.ids.to_dict().keys() == direct.ids.to_dict().keys()
        for key in direct.ids.keys():
            for name in ("values", "lengths"):
                got, wanted = (getattr(x.ids[key], name)() for x in (part.listed, direct))
                assert got.tolist() == wanted.tolist()
        for name in ("candidates", "seen_row", "seen_item"):
            assert getattr(part.listed, name).tolist() == getattr(direct, name).tolist()


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_the_traced_wrapper_equals_the_plain_one(candidates):
    plain, spec = list_wrapper(candidates=candidates, recent=3)
    traced = torch.fx.symbolic_trace(list_wrapper(candidates=candidates, recent=3)[0])
    for seed in range(2):
        batch = list_batch(spec, seed)
        torch.testing.assert_close(traced(batch), plain(batch))
