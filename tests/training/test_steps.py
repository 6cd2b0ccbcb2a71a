"""Training steps, really pipelined, in bf16, clipped, accumulated, compiled: each against plain ones."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse, split_rows
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models import compiled
from dlrrec_torchrec.models.build import build_wrapper
from dlrrec_torchrec.models.compiled import compile_dense
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.optimizers import dense_parameters, make_optimizer
from dlrrec_torchrec.training.steps import OverlappedPipeline, PlainPipeline
from tests.helpers.shards import DIM, MODALITIES, TYPES, build

USERS, ITEMS, ROWS = 20, 10, 30
KEYS = ("category", "user")


def random_batch(seed: int, rows: int = ROWS) -> Batch:
    """Every row has a positive on both sides, so that all rows are valid anchors."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(high, shape, generator=draw)

    category = integers(TYPES + 1, rows, 11)
    user, item = integers(USERS, rows), integers(ITEMS, rows)
    return Batch(
        dense=torch.randn(rows, 7, generator=draw),
        sparse=make_sparse(category, user, item, KEYS, TYPES),
        vectors={m: torch.randn(rows, DIM, generator=draw).half() for m in MODALITIES},
        label=integers(2, rows).float(),
        user=user,
        item=item,
        user_positives=integers(USERS, rows, 2),
        item_positives=integers(ITEMS, rows, 2),
    )


def corpus() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(99)
    sizes = {"user_text": USERS, "item_text": ITEMS, "item_image": ITEMS}
    return {m: torch.randn(n, DIM, generator=draw) for m, n in sizes.items()}


def pipeline(kind=PlainPipeline, model=None, contrastive=None, tables="rowwise_adagrad", **options):
    """A pipeline around the same weights each time; layer norm makes rows independent."""
    torch.manual_seed(0)
    shape = ModelConfig(dropout=0.0, tower_norm="layer", user_id=True, wide=False)
    shape = dataclasses.replace(shape, **model or {})
    plain = build(shape, users=USERS, items=ITEMS, device="meta")
    contrastive = contrastive or ContrastiveConfig(num_negatives=8)
    wrapper = build_wrapper(plain, contrastive, corpus=corpus(), class_weights=(2.0, 0.5))
    with process_group("cpu") as ranks:
        sharded = shard_tables(
            wrapper,
            ranks,
            batch_size=ROWS,
            table_optimizer=tables,
            static_graph=options.get("accumulate", 1) == 1,
        )
    return kind(sharded, make_optimizer(sharded, 0.01, 0.0, tables), torch.device("cpu"), **options)


@pytest.fixture(autouse=True)
def one_process():
    with process_group("cpu") as ranks:
        yield ranks


def gradients(steps: PlainPipeline) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in steps.model.named_parameters() if p.grad is not None}


def take(steps, batches: list[Batch]) -> tuple[list[dict], list[dict]]:
    """(outputs, gradients before clipping) of a step on each batch."""
    at_update: list[dict] = []
    steps.before_update = lambda: at_update.append(gradients(steps))
    source = iter(batches)
    return [steps.progress(source) for _ in batches], at_update


# --- pipelined ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 3},
        {"precision": "bf16", "clip_norm": 0.1},
        {"contrastive": ContrastiveConfig(num_negatives=8, negatives="semi_hard", num_hard=3)},
    ],
    ids=str,
)
def test_torchrecs_pipeline_takes_the_steps_of_the_plain_one(options, caplog):
    caplog.set_level(logging.INFO, "torchrec")
    results = []
    for kind in (PlainPipeline, OverlappedPipeline):
        steps, losses = pipeline(kind, **options), []
        for epoch in range(2):
            outputs, _ = take(steps, [random_batch(10 * epoch + n) for n in range(4)])
            losses += [[float(o[f"loss_{n}"]) for n in ("rec", "ii", "uu")] for o in outputs]
            with pytest.raises(StopIteration):
                steps.progress(iter([]))
            with torch.no_grad():  # between epochs the model is used as it is
                steps.detach().eval()(random_batch(5))
            steps.model.train()
        results.append((losses, outputs[-1]["logits"], int(steps.model.module.step)))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)
    assert len(losses) == results[1][2] == 8 and losses[-1] != losses[0]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("will be pipelined" in text for text in messages) > 0
    assert not [text for text in messages if "NOT be pipelined" in text]


# --- precision ---------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Notes the data types of matrix products."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket.__name__ in ("mm", "addmm", "bmm", "linear"):
            shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
            self.products.append((args[0].dtype, shapes))
        return function(*args, **(kwargs or {}))


