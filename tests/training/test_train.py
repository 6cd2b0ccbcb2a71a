"""Training in one process: it learns, goes on as the same run, selects by its protocol, refuses by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.metrics import roc_auc
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.sharding.devices import host_memory, rank_device
from dlrrec_torchrec.store.checkpoint_files import latest_state
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.training import checkpoint
from dlrrec_torchrec.training.checkpoint import Checkpoints
from dlrrec_torchrec.training.stage import train
from dlrrec_torchrec.training.steps import PlainPipeline
from dlrrec_torchrec.training.trainer import Trainer
from tests.helpers.shards import build, papers_model, plain_spec, write_shards
from tests.helpers.threads import one_thread  # noqa: F401

MODEL = papers_model(dropout=0.2, user_id=True, tower_dropout=0.1)
CONTRASTIVE = ContrastiveConfig(num_negatives=16, positive="sample", learnable=True)
REFRESHED = ContrastiveConfig(
    num_negatives=16, positive="sample", negatives="swing_hard", num_hard=2, refresh=2
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(
        tmp_path_factory.mktemp("train") / "shards",
        rows=(600, 150, 150),
        users=60,
        items=40,
        rows_per_shard=100,
    )


def settings(**changes) -> TrainConfig:
    return TrainConfig(
        **{"epochs": 4, "batch_size": 100, "lr": 0.003, "weight_decay": 0.0, "device": "cpu", "patience": 0}
        | changes
    )


def run(shards, out, protocol="strict", model=MODEL, contrastive=CONTRASTIVE, **changes) -> Manifest:
    return train(model, contrastive, settings(**changes), protocol, shards, out)


def records(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in lines]


def step_losses(folder: Path) -> list[float]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(s.step, s.value) for s in events.Scalars("step/loss_rec")]


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("epoch-*"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    model = build(MODEL, users=60, items=40)
    load_model(path, model, prefix="model.")
    return model.state_dict()


def test_it_learns(tmp_path):
    shards = write_shards(tmp_path / "shards", rows=(3000, 500, 1000), users=200, items=100)
    manifest = run(shards, tmp_path / "out", model=ModelConfig(), epochs=5, batch_size=256)
    batches = list(make_loader(shards, "test", 1000, plain_spec(shards, positives=0)))
    untrained = build(ModelConfig(), users=200, items=100).eval()
    scores = {}
    for name, model in (("trained", load_trained(tmp_path / "out", shards)), ("untrained", untrained)):
        with torch.no_grad():
            (batch,) = batches
            scores[name] = roc_auc(
                batch.label.numpy(), model(batch.dense, batch.sparse, batch.vectors).numpy()
            )
    assert scores["trained"] > 0.8 and scores["trained"] > scores["untrained"] + 0.2
    history = records(tmp_path / "out")
    assert history[-1]["train_auc"] > 0.8 and history[-1]["train_loss_ii"] < history[1]["train_loss_ii"]
    best = max(history, key=lambda r: r["auc"])
    assert manifest.facts["best_epoch"] == best["epoch"] and manifest.facts["best"]["auc"] == best["auc"]
    assert json.loads((tmp_path / "out" / "best.json").read_text())["epoch"] == best["epoch"]
    assert not dist.is_initialized()


# --- going on ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Like a real kill, nothing handles it."""


def kill_in(monkeypatch, owner, name: str, when: int, after: bool = False):
    """Let the `when`-th call of owner.name raise, before or after its work."""
    plain, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == when and not after:
            raise Killed
        result = plain(*args, **kwargs)
        if len(calls) == when:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """Trainings that nobody killed, by table optimizer; of one the positives are refreshed."""
    root = tmp_path_factory.mktemp("undisturbed")
    for kind in ("adam", "rowwise_adagrad", "refreshed"):
        run(shards, root / kind, **of_kind(kind))
    return root


def of_kind(kind):
    options = {"table_optimizer": kind, "schedule": "cosine", "warmup_steps": 3}
    return options if kind != "refreshed" else {"contrastive": REFRESHED, "batch_size": 100}


