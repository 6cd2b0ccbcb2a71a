"""Selection rules, schedules, the row-wise Adam, and TorchRec's pipeline against plain steps."""

from __future__ import annotations

import logging
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch import Batch
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.sharding.fill import fill_content
from dlrrec_torchrec.sharding.table_optimizers import RowAdam
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.optimizers import Schedule, make_optimizer
from dlrrec_torchrec.training.selection import PAPER_PATIENCE, PAPER_STOP_AFTER, Selection, selection_for
from dlrrec_torchrec.training.steps import PlainPipeline, TrainPipelineSparseDist
from tests.helpers.shards import build, plain_spec, write_shards


def follow(selection: Selection, series: list[dict]) -> tuple[int, int]:
    """(best epoch, last epoch) of a training whose epochs have these metrics."""
    for epoch, metrics in enumerate(series, 1):
        selection.update(epoch, metrics)
        if selection.stop:
            break
    return selection.best_epoch, selection.epoch


def aucs(*values: float) -> list[dict]:
    return [{"auc": v, "loss": -v, "accuracy": v} for v in values]


@pytest.mark.parametrize("rule", ["auc", "loss", "accuracy"])
def test_strict_waits_for_patience_epochs_without_a_better_one(rule):
    series = aucs(0.5, 0.7, 0.6, 0.7, 0.69, 0.9)
    assert follow(selection_for("strict", rule, 3), series) == (2, 5)  # a tie is not better
    assert follow(selection_for("strict", rule, 4), series) == (6, 6)
    assert follow(selection_for("strict", rule, 0), series) == (6, 6)


def test_strict_never_prefers_what_is_not_a_number():
    assert follow(selection_for("strict", "auc", 0), aucs(math.nan, 0.4, math.nan)) == (2, 3)
    assert follow(selection_for("strict", "auc", 2), aucs(math.nan, math.nan, math.nan)) == (1, 3)


def test_paper_takes_the_lowest_false_positive_rate_and_of_equal_ones_the_higher_auc():
    series = [{"fpr": f, "auc": a} for f, a in ((0.5, 0.9), (0.2, 0.6), (0.2, 0.7), (0.2, 0.7), (0.3, 0.99))]
    selection = selection_for("paper", "loss", 1)
    assert follow(selection, series) == (3, 5) and selection.split == "test"


@pytest.mark.parametrize(("best", "last"), [(1, 350), (299, 350), (300, 350), (301, 351), (320, 370)])
def test_paper_stops_fifty_epochs_after_the_best_but_counts_from_epoch_300(best, last):
    series = [{"fpr": 0.1 if epoch == best else 0.2, "auc": 0.5} for epoch in range(1, 1000)]
    assert follow(selection_for("paper", "auc", 5), series) == (best, last)
    assert (PAPER_STOP_AFTER, PAPER_PATIENCE) == (300, 50)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 11))
def test_a_restored_selection_decides_alike(values, cut):
    whole, first = Selection("auc", 3), Selection("auc", 3)
    for epoch, metrics in enumerate(aucs(*values), 1):
        if epoch == cut:
            second = Selection("auc", 3)
            second.restore(first.state())
            first = second
        assert whole.update(epoch, metrics) == first.update(epoch, metrics)
        assert whole == first and whole.stop == first.stop


