"""Hashed and managed ids against plain Python and plain tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TableConfig, TrainConfig
from dlrrec_torchrec.data.batch import Batch, make_sparse
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.hashing import hash63, hash_rows
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.evaluation.stage import evaluate
from dlrrec_torchrec.models.build import build_wrapper
from dlrrec_torchrec.models.managed import loading_managed
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.serving.recommend import recommend
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.sharding.apply import plan_tables, shard_tables
from dlrrec_torchrec.store.checkpoint_files import BEST
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.checkpoint import Checkpoints
from dlrrec_torchrec.training.optimizers import make_optimizer
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import TYPES, build, make_facts, write_shards
from tests.models.test_wrapper import DENSE, ITEMS, USERS, random_batch

SMALL = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
SMALL |= {"over_arch": [20, 6, 1], "dropout": 0.0, "user_id": True, "wide": False}
OFF = ContrastiveConfig(item_weight=0.0, user_weight=0.0)
MASK = (1 << 64) - 1


def plain_hash(x: int) -> int:
    """SplitMix64 in Python's integers, the low 63 bits."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) & (MASK >> 1)


@given(st.lists(st.integers(0, (1 << 63) - 1), min_size=1), st.integers(1, 1 << 40))
def test_hash_equals_plain_python(ids, rows):
    assert hash63(torch.tensor(ids)).tolist() == [plain_hash(x) for x in ids]
    assert hash_rows(torch.tensor(ids), rows).tolist() == [plain_hash(x) % rows for x in ids]


def test_hash_spreads_ids_in_sequence():
    counts = hash_rows(torch.arange(20_000), 100).bincount(minlength=100)
    assert 130 < counts.min() and counts.max() < 270  # mean 200, standard deviation 14


def batch_of(users: list[int], seed: int = 0) -> Batch:
    batch = random_batch(seed, rows=len(users))
    user = torch.tensor(users)
    sparse = make_sparse(torch.full((len(users), 11), 3), user, batch.item, ["category", "user"], TYPES)
    return dataclasses.replace(batch, user=user, sparse=sparse)


def test_a_hashed_table_is_a_plain_one_under_the_hash():
    """With fewer rows than users, those that collide share a row and its gradients."""
    config = ModelConfig(**SMALL, tables={"user": TableConfig(rows=5, ids="hash")})
    hashed = build(config, dense=DENSE, users=USERS, items=ITEMS)
    batch = batch_of([0, 7, -1, 11, 3, 7, 4])
    hashed_batch = spec_of(config).complete(batch)
    user = hashed_batch.sparse["user"]
    assert user.values().tolist() == [plain_hash(u) % 5 for u in (0, 7, 11, 3, 7, 4)]
    assert user.lengths().tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert hashed_batch.sparse["category"].values().tolist() == [3] * 77
    hashed.eval().score(hashed_batch).sum().backward()
    table = hashed.sparse_arch.embedding_bag_collection.embedding_bags["t_user"].weight
    assert table.shape == (5, 8)
    touched = {plain_hash(u) % 5 for u in (0, 7, 11, 3, 4)}
    assert {*table.grad.any(1).nonzero().flatten().tolist()} == touched


def spec_of(config: ModelConfig) -> BatchSpec:
    return batch_spec(config, make_facts(users=USERS, items=ITEMS))


def managed_model(rows: int, device: str = "meta", **options) -> tuple[ModelConfig, torch.nn.Module]:
    config = ModelConfig(**SMALL, tables={"user": TableConfig(rows=rows, ids="managed", **options)})
    torch.manual_seed(0)
    model = build(config, dense=DENSE, users=USERS, items=ITEMS, device=device)
    return config, build_wrapper(model, OFF, corpus={})


def sharded(ranks, rows: int, optimizer: str = "sgd", **options):
    config, wrapper = managed_model(rows, **options)
    settings = {"batch_size": 10, "table_optimizer": optimizer}
    plan = plan_tables(wrapper, ranks, settings=config.tables, **settings)
    model = shard_tables(wrapper, ranks, plan=plan, table_lr=0.1, **settings)
    return model, make_optimizer(model, 0.01, table_optimizer=optimizer), spec_of(config).complete


