"""N ranks train as one rank on the joined batches, and their checkpoint loads on one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint import FileSystemReader

from dlrrec_torchrec.config import ModelConfig, from_dict
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.metrics import cross_entropy
from dlrrec_torchrec.models.list_head import RECENT_WEIGHT
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.launcher import Launch
from tests.helpers.shards import MODALITIES, write_shards
from tests.programs.ranks import VARIANTS, train_all, work


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(shards, {ranks: folder of trainings}) of the same trainings on 1 and on 2 ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    options = {"users": 50, "items": 30, "rows_per_shard": 64, "dims": {"item_text": 64, "item_image": 256}}
    shards = write_shards(folder / "shards", rows=(403, 101, 20), **options)
    small = write_shards(folder / "small", rows=(33, 1, 5), users=20, items=10)
    two_ranks = Launch(2, work, shards, small, folder / "2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_all(shards, small, folder / "1")
    finally:
        torch.set_num_threads(threads)
        status, printed = two_ranks.end()
    assert status == 0, printed[-5000:]
    return shards, {1: folder / "1", 2: folder / "2"}


def step_losses(
    folder: Path, names: tuple[str, ...] = ("loss_rec", "loss_ii", "loss_uu")
) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {n: [s.value for s in events.Scalars(f"step/{n}")] for n in names}


def logits(folder: Path, shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    config = from_dict(ModelConfig, Manifest.read(folder).config["model"], str(folder))
    model = load_trained(folder, shards)
    (batch,) = make_loader(shards, "val", 256, batch_spec(config, ShardFacts.read(shards)))
    with torch.no_grad():
        return model.score(batch), batch.label


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_train_as_one(trained, variant):
    shards, folders = trained
    one_rank, two_ranks = (step_losses(folders[n] / variant) for n in (1, 2))
    for name, losses in one_rank.items():
        assert len(losses) == 2 * 7 and losses[0] > 0
        assert losses == pytest.approx(two_ranks[name], abs=1e-4), name
    assert one_rank["loss_rec"][-1] < one_rank["loss_rec"][0]
    torch.testing.assert_close(
        logits(folders[1] / variant, shards)[0], logits(folders[2] / variant, shards)[0], atol=1e-3, rtol=0
    )


def test_vectors_in_tables_train_as_vectors_in_rows(trained):
    """The rows' vectors are the entities' here. The tables need no place in a checkpoint."""
    shards, folders = trained
    by_row, by_table = (step_losses(folders[1] / variant) for variant in ("adam", "content"))
    for name, losses in by_row.items():
        assert losses == pytest.approx(by_table[name], abs=1e-4), name
    torch.testing.assert_close(
        logits(folders[1] / "adam", shards)[0], logits(folders[2] / "content", shards)[0], atol=1e-3, rtol=0
    )
    for ranks in folders:
        saved = FileSystemReader(folders[ranks] / "content" / "checkpoints" / "best").read_metadata()
        names = saved.state_dict_metadata
        assert any("t_user.weight" in name for name in names)
        assert not any(modality in name and "tables" in name for name in names for modality in MODALITIES)
        assert Manifest.read(folders[ranks] / "content").facts["leave_one_out"] is False


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_of_two_ranks_loads_on_one(trained, variant):
    shards, folders = trained
    plan = Manifest.read(folders[2] / variant).facts["tables"]
    content = {"t_user_text": "row_wise", "t_item_text": "table_wise", "t_item_image": "column_wise"}
    kind = variant if variant.endswith("_wise") else "data_parallel"
    kinds = {"t_category": kind, "t_user": kind}
    kinds |= {
        "mixed": {"t_user": "row_wise"},
        "content": content,
        "refresh": content,
        "ids": {"t_category": "data_parallel", "t_user": "table_wise", "t_item": "row_wise"},
        "half": {"t_category": "table_wise", "t_user": "row_wise"},
    }.get(variant, {})
    assert plan == kinds
    for ranks, folder in folders.items():  # the plan is kept with the training
        kept = json.loads((folder / variant / "plan.json").read_text())
        assert {f"t_{t['name']}": t["sharding"] for t in kept["tables"]} == kinds
        assert kept["world_size"] == ranks and len(kept["ranks"]) == ranks
    if variant == "half":
        assert [t["rows"] for t in kept["tables"]] == [180, 64]  # more rows than there are users
    predicted, label = logits(folders[2] / variant, shards)
    best = json.loads((folders[2] / variant / "best.json").read_text())
    loss = cross_entropy(label.numpy(), predicted.sigmoid().double().numpy())
    assert loss == pytest.approx(best["metrics"]["loss"], abs=1e-6)  # as the two ranks computed it


def test_a_rank_with_padding_alone_evaluates_with_the_others(trained):
    _, folders = trained
    one_rank, two_ranks = (json.loads((folders[n] / "small" / "metrics.jsonl").read_text()) for n in (1, 2))
    assert two_ranks["loss"] == pytest.approx(one_rank["loss"], abs=1e-3)
    assert Manifest.read(folders[2] / "small").facts["ranks"] == 2


def test_replicated_tables_learn_what_fused_ones_learn(trained):
    _, folders = trained  # the category table of "mixed" is replicated, that of "row_wise" is not
    row_wise, mixed = (step_losses(folders[2] / variant) for variant in ("row_wise", "mixed"))
    for name, losses in row_wise.items():
        assert losses == pytest.approx(mixed[name], abs=1e-4), name


def test_two_ranks_accumulate_as_one(trained):
    _, folders = trained
    one_rank, two_ranks = (step_losses(folders[n] / "accumulate")["loss_rec"] for n in (1, 2))
    assert (
        len(one_rank) == 7 and one_rank == pytest.approx(two_ranks, abs=1e-4) and one_rank[-1] < one_rank[0]
    )


def test_ranks_exchange_embeddings_in_half_precision(trained):
    _, folders = trained
    half, exact = (step_losses(folders[2] / name)["loss_rec"] for name in ("comms", "exact"))
    assert half != exact and half == pytest.approx(exact, abs=2e-3)
    one_rank = step_losses(folders[1] / "exact")["loss_rec"]
    assert exact == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.parametrize("name", ["v0", "v0 without tables"])
def test_two_ranks_train_two_steps_as_one(trained, name):
    shards, folders = trained
    for step in (name, f"{name}/step-one"):
        one_rank, two_ranks = (step_losses(folders[n] / step)["loss_rec"] for n in (1, 2))
        assert len(one_rank) == 2 * 7 and one_rank == pytest.approx(two_ranks, abs=1e-4)
        assert one_rank[-1] < one_rank[0]
    torch.testing.assert_close(*(logits(folders[n] / name, shards)[0] for n in (1, 2)), atol=1e-3, rtol=0)


def test_every_rank_has_the_plan_of_rank_0(trained):
    _, folders = trained
    first, second = (json.loads((folders[2] / f"plan-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["plan"]["world_size"] == 2
    assert "row_wise: needs a fused adam" in first["problem"]


@pytest.mark.parametrize("name", ["list", "list sampled", "list batch", "list accumulate"])
def test_two_ranks_train_a_list_head_as_one(trained, name):
    """Users with their latest items, id tables sharded by rows; the checkpoint of two ranks ranks on one."""
    shards, folders = trained
    one_rank, two_ranks = (step_losses(folders[n] / name, ("loss_list",)) for n in (1, 2))
    assert one_rank["loss_list"][-1] < one_rank["loss_list"][0]
    assert one_rank["loss_list"] == pytest.approx(two_ranks["loss_list"], abs=1e-4)
    plan = Manifest.read(folders[2] / name).facts["tables"]
    kind = "data_parallel" if name == "list accumulate" else "row_wise"
    assert plan["t_list_user"] == plan["t_list_item"] == kind
    with torch.no_grad():
        weights = [load_trained(folders[n] / name, shards).list_head.recent_weight for n in (1, 2)]
        assert len(weights[0]) == 3 and bool((weights[0] != RECENT_WEIGHT).all())
        torch.testing.assert_close(*weights, atol=1e-3, rtol=0)
    users = np.arange(50)
    scores = [Scorer(folders[n] / name, shards).list_scores(users) for n in (1, 2)]
    np.testing.assert_allclose(*scores, atol=2e-3)
    best = [json.loads((folders[n] / name / "best.json").read_text())["metrics"] for n in (1, 2)]
    assert best[0]["ndcg@20"] == pytest.approx(best[1]["ndcg@20"], abs=1e-3)
