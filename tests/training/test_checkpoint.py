"""Checkpoints by themselves: damage is named, nothing half-written counts, what is saved is the moment."""

from __future__ import annotations

import errno
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.distributed.lockstep import Lockstep
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models.build import build_wrapper
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.sharding.apply import shard_tables
from dlrrec_torchrec.store.checkpoint_files import BEST, latest_state
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training import checkpoint
from dlrrec_torchrec.training.checkpoint import Checkpoints
from dlrrec_torchrec.training.optimizers import make_optimizer
from tests.helpers.shards import build

SIZES = {"dense": 3, "users": 20, "items": 10}
MODEL = ModelConfig(modalities=[], user_id=True, dense_arch=[8, 8], over_arch=[8, 1], embedding_dim=8)
OFF = ContrastiveConfig(item_weight=0.0, user_weight=0.0)


@pytest.fixture(scope="module")
def training():
    """(ranks, model, optimizer) with fused and with dense moments."""
    with process_group("cpu") as ranks:
        wrapper = build_wrapper(build(MODEL, device="meta", **SIZES), OFF, corpus={})
        model = shard_tables(wrapper, ranks, batch_size=4, table_optimizer="rowwise_adagrad")
        optimizer = make_optimizer(model, 0.01)
        for _, part in optimizer.optimizers:
            if hasattr(part, "init_state"):
                part.init_state()
        yield ranks, model, optimizer


def fill(model, optimizer, value: float) -> None:
    """Every weight and every moment becomes `value`."""
    with torch.no_grad():
        for tensor in tensors(model, optimizer):
            tensor.fill_(value)


def tensors(model, optimizer) -> list[Tensor]:
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for entry in value.values() for leaf in leaves(entry)]
        return [s.tensor for s in value.local_shards()] if hasattr(value, "local_shards") else [value]

    return leaves(model.state_dict()) + leaves(optimizer.state_dict()["state"])


def holds(model, optimizer, value: float) -> bool:
    saved = tensors(model, optimizer)
    assert len(saved) > 20  # the tables' weights and moments among them
    return all((tensor == value).all() for tensor in saved)


def save(checkpoints: Checkpoints, training, number: int, *, epoch: int = 0, best: bool = False) -> None:
    """A checkpoint of step `number` in which everything is that number."""
    _, model, optimizer = training
    fill(model, optimizer, float(number))
    checkpoints.save(model, optimizer, {"step": number, "epoch": epoch}, {"own": torch.tensor(number)}, best)