@pytest.fixture(autouse=True)
def without_known_warnings():
    with quiet():
        yield


BATCHES = [[0, 7, 7, -1, 11, 3], [2, 7, 0, 5, 5, 1], [11, 3, 8, 9, 10, 4], [6, 6, 6, 7, 2, 0]]


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_with_enough_rows_a_managed_table_equals_a_plain_one(optimizer):
    """Every id has its row from its first step on: a plain table, under a permutation of rows."""
    with process_group("cpu") as ranks:
        managed, optimizers, lookups = sharded(ranks, USERS + 1, optimizer)
        config = ModelConfig(**SMALL)
        torch.manual_seed(0)
        plain = build(config, dense=DENSE, users=USERS, items=ITEMS, device="meta")
        settings = {"batch_size": 10, "table_optimizer": optimizer}
        other = shard_tables(build_wrapper(plain, OFF, corpus={}), ranks, table_lr=0.1, **settings)
        plain_optimizer = make_optimizer(other, 0.01, table_optimizer=optimizer)
        weights = {n: p for n, p in managed.module.named_parameters() if "embedding_bags" not in n}
        for name, parameter in other.module.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])
        (table,) = (v for k, v in other.state_dict().items() if k.endswith("t_user.weight"))
        table.local_shards()[0].tensor.zero_()
        for step, users in enumerate(BATCHES * 2):
            batch = batch_of(users, step)
            losses = []
            for model, optimizer_, inputs in (
                (managed, optimizers, lookups(batch)),
                (other, plain_optimizer, batch),
            ):
                optimizer_.zero_grad()
                loss, _ = model(inputs)
                loss.backward()
                optimizer_.step()
                losses.append(float(loss))
            assert losses[0] == pytest.approx(losses[1], abs=1e-6)
        assert table.local_shards()[0].tensor.any()  # it has learnt something
        with torch.no_grad():
            scores = [
                model.eval().module.model.score(inputs)
                for model, inputs in ((managed, lookups(batch)), (other, batch))
            ]
        torch.testing.assert_close(*scores)


def rows_of(model, users: list[int], lookups) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().module.model.managed(lookups(batch_of(users)).managed)[:, 0]


@pytest.mark.parametrize("policy", ["lfu", "lru", "distance_lfu"])
def test_frequent_ids_keep_their_rows(policy):
    """Three users come in every step, and others once: with 5 rows for 40 ids."""
    with process_group("cpu") as ranks:
        model, optimizers, lookups = sharded(ranks, 5, evict=policy)
        often = [100, 101, 102]
        before = None
        for step in range(37):
            model.train()
            model(lookups(batch_of([*often, *often, step], step)))[0].backward()
            optimizers.step()
            mapped = managed_rows(model)
            places = [mapped.get(plain_hash(user)) for user in often]
            assert None not in places and len({*places}) == 3
            assert before is None or places == before
            before = places
        assert len(mapped) <= 4 and 4 not in mapped.values()  # the last row is for those that have none
        forgotten = next(user for user in range(37) if plain_hash(user) not in mapped)
        rows = rows_of(model, [*often, forgotten, 777], lookups)
        assert rows[:3].any(1).all()
        torch.testing.assert_close(rows[3], rows[4])  # that of ids without one