KILLS = {
    "before evaluation": ("adam", Trainer, "evaluate", 3, False, {}),
    "between best and newest": ("adam", checkpoint, "_publish", 6, False, {}),
    "after a checkpoint": ("rowwise_adagrad", Checkpoints, "save", 2, True, {}),
    "before a checkpoint": (
        "rowwise_adagrad",
        checkpoint.dcp,
        "save",
        3,
        False,
        {},
    ),  # but after metrics.jsonl
    # A checkpoint after every 4th of 6 steps an epoch:
    "in an epoch": ("adam", PlainPipeline, "progress", 11, False, {"checkpoint_steps": 4}),
    "in the background": (
        *("rowwise_adagrad", PlainPipeline, "progress", 23, False),
        {"checkpoint_steps": 4, "background_checkpoints": True, "workers": 1},
    ),
    "with positives of an epoch before": (
        *("refreshed", PlainPipeline, "progress", 23, False),
        {"checkpoint_steps": 4},
    ),
    "after new positives, with a worker": ("refreshed", Checkpoints, "save", 3, True, {"workers": 1}),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_training_goes_on_as_the_same_run(shards, undisturbed, tmp_path, monkeypatch, case):
    kind, owner, name, when, after, changes = KILLS[case]
    options, out = of_kind(kind), tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_in(patched, owner, name, when, after)
        with pytest.raises(Killed):
            run(shards, out, **options, **changes)
    assert not (out / "manifest.json").exists()
    saved = latest_state(out / "checkpoints")["step"]
    steps, plain = [], PlainPipeline.progress
    monkeypatch.setattr(PlainPipeline, "progress", lambda s, b: steps.append(1) or plain(s, b))
    manifest = run(shards, out, **options)  # what does not change the result may change
    assert len(steps) == 4 * 6 - saved < 4 * 6
    assert "checkpoint_steps" not in changes or saved % 6
    assert records(out) == records(undisturbed / kind)
    assert step_losses(out) == step_losses(undisturbed / kind)
    for which in (newest, lambda folder: folder / "checkpoints" / "best"):
        expected = weights(which(undisturbed / kind))
        for key, value in weights(which(out)).items():
            assert torch.equal(value, expected[key]), key
    assert manifest.facts == Manifest.read(undisturbed / kind).facts


def test_a_finished_training_is_not_repeated_and_a_changed_one_starts_anew(shards, tmp_path):
    first = run(shards, tmp_path / "out", epochs=1)
    assert not first.reused
    assert run(shards, tmp_path / "out", epochs=1).reused
    assert run(shards, tmp_path / "out", epochs=1, workers=3, resume=False).reused  # no other result
    again = run(shards, tmp_path / "out", epochs=1, seed=1)
    assert not again.reused and [r["epoch"] for r in records(tmp_path / "out")] == [0, 1]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(shards, undisturbed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = {"table_optimizer": "adam", "schedule": "cosine", "warmup_steps": 3, "checkpoint_steps": 4}
    with monkeypatch.context() as patched:
        kill_in(patched, PlainPipeline, "progress", 18)
        with pytest.raises(Killed):
            run(shards, out, **options)
    damaged = newest(out)
    assert damaged.name == "epoch-00002-step-000000016"
    (data,) = damaged.glob("*.distcp")
    broken = bytearray(data.read_bytes())
    broken[len(broken) // 2] ^= 1
    data.write_bytes(broken)
    run(shards, out, **options)
    printed = capsys.readouterr().err
    assert f"{damaged}: damaged ({data.name} is not as it was written: its SHA-256 differs)" in printed
    assert f"going on from {out}/checkpoints/epoch-00002-step-000000012" in printed
    assert records(out) == records(undisturbed / "adam")


def test_load_trained_names_what_is_wrong(shards, undisturbed, tmp_path):
    with pytest.raises(DataError, match="manifest.json: not there"):
        load_trained(tmp_path, shards)
    other = write_shards(tmp_path / "other", rows=(20, 5, 5), users=60, items=40, seed=9)
    with pytest.raises(DataError, match="not trained on"):
        load_trained(undisturbed / "adam", other)
    copy = shutil.copytree(undisturbed / "adam", tmp_path / "copy")
    (copy / "checkpoints" / "best" / "state.json").unlink()
    with pytest.raises(DataError, match=r"best: incomplete \(state.json is missing\)"):
        load_trained(copy, shards)


# --- protocol, parallelism ---------------------------------------------------------------------------------


def test_paper_protocol_selects_on_the_test_split_by_false_positives(shards, tmp_path):
    manifest = run(shards, tmp_path / "out", protocol="paper", epochs=3, patience=1)
    history = records(tmp_path / "out")
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert best["protocol"] == "paper" and best["split"] == "test" and manifest.config["protocol"] == "paper"
    expected = min(history, key=lambda r: (r["fpr"], -r["auc"], r["epoch"]))
    assert best["epoch"] == expected["epoch"] and best["metrics"]["accuracy"] == expected["accuracy"]
    assert len(history) == 4  # the configured patience is not the paper's


def test_patience_ends_the_training(shards, tmp_path):
    still = ModelConfig(tower_norm="layer")  # has no statistics that move without a learning rate
    rates = {"lr": 1e-30, "residual_lr": 1e-30}
    manifest = run(shards, tmp_path / "out", model=still, **rates, epochs=9, patience=2)
    assert manifest.facts["best_epoch"] == 0 and manifest.facts["epochs"] == 2
    assert [r["best"] for r in records(tmp_path / "out")] == [True, False, False]
    without = ModelConfig(tower_norm="layer", wide=False)
    manifest = run(shards, tmp_path / "without", model=without, lr=1e-30, epochs=9, patience=2)
    assert manifest.facts["best_epoch"] == 1 and manifest.facts["epochs"] == 3


def test_a_learning_rate_of_almost_zero_leaves_tables_as_they_were_drawn(shards, tmp_path):
    for kind in ("adam", "rowwise_adagrad", "sgd"):
        run(shards, tmp_path / kind, epochs=1, lr=0.01, table_lr=1e-30, table_optimizer=kind)
    key = "sparse_arch.embedding_bag_collection.embedding_bags.t_user.weight"
    tables = [weights(newest(tmp_path / kind))[key] for kind in ("adam", "rowwise_adagrad", "sgd")]
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])
    assert tables[0].abs().max() <= 60**-0.5 and tables[0].std() == pytest.approx(60**-0.5 / 3**0.5, rel=0.1)


def test_the_planner_is_told_the_memory_that_is_there():
    with process_group("cpu") as ranks:
        device = rank_device(ranks)
        assert device.ddr == host_memory() and device.hbm == 0 and device.kind == "cpu"
        with process_group("cpu") as inner:  # a group that is there is used, and left
            assert inner == ranks
        assert dist.is_initialized()
    assert not dist.is_initialized()
    meminfo = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert host_memory() <= meminfo * 1.001


# --- refusals ----------------------------------------------------------------------------------------------


def test_refusals_name_the_flag_or_the_file(shards, tmp_path):
    with pytest.raises(DataError, match=r"train.batch_size \(--batch-size\): 1 must be at least 2"):
        run(shards, tmp_path / "out", batch_size=1)
    with pytest.raises(DataError, match=r"train.checkpoint_steps .*: -1 must be at least 0"):
        run(shards, tmp_path / "out", checkpoint_steps=-1)
    with pytest.raises(DataError, match=r"train.clip_norm .*: nan is not a finite number"):
        run(shards, tmp_path / "out", clip_norm=math.nan)
    with pytest.raises(DataError, match=r"train.accumulate .*: 100 rows of a step .* 51 micro-batches"):
        run(shards, tmp_path / "out", accumulate=51)
    with pytest.raises(DataError, match=r"train.keep_checkpoints .*: 0 must be at least 1"):
        run(shards, tmp_path / "out", keep_checkpoints=0)
    empty = write_shards(tmp_path / "empty", rows=(20, 0, 5), users=5, items=5)
    with pytest.raises(DataError, match=r"empty/val: no rows to select"):
        run(empty, tmp_path / "out")
    few = write_shards(tmp_path / "few", rows=(1, 5, 5), users=5, items=5)
    with pytest.raises(DataError, match=r"few/train: 1 rows, too few"):
        run(few, tmp_path / "out")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="--device cuda: torch sees no GPU"):
            run(shards, tmp_path / "out", device="cuda")


def test_a_loss_that_is_no_number_is_named(shards, tmp_path, monkeypatch):
    plain = Trainer.run_epoch

    def poisoned(self, rows, epoch, after_step):
        with torch.no_grad():
            next(p for n, p in self.model.named_parameters() if "over_arch" in n).fill_(math.nan)
        return plain(self, rows, epoch, after_step)

    monkeypatch.setattr(Trainer, "run_epoch", poisoned)
    with pytest.raises(DataError, match=r"loss_rec is not a number in step 1; lower train.lr"):
        run(shards, tmp_path / "out")
