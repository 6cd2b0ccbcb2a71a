"""Content vectors in tables against the same vectors in the rows."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.config import (
    ContrastiveConfig,
    ModelConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
    from_dict,
)
from dlrrec_torchrec.config.flags import run_settings
from dlrrec_torchrec.data.batch import Batch, split_rows
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.entities import load_entities, pair_batch, read_vectors
from dlrrec_torchrec.data.hard_negatives import second_neighbours
from dlrrec_torchrec.data.lookup import distinct_codes
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.evaluation.stage import evaluate
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.serving.recommend import recommend
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.sharding.advice import make_plan
from dlrrec_torchrec.sharding.apply import plan_tables, shard_tables
from dlrrec_torchrec.sharding.devices import named_device
from dlrrec_torchrec.sharding.fill import fill_content
from dlrrec_torchrec.sharding.request import run_request
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.optimizers import make_optimizer
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import MODALITIES, build, make_facts, modalities_of, plain_spec, write_shards
from tests.models.test_wrapper import CUMULATIVE, DENSE, ITEMS, USERS, random_batch, random_corpus

SIZES = {"embedding_dim": 8, "dense_arch": [16, 8], "text_tower": [24, 8], "image_tower": [12, 8]}
SIZES |= {"over_arch": [20, 6, 1], "dropout": 0.0, "wide": False}
FACTS = make_facts(users=USERS, items=ITEMS, dense=DENSE)
# Each entity's neighbours are the next two; the last ones have none.
CHAINS = {
    side: np.where(np.arange(n)[:, None] < n - 3, np.arange(n)[:, None] + [1, 2], -1)
    for side, n in (("user", USERS), ("item", ITEMS))
}


def configs(vectors: str, model: dict | None = None, **contrastive) -> tuple[ModelConfig, ContrastiveConfig]:
    config = ModelConfig(**SIZES | {"vectors": vectors} | (model or {}))
    return config, ContrastiveConfig(**{"num_negatives": 5} | contrastive)


def wrapper_of(vectors: str, model: dict | None = None, **contrastive) -> TrainWrapper:
    """Weights follow from the seed, so both kinds have the same; tables hold `random_corpus`."""
    config, terms = configs(vectors, model, **contrastive)
    torch.manual_seed(0)
    network = build_model(config, batch_spec(config, FACTS))
    for path, table in network.state_dict().items():
        if "content" in path:
            table.copy_(random_corpus()[path.split(".")[-2].removeprefix("t_")])
    corpus = random_corpus() if vectors == "row" else {}
    spec = spec_of(vectors, model, **contrastive)
    return build_wrapper(network, terms, corpus=corpus, seed=5, spec=spec)


def spec_of(vectors: str, model: dict | None = None, **contrastive) -> BatchSpec:
    """With what its draws need of the entities, as `with_draws` reads it from shards."""
    chosen, terms = configs(vectors, model, **contrastive)
    spec = batch_spec(chosen, FACTS, terms, seed=5)
    needs = {
        "popularity": lambda side: {"cumulative": CUMULATIVE[side]},
        "swing_hard": lambda side: {"near": torch.tensor(second_neighbours(CHAINS[side], 4))},
    }
    if terms.negatives in needs:
        draws = tuple(dataclasses.replace(d, **needs[terms.negatives](d.side)) for d in spec.draws)
        spec = dataclasses.replace(spec, draws=draws)
    return spec


def entity_batch(seed: int = 0, part: slice = slice(None), padding: bool = False) -> Batch:
    """A random batch whose vectors are its entities'; the last row may be padding."""
    batch = random_batch(seed, part=part)
    corpus = random_corpus()
    if padding:
        for name in ("user", "item", "label", "user_positives", "item_positives"):
            getattr(batch, name)[-1] = -1
    for name in MODALITIES:
        codes = batch.user if name == "user_text" else batch.item
        batch.vectors[name] = torch.where((codes >= 0)[:, None], corpus[name][codes], 0)
    return batch


def with_lookup(batch: Batch, step: int, model: dict | None = None, **contrastive) -> Batch:
    spec = spec_of("table", model, **contrastive)
    return dataclasses.replace(spec.complete(batch, step), vectors={})