@pytest.mark.parametrize("policy", ["lfu", "lru", "distance_lfu"])
def test_all_new_ids_of_a_batch_get_rows_whatever_came_before(policy):
    with process_group("cpu") as ranks:
        model, optimizers, lookups = sharded(ranks, 30, evict=policy, admit=2)
        ids_seen = set()
        for step, users in enumerate([[-1, -1], [-1, 1], [2, 3], [*range(4, 16)], [16], [*range(17, 25)]]):
            model(lookups(batch_of(users, step)))[0].backward()
            optimizers.step()
            ids_seen |= {plain_hash(user) for user in users if user >= 0}
            if step % 2:
                assert {*managed_rows(model)} == ids_seen


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_a_row_starts_anew_with_its_id(optimizer):
    """Its weights and its optimizer's state are zeros when it is given to another id."""
    with process_group("cpu") as ranks:
        model, optimizers, lookups = sharded(ranks, 4, optimizer, evict="lru")
        for step, users in enumerate([[1, 2, 3]] * 3):
            model(lookups(batch_of(users, step)))[0].backward()
            optimizers.step()
        assert rows_of(model, [1, 2, 3], lookups).any(1).all()
        state_tensors = list(state_of(model))
        assert all(tensor.any() for tensor in state_tensors) and len(state_tensors) == (optimizer != "sgd")
        model.train()(lookups(batch_of([5, 6, 7])))  # no step is taken
        assert {*managed_rows(model)} == {plain_hash(user) for user in (5, 6, 7)}
        assert not rows_of(model, [5, 6, 7], lookups).any()
        assert not any(tensor.any() for tensor in state_of(model))


def state_of(model) -> Iterator[torch.Tensor]:
    for name, value in model.fused_optimizer.state_dict()["state"].items():
        if "t_user" in name:
            for moment in value.values():
                yield moment.local_shards()[0].tensor


def managed_rows(model) -> dict[int, int]:
    """Hash of an id -> its row."""
    state = {k.split(".")[-1]: v for k, v in model.state_dict().items() if "_mch_" in k}
    ids, rows = (
        state[f"_mch_{n}"].local_shards()[0].tensor.tolist()
        for n in ("sorted_raw_ids", "remapped_ids_mapping")
    )
    return {i: r for i, r in zip(ids, rows, strict=True) if i != MASK >> 1}


def test_what_ids_have_rows_survives_a_checkpoint_and_serves_unsharded(tmp_path):
    with process_group("cpu") as ranks:
        first, optimizers, lookups = sharded(ranks, 6)
        for step, users in enumerate(BATCHES):
            first(lookups(batch_of(users, step)))[0].backward()
            optimizers.step()
        Checkpoints(tmp_path, ranks).save(first, optimizers, {"step": 4, "epoch": 0}, {}, best=True)
        second, others, _ = sharded(ranks, 6)
        Checkpoints(tmp_path, ranks).load(second, others)
        losses = []
        for model, optimizer in ((first, optimizers), (second, others)):
            losses.append([])
            for step, users in enumerate(BATCHES, 4):  # goes on as the same training, and evicts alike
                optimizer.zero_grad()
                loss, _ = model.train()(lookups(batch_of(users, step)))
                loss.backward()
                optimizer.step()
                losses[-1].append(float(loss))
            losses[-1].append(managed_rows(model))
        assert losses[0] == losses[1]
        third, optimizers, _ = sharded(ranks, 6)
        Checkpoints(tmp_path, ranks).load(third, optimizers)
        expected = rows_of(third, [*range(USERS), 50], lookups)
    _, unsharded = managed_model(6, "cpu")
    load_model(tmp_path / BEST, unsharded.model, prefix="model.")
    with torch.no_grad():
        rows = unsharded.eval().model.managed(lookups(batch_of([*range(USERS), 50])).managed)[:, 0]
    torch.testing.assert_close(rows, expected)
    assert len(expected.unique(dim=0)) >= 4


def test_parts_that_do_not_fit_are_refused():
    """As when a checkpoint of one rank is loaded on two: TorchRec cannot tell which rows go where."""
    _, unsharded = managed_model(6, "cpu")
    state = unsharded.state_dict()
    (name,) = (name for name in state if name.endswith("t_user._output_segments_tensor"))
    state[name] = torch.tensor([0, 4, 6] + [-1] * 1022)
    with loading_managed(unsharded):  # 0 to 6 is made of 0 to 4 and 4 to 6
        unsharded.load_state_dict(state)
    assert unsharded.state_dict()[name][:3].tolist() == [0, 6, -1]
    state[name] = torch.tensor([0, 4, 8] + [-1] * 1022)
    with (
        pytest.raises(DataError, match=r"model.tables.user.ids=managed.*train.resume=false"),
        loading_managed(unsharded),
    ):
        unsharded.load_state_dict(state)