def test_schedules():
    def factor(step, total, kind, warmup):
        return Schedule(0.1, 0.2, kind, warmup, total).factor(step)

    assert [factor(s, 10, "constant", 4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [factor(s, 6, "linear", 2) for s in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert factor(2, 6, "cosine", 2) == 1 and factor(4, 6, "cosine", 2) == pytest.approx(0.5)
    assert factor(3, 6, "cosine", 2) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    rates = Schedule(0.1, 0.2, "linear", 0, 4, 0.4, 0.8).rates(2)
    assert rates == {"lr": 0.05, "table_lr": 0.1, "list_lr": 0.2, "residual_lr": 0.4}


@settings(max_examples=20)
@given(
    st.lists(st.sets(st.integers(0, 5), max_size=6), min_size=1, max_size=8),
    st.integers(0, 100),
)
def test_row_adam_equals_sparse_adam_on_the_rows_with_a_gradient(touched, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine, oracle = RowAdam([ours], lr=0.1, eps=1e-14), torch.optim.SparseAdam([theirs], lr=0.1, eps=1e-14)
    for rows in touched:
        index = torch.tensor(sorted(rows), dtype=torch.int64)
        values = torch.randn(len(rows), 3, generator=generator, dtype=torch.float64)
        ours.grad = torch.zeros(6, 3, dtype=torch.float64).index_add(0, index, values)
        theirs.grad = torch.sparse_coo_tensor(index.unsqueeze(0), values, (6, 3))
        mine.step()
        oracle.step()
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("vectors", ["row", "table"])
def test_torchrec_pipeline_takes_the_same_steps_as_plain_ones(tmp_path, vectors, caplog):
    sizes = {"item_image": 64}  # tables of two widths
    shards = write_shards(tmp_path / "shards", rows=(120, 10, 10), users=20, items=10, dims=sizes)
    corpus = {m: torch.from_numpy(v) for m, v in load_entities(shards).vectors.items()}
    config, terms = ModelConfig(dropout=0.0, vectors=vectors), ContrastiveConfig(num_negatives=8)
    spec = batch_spec(config, ShardFacts.read(shards), terms)
    rows = make_loader(shards, "train", 30, spec, shuffle=True)
    losses = {}
    for kind in (PlainPipeline, TrainPipelineSparseDist):
        with process_group("cpu") as ranks:
            torch.manual_seed(0)
            model = build_model(config, spec, device="meta")
            wrapper = build_wrapper(model, terms, corpus=corpus)
            sharded = shard_tables(wrapper, ranks, batch_size=30, table_optimizer="rowwise_adagrad")
            fill_content(sharded, shards, ranks)
            pipeline = kind(sharded, make_optimizer(sharded, 0.01), ranks.device)
            losses[kind] = []
            for epoch in (1, 2):
                rows.set_epoch(epoch)
                batches = iter(rows)
                for _ in range(len(rows)):
                    with caplog.at_level(logging.INFO, "torchrec"):
                        losses[kind].append(float(pipeline.progress(batches)["loss_uu"]))
                pipeline.detach()
                with torch.no_grad():  # the detached model predicts outside of the pipeline
                    sharded.eval()(next(iter(rows)))
                sharded.train()
    plain, overlapped = losses.values()
    assert len(plain) == 8 and plain == pytest.approx(overlapped, abs=1e-6)
    messages = [r.getMessage() for r in caplog.records]
    assert not any("NOT be pipelined" in m for m in messages)
    tables = {"embedding_bag_collection"} | (
        {"tables.dim_384", "tables.dim_64"} if vectors == "table" else set()
    )
    for name in tables:
        assert any("will be pipelined" in m and name in m for m in messages), messages


def test_sharded_tables_have_the_gradients_of_plain_ones(tmp_path):
    shards = write_shards(tmp_path / "shards", rows=(50, 10, 10), users=20, items=10)
    vectors = {m: torch.from_numpy(v) for m, v in load_entities(shards).vectors.items()}
    (batch,) = make_loader(shards, "train", 50, plain_spec(shards, sparse=("category", "user")))
    gradients = []
    with process_group("cpu") as ranks:
        wrappers = [
            build_wrapper(
                build(
                    ModelConfig(dropout=0.0, user_id=True, wide=False),
                    dense=7,
                    users=20,
                    items=10,
                    device=device,
                ),
                ContrastiveConfig(num_negatives=8),
                corpus=vectors,
            )
            for device in ("meta", "cpu")
        ]
        sharded = shard_tables(wrappers[0], ranks, batch_size=50)  # FBGEMM's tables
        wrappers[1].load_state_dict(sharded.state_dict())  # torch.nn.EmbeddingBag
        for model in (sharded, wrappers[1]):
            model(batch)[0].backward()
            of_tables = {name: p.grad for name, p in model.named_parameters() if "t_" in name}
            gradients.append({name.split(".")[-2]: value for name, value in of_tables.items()})
    assert set(gradients[0]) == {"t_category", "t_user"} and gradients[0]["t_user"].any()
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("negatives", ["corpus", "batch"])
def test_padding_changes_neither_loss_nor_gradient_nor_statistics(tmp_path, negatives):
    shards = write_shards(tmp_path / "shards", rows=(41, 10, 10), users=20, items=10)
    vectors = {m: torch.from_numpy(v) for m, v in load_entities(shards).vectors.items()}
    spec = plain_spec(shards, sparse=("category", "user", "item"))
    padded = next(
        batch
        for rank in range(2)  # one of two ranks gets 20 rows and one of padding
        for batch in make_loader(shards, "train", 21, spec, rank=rank, world_size=2)
        if (batch.label < 0).any()
    )
    assert len(padded) == 21 and (padded.label >= 0).sum() == 20
    results = []
    for batch in (padded, select(padded, padded.label >= 0)):
        torch.manual_seed(0)
        shape = ModelConfig(dropout=0.0, user_id=True, item_id=True, wide=False)
        model = build(shape, users=20, items=10)
        config = ContrastiveConfig(num_negatives=8, negatives=negatives)
        wrapper = build_wrapper(model, config, corpus=vectors, class_weights=(0.3, 0.7))
        loss, parts = wrapper(batch)
        loss.backward()
        state = {name: p.grad for name, p in wrapper.named_parameters()} | dict(wrapper.named_buffers())
        results.append((loss, parts["loss_rec"], parts["loss_ii"], parts["loss_uu"], state))
    assert parts["loss_ii"] > 0 and parts["loss_uu"] > 0
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def select(batch: Batch, rows: torch.Tensor) -> Batch:
    """The given rows of a batch whose other rows hold no ids."""
    lengths = batch.sparse.lengths().reshape(3, -1)[:, rows].reshape(-1)
    return Batch(
        sparse=KeyedJaggedTensor(batch.sparse.keys(), batch.sparse.values(), lengths=lengths),
        vectors={name: v[rows] for name, v in batch.vectors.items()},
        **{
            name: getattr(batch, name)[rows]
            for name in ("dense", "label", "user", "item", "user_positives", "item_positives")
        },
    )


def test_only_known_warnings_are_left_out(caplog):
    utils = logging.getLogger("torchrec.distributed.utils")
    with pytest.warns(FutureWarning) as caught, quiet():
        warnings.warn("`broadcast_buffers` is deprecated. Use another.", FutureWarning, stacklevel=1)
        warnings.warn("another", FutureWarning, stacklevel=1)
        utils.warning("Sharding Type is data_parallel, caching params will be ignored")
        utils.warning("something else")
    assert [str(w.message) for w in caught] == ["another"]
    assert [r.getMessage() for r in caplog.records] == ["something else"]
    utils.warning("caching params will be ignored")
    assert len(caplog.records) == 2