def test_bf16_multiplies_in_bf16_and_keeps_weights_losses_and_contrastive_logits_in_fp32():
    results, batches = {}, [random_batch(n) for n in range(3)]
    for precision in ("fp32", "bf16"):
        steps = pipeline(precision=precision)
        with Products() as products:
            outputs, at_update = take(steps, batches)
        results[precision] = outputs, at_update
        assert all(p.dtype == torch.float32 for p in steps.model.parameters())
        assert all(value.dtype in (torch.float32, torch.int64) for value in outputs[0].values())
        kinds = {dtype for dtype, shapes in products.products if DIM in shapes[1]}
        assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
        contrast = [dtype for dtype, shapes in products.products if shapes[-1] in ((64, 8), (32, 8))]
        assert contrast and set(contrast) == {torch.float32}
    (exact, exact_grads), (rough, rough_grads) = results.values()
    for a, b in zip(exact, rough, strict=True):
        assert not torch.equal(a["logits"], b["logits"])
        for name in ("loss_rec", "loss_ii", "loss_uu"):
            torch.testing.assert_close(a[name], b[name], rtol=0.02, atol=0.02)
    for name, gradient in exact_grads[0].items():
        error = (gradient - rough_grads[0][name]).norm() / gradient.norm().clamp(min=1e-3)
        assert error < 0.1, name


# --- clipping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_clipping_is_torchs_on_the_dense_part(tables):
    steps = pipeline(clip_norm=0.05, tables=tables)
    assert isinstance(steps.optimizer, CombinedOptimizer)
    dense = dense_parameters(steps.optimizer)
    names = {n for n, p in steps.model.named_parameters() if any(p is q for q in dense)}
    assert names == {n for n, _ in steps.model.named_parameters() if ".embedding_bags." not in n}
    _, (before,) = take(steps, [random_batch(1)])
    after = gradients(steps)
    oracle = [nn.Parameter(before[n].clone()) for n in sorted(names)]
    for parameter, name in zip(oracle, sorted(names), strict=True):
        parameter.grad = before[name].clone()
    assert nn.utils.clip_grad_norm_(oracle, 0.05) > 0.05
    for parameter, name in zip(oracle, sorted(names), strict=True):
        torch.testing.assert_close(after[name], parameter.grad)
    untouched = before.keys() - names
    assert bool(untouched) == (tables == "adam")  # tables with an ordinary gradient
    assert all(torch.equal(after[n], before[n]) for n in untouched)