def test_managed_tables_are_pipelined(caplog):
    losses = []
    for pipelined in (False, True):
        with process_group("cpu") as ranks:
            model, optimizers, lookups = sharded(ranks, 9)
            batches = iter([lookups(batch_of(users, step)) for step, users in enumerate(BATCHES)])
            losses.append([])
            pipeline = TrainPipelineSparseDist(model, optimizers, ranks.device) if pipelined else None
            for _ in BATCHES:
                if pipelined:
                    with caplog.at_level("INFO", "torchrec"):
                        losses[-1].append(float(pipeline.progress(batches)["loss_rec"]))
                    continue
                optimizers.zero_grad()
                loss, parts = model(next(batches))
                loss.backward()
                optimizers.step()
                losses[-1].append(float(parts["loss_rec"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert not any("NOT be pipelined" in r.getMessage() for r in caplog.records)
    assert any("model.managed.tables" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("model", "optimizer", "words"),
    [
        ({"tables": {"user": TableConfig(ids="hash")}}, "sgd", ["model.tables.user.rows", "ids=hash"]),
        ({"tables": {"user": TableConfig(rows=3)}}, "sgd", ["model.tables.user.rows", "hash or managed"]),
        ({"tables": {"category": TableConfig(ids="hash", rows=9)}}, "sgd", ["model.tables.category.ids"]),
        ({"tables": {"user": TableConfig(ids="managed", admit=0)}}, "sgd", ["model.tables.user.admit"]),
        ({"tables": {"user": TableConfig(ids="managed")}}, "adam", ["table user", "train.table_optimizer"]),
        (
            {"tables": {"user": TableConfig(ids="managed", sharding=["table_wise"])}},
            "sgd",
            ["table user", "sharded row_wise", "model.tables.user.sharding"],
        ),
        (
            {"category": False, "tables": {"user": TableConfig(ids="managed")}},
            "sgd",
            ["model.category", "managed"],
        ),
    ],
)
def test_settings_that_cannot_be_are_named(model, optimizer, words):
    config = ModelConfig(**SMALL | model)
    with pytest.raises(DataError) as caught, process_group("cpu") as ranks:
        module = build(config, dense=DENSE, users=USERS, items=ITEMS, device="meta")
        plan_tables(module, ranks, batch_size=10, table_optimizer=optimizer, settings=config.tables)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("kind", ["hash", "managed"])
def test_trained_ids_evaluate_and_recommend(kind, tmp_path):
    shards = write_shards(tmp_path / "shards", rows=(80, 20, 20), users=30, items=20)
    tables = {name: TableConfig(rows=9, ids=kind) for name in ("user", "item")}
    model = ModelConfig(user_id=True, item_id=True, tables=tables)
    settings = TrainConfig(epochs=1, batch_size=40, device="cpu", table_optimizer="rowwise_adagrad")
    train(model, ContrastiveConfig(num_negatives=8), settings, "strict", shards, tmp_path / "train")
    evaluate({"dlrrec": tmp_path / "train"}, shards, tmp_path / "evaluation")
    scores = pq.read_table(tmp_path / "evaluation" / "predictions" / "dlrrec.parquet")
    trained = load_trained(tmp_path / "train", shards)
    recommended = recommend(shards, tmp_path / "train", "user-3", n=20, include_seen=True)
    by_item = {item.item_id: item.probability for item in recommended.items}
    scorer = Scorer(tmp_path / "train", shards, batch_size=7)
    alone = scorer.logits(scorer.pairs(load_entities(shards), np.full(20, 3), np.arange(20)))
    assert [by_item[f"item-{k}"] for k in range(20)] == pytest.approx(1 / (1 + np.exp(-alone)), abs=1e-6)
    assert len({round(s, 5) for s in scores["score"].to_pylist()}) > 10
    rows = {name: len(p) for name, p in trained.named_parameters() if "t_user" in name or "t_item" in name}
    assert [*rows.values()] == [9, 9]