CASES = {
    "corpus": {},
    "sampled positives": {"positive": "sample", "item_weight": 0.7},
    "batch": {"negatives": "batch", "temperature": 1.0},
    "popularity": {"negatives": "popularity"},
    "semi-hard": {"negatives": "semi_hard", "num_hard": 2},
    "swing-hard": {"negatives": "swing_hard", "num_hard": 3},
    "one term": {"user_weight": 0.0},
    "no term": {"user_weight": 0.0, "item_weight": 0.0},
}


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("case", CASES)
def test_tables_equal_rows(case, norm):
    """Logits, losses, gradients, and the statistics of batch normalisation, over several steps."""
    outcomes = []
    for vectors in ("row", "table"):
        model = {"tower_norm": norm}
        wrapper = wrapper_of(vectors, model, **CASES[case])
        optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], lr=0.1)
        steps = []
        for step in range(3):
            batch = entity_batch(step, padding=step == 1)
            if vectors == "table":
                batch = with_lookup(batch, step, model, **CASES[case])
            else:
                batch = spec_of("row", model, **CASES[case]).complete(batch, step)
            optimizer.zero_grad()
            loss, parts = wrapper(batch)
            loss.backward()
            gradients = {n: p.grad.clone() for n, p in wrapper.named_parameters() if p.requires_grad}
            steps.append((loss.detach(), parts, gradients))
            optimizer.step()
        held_out = entity_batch(9)
        if vectors == "table":
            held_out = batch_spec(configs("table")[0], FACTS).complete(held_out)
        with torch.no_grad():
            scores = wrapper.eval().model.score(held_out)
        outcomes.append((steps, scores, dict(wrapper.model.dense_arch.named_buffers())))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-6)
    assert outcomes[0][2] or norm != "batch"


def test_a_repeated_entity_passes_its_tower_once():
    wrapper = wrapper_of("table")
    batch = entity_batch()
    rows = {}
    for name, tower in wrapper.model.dense_arch.towers.items():
        tower.layers.register_forward_hook(
            lambda _, _inputs, outputs, name=name: rows.setdefault(name, []).append(len(outputs))
        )
    looked_up = with_lookup(batch, 0)
    wrapper(looked_up)
    plain = wrapper_of("row")
    for side in ("user", "item"):
        draws = plain.draws[side]
        neighbours = getattr(batch, f"{side}_positives")
        needed_codes = {*getattr(batch, side).tolist(), *draws.corpus(0).tolist()}
        needed_codes |= {*draws.positives(neighbours, getattr(batch, side), 0).tolist()} - {-1}
        assert looked_up.lookup.codes[side].tolist() == sorted(needed_codes)
        for modality in modalities_of():
            if modality.side == side:
                assert rows[modality.name] == [len(needed_codes)]
    assert len(batch) > sum(rows["item_text"])  # many rows, few items


def test_table_vectors_are_never_trained_and_have_no_gradient():
    wrapper = wrapper_of("table")
    loss, _ = wrapper(with_lookup(entity_batch(), 0))
    loss.backward()
    for table in wrapper.model.content.parameters():
        assert not table.requires_grad and table.grad is None and table.dtype == torch.float16


@settings(max_examples=50)
@given(st.lists(st.integers(-1, 6), max_size=12))
def test_distinct_codes(codes):
    distinct, place = distinct_codes(torch.tensor(codes, dtype=torch.int64))
    assert distinct.tolist() == sorted({*codes} - {-1})
    padded = [*distinct.tolist(), -1]
    assert [padded[k] for k in place.tolist()] == codes


@pytest.mark.parametrize("negatives", ["corpus", "swing_hard"])
@pytest.mark.parametrize("parts", [2, 5])
def test_rows_cut_into_micro_batches_look_up_their_own(parts, negatives):
    batch = with_lookup(entity_batch(padding=True), 2, negatives=negatives)
    row = 0
    for part in split_rows(batch, parts):
        own = entity_batch(part=slice(row, row + len(part)), padding=len(part) + row == 24)
        alone = with_lookup(own, 2, negatives=negatives)
        row += len(part)
        for kind in ("codes", "places"):
            torch.testing.assert_close(getattr(part.lookup, kind), getattr(alone.lookup, kind))
        assert part.lookup.ids.values().equal(alone.lookup.ids.values())
        assert part.lookup.ids.lengths().equal(alone.lookup.ids.lengths())


@pytest.mark.parametrize("rows", [0, 1, 7, 24])
def test_ids_are_spread_over_the_rows_in_order(rows):
    lookup = with_lookup(entity_batch(part=slice(rows)), 3).lookup
    assert lookup.ids.stride() == max(rows, 1)
    for name, jagged in lookup.ids.to_dict().items():
        assert jagged.values().equal(lookup.codes["user" if name == "user_text" else "item"])
        assert jagged.lengths().max() - jagged.lengths().min() <= 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["corpus", "batch", "popularity", "semi-hard", "swing-hard"])
