"""Ranks that die, meet broken shards, or are told to stop: real processes under torch's elastic launcher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.store.checkpoint_files import latest_state
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.training import checkpoint, epochs
from dlrrec_torchrec.training import stage as training
from dlrrec_torchrec.training.signals import STOPPED, Stopped, stop_requests
from tests.helpers.launcher import Launch
from tests.helpers.shards import build, plain_spec, write_shards
from tests.helpers.threads import one_thread  # noqa: F401
from tests.programs.faults import BROKEN, KINDS, MODEL, RANDOM, STOP_IN, fit, in_step, work

FIRST_BROKEN = {
    "train": "train/part-00001.parquet",
    "val": "val/part-00001.parquet",
    "entities": "entities/users/part-00000.parquet",
}
STEPS = 14  # two epochs of 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "shards"
    return write_shards(folder, rows=(403, 101, 20), users=50, items=30, rows_per_shard=64)


def launch(ranks: int, what: str, *paths: Path, restarts: int = 0) -> tuple[int, str]:
    """(exit status, what was printed) of a function of tests/programs/faults.py on so many ranks."""
    return Launch(ranks, work, what, *paths, restarts=restarts).end()


def records(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "rows_per_second")} for r in lines]


def step_losses(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {n: [s.value for s in events.Scalars(f"step/{n}")] for n in ("loss_rec", "loss_ii", "loss_uu")}


def weights(path: Path, config) -> dict[str, torch.Tensor]:
    model = build(config, users=50, items=30)
    load_model(path, model, prefix="model.")
    return model.state_dict()


# --- a rank that is killed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(shards, tmp_path_factory) -> Path:
    """Trainings on two ranks: one that nothing disturbed, and some whose rank 1 has broken shards."""
    out = tmp_path_factory.mktemp("two")
    for part, _ in BROKEN[::2]:
        copy = shutil.copytree(shards, shards.with_name(f"broken-{part}"))
        break_vectors(copy / FIRST_BROKEN[part])
    status, printed = launch(2, "undisturbed", shards, out)
    assert status == 0, printed[-5000:]
    return out


def break_vectors(part: Path) -> None:
    """Zeros over a page of vectors: footer and the columns that are checked beforehand stay as they were."""
    group = pq.read_metadata(part).row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if "user_text" in c.path_in_schema)
    start = column.dictionary_page_offset or column.data_page_offset
    with open(part, "r+b") as stream:
        stream.seek(start)
        stream.write(bytes(64))


def test_a_killed_rank_restarts_from_the_last_checkpoint_with_the_same_result(shards, two_ranks, tmp_path):
    status, printed = launch(2, "killed", shards, tmp_path, restarts=1)
    assert status == 0, printed[-5000:]
    life, steps = (tmp_path / "steps").read_text().split()
    # A second life: rank 1 was killed in the first. The checkpoint after step 9 was the last.
    assert life == "1" and int(steps) == STEPS - 9
    undisturbed = two_ranks / "undisturbed"
    assert records(tmp_path / "killed") == records(undisturbed)
    assert step_losses(tmp_path / "killed") == step_losses(undisturbed)
    assert Manifest.read(tmp_path / "killed").facts == Manifest.read(undisturbed).facts
    expected = weights(undisturbed / "checkpoints" / "best", RANDOM)
    for name, value in weights(tmp_path / "killed" / "checkpoints" / "best", RANDOM).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("shared", "restarts", "rank", "warned"),
    [
        ("True", "1", "0", True),
        ("True", "0", "0", False),
        ("False", "1", "0", False),
        ("True", "1", "1", False),
    ],
)
def test_restarts_that_would_share_a_store_are_warned_of(monkeypatch, capsys, shared, restarts, rank, warned):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets both
    training.warn_of_restarts()
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("part", "workers"), BROKEN)
def test_a_broken_shard_of_one_rank_is_named_by_all(two_ranks, part, workers):
    for rank in range(2):
        printed = (two_ranks / f"{part}-{workers}.{rank}").read_text()
        assert f"broken-{part}/{FIRST_BROKEN[part]}: damaged Parquet file" in printed
        if part != "entities":  # met before the first step, when none waits
            assert printed.startswith("rank 1: " if rank == 0 else "/")
        assert "Traceback" not in printed


# --- stopped, and gone on with on other numbers of ranks ---------------------------------------------------


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """The same trainings on one rank, never stopped."""
    out = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        fit(kind, shards, out)
    return out


@pytest.fixture(scope="module")
def stopped_two(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stopped")
    status, printed = launch(2, "stop", shards, out)
    assert status == 1 and "SIGTERM" in printed, printed[-5000:]
    assert "Traceback" not in printed.split("death signal")[0], printed[-5000:]
    return out


@pytest.fixture(scope="module")
def stopped_one(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stopped")
    for kind in KINDS:
        with in_step(STOP_IN, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Stopped):
            fit(kind, shards, out)
    return out


def saved_state(folder: Path) -> dict:
    (path,) = (folder / "checkpoints").glob("epoch-*")
    return json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_stops_all_ranks_after_the_same_step(stopped_two, kind):
    codes = [int((stopped_two / f"{kind}.{rank}").read_text()) for rank in range(2)]
    assert codes == [STOPPED, STOPPED] == [75, 75]
    state = saved_state(stopped_two / kind)
    assert STOP_IN <= state["step"] <= STOP_IN + 2 and state["ranks"] == 2 and state["epoch"] == 0
    assert not (stopped_two / kind / "manifest.json").exists()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_it_goes_on_alike_on_another_number_of_ranks(
    shards, whole, stopped_one, stopped_two, tmp_path, before, after
):
    source = {1: stopped_one, 2: stopped_two}[before]
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    paths = {kind: next((tmp_path / kind / "checkpoints").glob("epoch-*")) for kind in KINDS}
    plain = {kind: logits(path, shards) for kind, path in paths.items()}
    if after == 1:
        steps = {}
        for kind in KINDS:
            with in_step(0, print) as taken:
                fit(kind, shards, tmp_path)
            steps[kind] = len(taken)
    else:
        status, printed = launch(after, "go_on", shards, tmp_path)
        assert status == 0, printed[-5000:]
        steps = {kind: int((tmp_path / f"{kind}.steps").read_text()) for kind in KINDS}
    for kind in KINDS:
        for moment in ("saved", "loaded"):  # of one rank, saved and loaded in this process, there are none
            if (file := tmp_path / f"{kind}.{moment}").exists():
                torch.testing.assert_close(torch.load(file), plain[kind], atol=1e-6, rtol=1e-5)
        assert (tmp_path / f"{kind}.loaded").exists() or after == 1
        assert steps[kind] == STEPS - saved_state(source / kind)["step"]
        expected = step_losses(whole / kind)
        for name, losses in step_losses(tmp_path / kind).items():
            assert losses == pytest.approx(expected[name], abs=1e-4), (kind, name)
        for undisturbed, resumed in zip(records(whole / kind), records(tmp_path / kind), strict=True):
            assert undisturbed == pytest.approx(resumed, abs=2e-3)
        best = [folder / kind / "checkpoints" / "best" for folder in (whole, tmp_path)]
        torch.testing.assert_close(*(logits(path, shards) for path in best), atol=1e-3, rtol=0)


def logits(path: Path, shards: Path) -> torch.Tensor:
    """Of the validation rows, by the unsharded model."""
    model = build(MODEL, users=50, items=30)
    load_model(path, model, prefix="model.")
    (batch,) = make_loader(shards, "val", 256, plain_spec(shards, positives=0, sparse=("category", "user")))
    with torch.no_grad():
        return model.eval()(batch.dense, batch.sparse, batch.vectors)


# --- signals in one process --------------------------------------------------------------------------------


def test_sigint_saves_and_the_next_one_does_not_wait(shards, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with in_step(STOP_IN, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped) as stopped:
        fit("row_wise", shards, tmp_path)
    assert stopped.value.code == os.EX_TEMPFAIL and saved_state(tmp_path / "row_wise")["step"] == STOP_IN

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers and launchers both send it
        signal.raise_signal(signal.SIGINT)

    with in_step(2, twice), pytest.raises(KeyboardInterrupt):
        fit("row_wise", shards, tmp_path)
    assert saved_state(tmp_path / "row_wise")["step"] == STOP_IN
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_step_ends_it_before_or_after_evaluation(shards, tmp_path, monkeypatch, whole):
    """Each of: the last step of an epoch, an evaluation, the last checkpoint."""
    out = tmp_path / "row_wise"
    with in_step(7, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Stopped):
        fit("row_wise", shards, tmp_path)
    assert (saved_state(out)["step"], saved_state(out)["epoch"]) == (7, 0)

    plain, calls = epochs.Trainer.evaluate, []

    def evaluate(self, rows):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, rows)

    with monkeypatch.context() as patched, in_step(0, print) as steps:
        patched.setattr(epochs.Trainer, "evaluate", evaluate)
        with pytest.raises(Stopped):
            fit("row_wise", shards, tmp_path)
    assert len(steps) == 7  # of the second epoch
    state = latest_state(out / "checkpoints")
    assert (state["step"], state["epoch"], state["whole_epoch"]) == (14, 1, False)

    save = checkpoint.Checkpoints.save

    def signalled(self, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return save(self, *arguments)

    with monkeypatch.context() as patched, in_step(0, print) as steps:
        patched.setattr(checkpoint.Checkpoints, "save", signalled)
        with pytest.raises(Stopped):  # what would come after the training does not
            fit("row_wise", shards, tmp_path)
    assert not steps and records(out) == records(whole / "row_wise")
    with in_step(0, print) as steps:
        fit("row_wise", shards, tmp_path)
    assert not steps and Manifest.read(out).facts == Manifest.read(whole / "row_wise").facts


def test_signals_are_left_alone_outside_of_the_main_thread(monkeypatch):
    handlers = []

    def inside() -> None:
        with stop_requests() as stop_requested:
            handlers.append((signal.getsignal(signal.SIGTERM), stop_requested()))

    thread = threading.Thread(target=inside)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert handlers == [(before, False)]