def load(folder: Path, training) -> int:
    """The step that was loaded, after checking that all of it was."""
    ranks, model, optimizer = training
    fill(model, optimizer, -1.0)
    state, rank_states = Checkpoints(folder, ranks).load(model, optimizer)
    assert state["ranks"] == 1 and [entry["own"].item() for entry in rank_states] == [state["step"]]
    assert holds(model, optimizer, float(state["step"]))
    return state["step"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_the_best(training, tmp_path):
    ranks, *rest = training
    assert Checkpoints(tmp_path, ranks).load(*rest) is None and latest_state(tmp_path) is None
    with Checkpoints(tmp_path, ranks, keep=3) as checkpoints:
        for number in range(1, 8):
            save(checkpoints, training, number, epoch=number // 3, best=number == 2)
    expected = ["epoch-00001-step-000000005", "epoch-00002-step-000000006", "epoch-00002-step-000000007"]
    assert names(tmp_path) == [BEST, *expected]
    assert load(tmp_path, training) == 7 and latest_state(tmp_path)["step"] == 7
    model = build(MODEL, **SIZES)
    load_model(tmp_path / BEST, model, prefix="model.")
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    for path in tmp_path.iterdir():  # as anyone can check
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True)


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.glob(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.glob(name)
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def drop_last_line(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines(True)
    (folder / "SHA256SUMS").write_text("".join(lines[:-1]))


DAMAGE = {
    "a byte of the weights": (flip("*.distcp"), r"damaged \(__0_0.distcp is not as it was written"),
    "a byte of the index": (flip(".metadata"), r"damaged \(.metadata is not as it was written"),
    "a byte of the rank's own": (flip("rank-0.pt"), r"damaged \(rank-0.pt is not as it was written"),
    "a byte of the state": (flip("state.json"), r"damaged \(state.json is not as it was written"),
    "a byte of the sums": (flip("SHA256SUMS"), r"damaged|incomplete"),
    "weights cut short": (truncate("*.distcp"), r"damaged \(__0_0.distcp is not"),
    "sums cut short": (drop_last_line, r"damaged \(SHA256SUMS does not name state.json\)"),
    "weights missing": (lambda f: (f / "__0_0.distcp").unlink(), r"incomplete \(__0_0.distcp is missing\)"),
    "sums missing": (lambda f: (f / "SHA256SUMS").unlink(), r"incomplete \(SHA256SUMS is missing\)"),
    "sums empty": (lambda f: (f / "SHA256SUMS").write_bytes(b""), r"damaged \(SHA256SUMS: "),
    "sums no text": (lambda f: (f / "SHA256SUMS").write_bytes(b"\xff\x00"), r"damaged \(SHA256SUMS: "),
    "all missing": (lambda f: [p.unlink() for p in f.iterdir()], r"incomplete \(SHA256SUMS is missing\)"),
}


@pytest.fixture(scope="module")
def two(training, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder, training[0]) as checkpoints:
        save(checkpoints, training, 1)
        save(checkpoints, training, 2, best=True)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_used(training, two, tmp_path, capsys, kind):
    damage, message = DAMAGE[kind]
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)  # no hard links: `best` stays whole
    newest, older = folder / "epoch-00000-step-000000002", folder / "epoch-00000-step-000000001"
    damage(newest)
    assert load(folder, training) == 1
    printed = capsys.readouterr().err
    assert f"{newest}: " in printed and printed.endswith(f"; going on from {older}\n")
    with pytest.raises(DataError, match=rf"{newest}: .*({message})"):
        load_model(newest, build(MODEL, **SIZES), prefix="model.")

    # The next save has only the older one before it; the damaged one is not in its way.
    with Checkpoints(folder, training[0]) as checkpoints:
        save(checkpoints, training, 2)
    assert names(folder) == [BEST, older.name, newest.name] and load(folder, training) == 2

    damage(newest)
    damage(older)
    with pytest.raises(DataError, match=rf"(?s){newest}: .*({message}).*{older}: .*({message}).*--no-resume"):
        Checkpoints(folder, training[0]).load(*training[1:])


def test_newer_ones_that_were_passed_over_are_not_kept_for_whole_ones(training, two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    with Checkpoints(folder, training[0]) as checkpoints:
        save(checkpoints, training, 9)
    flip("*.distcp")(folder / "epoch-00000-step-000000009")
    assert load(folder, training) == 2
    with Checkpoints(folder, training[0], keep=2) as checkpoints:
        save(checkpoints, training, 5)
    assert names(folder) == [BEST, "epoch-00000-step-000000002", "epoch-00000-step-000000005"]


class Killed(BaseException):
    """Like a real kill, nothing handles it."""


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (checkpoint.dcp, "save", 1),  # nothing is written
        (checkpoint, "sha256", 1),  # the large files are
        (checkpoint, "_publish", 1),  # all is, under no name
        (checkpoint, "_publish", 2),  # `best` is there
        (checkpoint.shutil, "rmtree", 4),  # what was named `best` before is half gone
    ],
)
def test_a_save_cut_short_leaves_what_was_there(
    training, two, tmp_path, monkeypatch, owner, name, call, background
):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    plain, calls = getattr(owner, name), []

    def cut(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            if name == "rmtree":
                next(Path(arguments[0]).glob("*.distcp")).unlink()
            raise Killed
        return plain(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, cut)
        with Checkpoints(folder, training[0], background=background) as checkpoints:
            save(checkpoints, training, 3, best=True)
    assert load(folder, training) == 2
    with Checkpoints(folder, training[0]) as checkpoints:
        save(checkpoints, training, 3, best=True)
    assert load(folder, training) == 3
    whole = [BEST, "epoch-00000-step-000000002", "epoch-00000-step-000000003"]
    assert [entry for entry in names(folder) if not entry.startswith(".")] == whole
    assert names(folder) == whole


def test_in_the_background_the_moment_of_the_call_is_saved(training, tmp_path, monkeypatch):
    ranks, model, optimizer = training
    go, plain = threading.Event(), checkpoint.dcp.save

    def held(*arguments, **options):
        assert go.wait(60)
        return plain(*arguments, **options)

    monkeypatch.setattr(checkpoint.dcp, "save", held)
    state, rank_state = {"step": 1, "epoch": 0, "notes": [1]}, {"own": torch.tensor(1)}
    with Checkpoints(tmp_path, ranks, background=True) as checkpoints:
        fill(model, optimizer, 1.0)
        checkpoints.save(model, optimizer, state, rank_state, best=False)
        fill(model, optimizer, 5.0)  # the training goes on
        rank_state["own"].fill_(5)
        state["notes"].append(5)
        assert latest_state(tmp_path) is None
        go.set()
    assert load(tmp_path, training) == 1 and latest_state(tmp_path)["notes"] == [1]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("owner", "name"), [(checkpoint.dcp, "save"), (checkpoint, "_publish")])
def test_a_full_disk_is_said_and_costs_nothing(training, two, tmp_path, monkeypatch, owner, name, background):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    plain = getattr(owner, name)

    def full(*_, **__):
        monkeypatch.setattr(owner, name, plain)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, name, full)
    message = rf"{folder}: rank 0 cannot write a checkpoint \(.*No space left on device\)"
    with pytest.raises(DataError, match=message):
        with Checkpoints(folder, training[0], background=background) as checkpoints:
            save(checkpoints, training, 3)
    assert load(folder, training) == 2


# --- batches in lockstep, as far as one rank shows it ------------------------------------------------------


def test_lockstep_gives_every_batch_then_its_error(training):
    def batches():
        yield from (1, 2)
        raise DataError("part-7: damaged")

    taken = Lockstep(batches())
    assert [next(taken), next(taken)] == [1, 2]  # what is ahead of the error is not lost
    with pytest.raises(DataError, match="^part-7: damaged$"):
        next(taken)
    assert list(Lockstep([])) == [] and list(Lockstep([3])) == [3]


def test_lockstep_sees_a_request_at_once(training):
    requests = []
    taken = Lockstep([1, 2, 3], lambda: bool(requests))
    assert next(taken) == 1 and not taken.stop
    requests.append(1)
    assert taken.stop and next(taken) == 2  # the caller decides where to leave