def test_traced_wrapper_equals_plain(case, training):
    plain = wrapper_of("table", **CASES[case]).train(training)
    traced = torch.fx.symbolic_trace(wrapper_of("table", **CASES[case]).train(training))
    for step in range(2):
        batch = with_lookup(entity_batch(step), step, **CASES[case])
        torch.testing.assert_close(traced(batch), plain(batch))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Rows of ids alone; the entity tables have the vectors."""
    return write_shards(
        tmp_path_factory.mktemp("content") / "shards", rows=(80, 20, 20), users=30, items=20, modalities=()
    )


def test_parts_of_a_table_are_read_alone(shards):
    all_vectors = load_entities(shards).vectors
    for modality in modalities_of():
        matrix = all_vectors[modality.name]
        for first, last in ((0, len(matrix)), (3, 11), (7, 7)):
            parts = list(read_vectors(shards, modality, first, last))
            joined = np.concatenate([part for _, part in parts]) if parts else matrix[:0]
            assert joined.tobytes() == matrix[first:last].tobytes()
            assert not parts or parts[0][0] == first


def test_tables_hold_the_entities_and_then_zeros(shards):
    tables = {"user_text": TableConfig(rows=40), "item_image": TableConfig(sharding=["column_wise"])}
    config = ModelConfig(vectors="table", tables=tables)
    module = build(config, users=30, items=20, device="meta")
    with quiet(), process_group("cpu") as ranks:
        plan = plan_tables(module, ranks, batch_size=10, settings=tables)
        sharded = shard_tables(module, ranks, batch_size=10, plan=plan)
        fill_content(sharded, shards, ranks)
        ids = with_codes({"user_text": [29, 30, 39], "item_text": [0, 19], "item_image": [19, 19]})
        looked_up = sharded.module.content(ids)
        optimizers = make_optimizer(sharded, 0.01)
        state_names = [k for k in optimizers.state_dict()["state"] if "content" in k and "." in k]
        assert not any(optimizers.state_dict()["state"][name] for name in state_names)
    all_vectors = load_entities(shards).vectors
    assert {p.table.name: p.table.frozen for p in plan.tables} == {"category": False} | dict.fromkeys(
        MODALITIES, True
    )
    assert looked_up["user_text"][0].half().numpy().tobytes() == all_vectors["user_text"][29].tobytes()
    assert not looked_up["user_text"][1:].any() and not looked_up["item_text"].requires_grad
    for name in ("item_text", "item_image"):
        expected = all_vectors[name][[0, 19] if name == "item_text" else [19, 19]]
        assert looked_up[name].half().numpy().tobytes() == expected.tobytes()


def with_codes(codes: dict[str, list[int]]) -> KeyedJaggedTensor:
    lengths = torch.tensor([len(side_codes) for side_codes in codes.values()], dtype=torch.int32)
    return KeyedJaggedTensor(list(codes), torch.tensor(sum(codes.values(), [])), lengths=lengths)


def test_rows_of_ids_alone_train_evaluate_and_recommend(shards, tmp_path, capsys):
    settings_ = TrainConfig(epochs=1, batch_size=40, device="cpu")
    terms = ContrastiveConfig(num_negatives=8)
    manifest = train(ModelConfig(vectors="table"), terms, settings_, "strict", shards, tmp_path / "train")
    assert manifest.facts["leave_one_out"] is False
    assert "not leave-one-out" in capsys.readouterr().err
    evaluate({"dlrrec": tmp_path / "train"}, shards, tmp_path / "evaluation")
    entities, model = load_entities(shards), load_trained(tmp_path / "train", shards)
    with pytest.raises(DataError, match=r"rows of these shards hold no vectors.*model.vectors=table"):
        train(ModelConfig(), terms, settings_, "strict", shards, tmp_path / "row")
    recommended = recommend(shards, tmp_path / "train", "user-3", n=3, include_seen=True)
    spec = plain_spec(shards)
    batch = pair_batch(entities, [3] * 20, np.arange(20), spec)
    with torch.no_grad():  # the vectors handed over
        expected = model(batch.dense, batch.sparse, batch.vectors).sigmoid()
    assert [i.probability for i in recommended.items] == pytest.approx(
        expected.sort(descending=True).values[:3]
    )
    predicted = pq.read_table(tmp_path / "evaluation" / "predictions" / "dlrrec.parquet")
    batch = pair_batch(entities, predicted["user"].to_numpy(), predicted["item"].to_numpy(), spec)
    with torch.no_grad():
        expected = model(batch.dense, batch.sparse, batch.vectors)
    assert predicted["score"].to_pylist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_vectors_of_several_sizes_train_alike_in_rows_and_in_tables(tmp_path):
    """Five modalities of three widths, two of them of one's own; the rows' vectors are the entities' here."""
    names = (*MODALITIES, "item_audio", "user_graph")
    dims = {"item_image": 32, "item_audio": 128, "user_graph": 32}
    shards = write_shards(
        tmp_path / "shards", rows=(80, 20, 20), users=30, items=20, modalities=names, dims=dims
    )
    steps, scores = [], []
    for vectors in ("row", "table"):
        model = ModelConfig(
            vectors=vectors, towers={"item_audio": [24, 32]}, dropout=0.0, tower_dropout=0.0, wide=False
        )
        out = tmp_path / vectors
        settings_ = TrainConfig(epochs=2, batch_size=40, device="cpu", lr=1e-4)  # Adam's steps are of signs
        train(model, ContrastiveConfig(num_negatives=8), settings_, "strict", shards, out)
        steps.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
        scorer = Scorer(out, shards)
        pairs = scorer.pairs(load_entities(shards), np.full(20, 3), np.arange(20))
        scores.append(scorer.logits(pairs))
        assert load_trained(out, shards).dense_arch.towers["item_audio"].layers[0].weight.shape == (24, 128)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    for by_row, by_table in zip(*(of[1:] for of in steps), strict=True):  # epoch 0 has no steps
        for name in ("train_loss_rec", "train_loss_ii", "train_loss_uu", "auc"):
            assert by_row[name] == pytest.approx(by_table[name], abs=1e-4), name


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"user_text": TableConfig(dim=32)}, ["model.tables.user_text.dim", "384"]),
        ({"item_text": TableConfig(rows=3)}, ["model.tables.item_text.rows", "20 ids"]),
        ({"item_text": TableConfig(sharding=["data_parallel"])}, ["item_text", "not replicated"]),
        ({"item_text": TableConfig(kernels=["fused_uvm_caching"])}, ["item_text", "needs a GPU"]),
    ],
)
def test_settings_that_cannot_be_are_named(tables, words):
    config = ModelConfig(vectors="table", tables=tables)
    with pytest.raises(DataError) as caught, process_group("cpu") as ranks:
        model = build(config, users=30, items=20, device="meta")
        plan_tables(model, ranks, batch_size=10, settings=tables)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_width_that_tables_cannot_take_is_named():
    config = ModelConfig(vectors="table")
    with pytest.raises(DataError, match="vectors of item_image have 30 numbers.*use model.vectors=row"):
        build(config, dims={"item_image": 30})