# --- accumulation ------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=25)
def test_split_rows_cuts_without_loss(rows, parts, seed):
    batch = random_batch(seed, rows)
    cut = split_rows(batch, min(parts, rows))
    assert {len(part) for part in cut} <= {rows // len(cut), -(-rows // len(cut))}
    for name in ("dense", "label", "user", "item_positives"):
        assert torch.equal(torch.cat([getattr(part, name) for part in cut]), getattr(batch, name))
    for name, vectors in batch.vectors.items():
        assert torch.equal(torch.cat([part.vectors[name] for part in cut]), vectors)
    for key in KEYS:
        whole = [row.tolist() for row in batch.sparse[key].to_dense()]
        assert [row.tolist() for part in cut for row in part.sparse[key].to_dense()] == whole


@pytest.mark.parametrize("tables", ["adam", "sgd"])
@pytest.mark.parametrize("parts", [2, 7])
def test_micro_batches_have_the_gradient_of_the_whole(tables, parts):
    """Class weights, contrastive terms, corpus negatives, padding: all as without accumulation."""
    batch = random_batch(3)
    batch.label[-1] = -1
    batch.user[-1] = batch.item[-1] = -1
    batch.user_positives[-1] = batch.item_positives[-1] = -1
    contrastive = ContrastiveConfig(num_negatives=8, learnable=True)
    if parts > 2:  # the last micro-batch has fewer valid anchors than rows: see the next test
        contrastive = ContrastiveConfig(item_weight=0, user_weight=0)
    by_parts = {}
    for accumulate in (1, parts):
        steps = pipeline(accumulate=accumulate, contrastive=contrastive, tables=tables)
        by_parts[accumulate] = *take(steps, [batch]), dict(steps.model.named_buffers())
    (whole,), (expected,), buffers = by_parts[1]
    (joined,), (gradient,), others = by_parts[parts]
    torch.testing.assert_close(joined, whole)
    assert gradient.keys() == expected.keys()
    replicated = [name for name in expected if ".embedding_bags." in name]
    assert bool(replicated) == (tables == "adam") and len(expected) > 20
    for name in expected:
        if tables == "adam" or "embedding" not in name:  # fused tables have moved on between micro-batches
            torch.testing.assert_close(gradient[name], expected[name], rtol=2e-3, atol=2e-5, msg=name)
    step = next(name for name in buffers if name.endswith("step"))
    assert int(buffers[step]) == int(others[step]) == 1


def test_a_steps_loss_is_the_mean_of_its_micro_batches_weighted_by_rows():
    batch = random_batch(3)
    batch.label[25:] = -1  # padding weighs nothing
    batch.item_positives[:8] = -1  # no anchors of items
    steps = pipeline(accumulate=3, tables="adam")
    (output,), (accumulated,) = take(steps, [batch])
    oracle = pipeline(tables="adam")
    model, total, parts = oracle.model, 0.0, {"loss_rec": 0.0, "loss_ii": 0.0, "loss_uu": 0.0}
    for low, weight in ((0, 10 / 25), (10, 10 / 25), (20, 5 / 25)):
        rows = slice(low, low + 10)
        micro = split_rows(batch, 3)[low // 10]
        assert torch.equal(micro.dense, batch.dense[rows])
        loss, micro_parts = model(micro, 0)
        total = total + weight * loss
        parts = {name: value + weight * micro_parts[name] for name, value in parts.items()}
    total.backward()
    for name, value in parts.items():
        torch.testing.assert_close(output[name], value)
    expected = gradients(oracle)
    for name, gradient in accumulated.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


# --- compiled ----------------------------------------------------------------------------------------------


SMALL = {"modalities": ["item_image"], "image_tower": [8, 32], "dense_arch": [32], "over_arch": [4, 1]}


def needs_compiler():
    try:
        compiled.get_cpp_compiler()
    except Exception:
        pytest.skip("no C++ compiler")


def test_compiled_steps_are_the_plain_ones():
    """Without code generation, which takes long, but traced by TorchRec's pipeline, too."""
    needs_compiler()
    off = ContrastiveConfig(item_weight=0.1, user_weight=0.0, num_negatives=8)
    batches, results = [random_batch(n) for n in range(2)], []
    torch._dynamo.utils.counters.clear()
    for kind in (PlainPipeline, OverlappedPipeline):
        steps = pipeline(kind, model=SMALL, contrastive=off, tables="adam")
        if kind is OverlappedPipeline:
            compile_dense(steps.model.module.model, torch.device("cpu"), backend="aot_eager")
        results.append((*take(steps, batches), list(steps.model.state_dict())))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    assert results[0][2] == results[1][2]  # a checkpoint does not know of it
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


def test_compiled_layers_compute_the_same():
    needs_compiler()
    steps = pipeline(model=SMALL | {"interaction": "dcn"}, contrastive=ContrastiveConfig(user_weight=0))
    top, rows = steps.model.module.model.over_arch, torch.randn(30, 128)
    with torch.no_grad():
        plain = top(rows)
        compile_dense(steps.model.module.model, torch.device("cpu"))
        torch.testing.assert_close(top(rows), plain, rtol=1e-4, atol=1e-5)
    assert top._compiled_call_impl is not None


def test_without_a_compiler_the_flag_is_named(monkeypatch):
    def none():
        raise RuntimeError("no g++")

    monkeypatch.setattr(compiled, "get_cpp_compiler", none)
    model = build(ModelConfig(), users=USERS, items=ITEMS)
    with pytest.raises(DataError, match=r"--compile: needs a C\+\+ compiler"):
        compile_dense(model, torch.device("cpu"))
    assert all(m._compiled_call_impl is None for m in model.modules())


# --- exchanges ---------------------------------------------------------------------------------------------


def test_what_gloo_cannot_send_is_named(one_process):
    model = build(ModelConfig(), users=USERS, items=ITEMS, device="meta")
    with pytest.raises(DataError, match="train.comms: gloo, which CPUs use, sends no bf16; use fp16"):
        shard_tables(model, one_process, batch_size=ROWS, comms="bf16")


def test_batches_of_equal_rows_are_not_copied():
    batch = random_batch(0)
    parts = split_rows(batch, 3)
    assert parts[1].dense.data_ptr() == batch.dense[10:].data_ptr()
    assert split_rows(batch, 1) == [batch] and all(len(a) == len(b) for a, b in itertools.pairwise(parts))