def test_damaged_entities_are_named(shards, tmp_path):
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    model = build(ModelConfig(vectors="table"), users=30, items=21)
    with pytest.raises(DataError, match="20 rows of item_text, but there are 21 ids"):
        fill_content(model, broken)
    (broken / "entities" / "items" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="items/part-00000.parquet"):
        fill_content(model, broken)


def test_a_plan_without_shards_names_the_missing_rows():
    where = {"world_size": 64, "local_world_size": 8}
    tables = {name: {"rows": "1e8", "kernels": "fused+fused_uvm_caching"} for name in MODALITIES}
    body = {"vectors": "table", "tables": tables}
    config = from_dict(RunConfig, {"model": body, "train": {"table_optimizer": "adam"}}, "test")
    plan = make_plan(run_request(config, named_device("h200"), **where))
    placed = {p.table.name: p for p in plan.tables}
    for name in MODALITIES:
        table = placed[name].table
        assert (table.rows, table.dim, table.dtype, table.pooled) == (10**8, 384, "fp16", False)
        assert sum(s.weight_bytes for s in placed[name].parts) == 10**8 * 384 * 2
        assert sum(s.optimizer_bytes for s in placed[name].parts) == 0
        assert all(s.backward_ms == 0 for s in placed[name].parts)
    del config.model.tables["item_image"]
    with pytest.raises(DataError, match=r"item_image: how many rows.*model.tables.item_image.rows=N"):
        run_request(config, named_device("h200"), **where)


@pytest.mark.parametrize("page", ["content-tables", "ids", "modalities"])
def test_commands_of_the_page_are_understood(page):
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(lines) > 1
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "dlrrec"
        config, _ = run_settings(build_parser().parse_args(words))
        names = (*MODALITIES, *config.model.towers)
        rows = () if config.model.vectors == "table" else names
        spec = batch_spec(config.model, make_facts(users=30, items=20, modalities=rows))
        if page != "modalities":
            assert spec.in_tables or spec.hashed or spec.managed or "prepare" in words
        build_model(config.model, spec, device="meta")
