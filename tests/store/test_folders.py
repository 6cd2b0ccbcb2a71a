"""What the stages did not write is never replaced or deleted, and is refused before any work is done."""

import json
import os
import threading
from pathlib import Path

import pytest

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import ContrastiveConfig, IngestConfig, ModelConfig, TrainConfig, load_config
from dlrrec_torchrec.ingest.stage import ingest
from dlrrec_torchrec.stages import STAGES, run
from dlrrec_torchrec.store import folders
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import UNFINISHED, atomic_folder, check_output, remove_own, stage_of
from dlrrec_torchrec.store.manifest import Manifest, stage_output
from dlrrec_torchrec.store.paths import run_paths
from dlrrec_torchrec.training.stage import train
from tests.helpers.shards import write_shards

CSV = "user,item,rating\n" + "".join(f"u{k % 5},i{k},5\n" for k in range(40))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def precious(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    return folder


def test_a_run_in_the_folder_of_the_source_leaves_everything(tmp_path, monkeypatch, capsys):
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "reviews.csv").write_text(CSV)
    precious(tmp_path / "items")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    columns = ["--columns", "user=user", "item=item", "rating=rating"]
    arguments = ["--source", "table", "--reviews", "reviews/reviews.csv", *columns, "--run-dir"]
    for command in (["ingest"], ["run"], ["run", "--force"]):
        assert main([*command, *arguments, "."]) == 2
        message = capsys.readouterr().err
        assert "reviews: is where the stage 'ingest' writes" in message and "--run-dir" in message
        assert contents(tmp_path) == before
    assert main(["ingest", *arguments, "elsewhere"]) == 0  # the way out that the message names
    assert contents(tmp_path / "reviews") == {"reviews.csv": CSV.encode()}


def test_items_are_refused_even_where_the_source_has_none(tmp_path):
    (tmp_path / "r.csv").write_text(CSV)
    kept = contents(precious(tmp_path / "run" / "items"))
    columns = {"user": "user", "item": "item", "rating": "rating"}
    config = IngestConfig(source="table", reviews=str(tmp_path / "r.csv"), columns=columns)
    with pytest.raises(DataError, match="items: is where the stage 'ingest-items' writes"):
        ingest(config, tmp_path / "run" / "reviews", tmp_path / "run" / "items")
    assert contents(tmp_path / "run" / "items") == kept and not (tmp_path / "run" / "reviews").exists()


def test_a_source_in_the_stages_own_folder_is_refused(tmp_path):
    (tmp_path / "r.csv").write_text(CSV)
    columns = {"user": "user", "item": "item", "rating": "rating"}
    config = IngestConfig(source="table", reviews=str(tmp_path / "r.csv"), columns=columns)
    ingest(config, tmp_path / "reviews", tmp_path / "items")
    inside = tmp_path / "reviews" / "r.csv"
    inside.write_text(CSV + "u9,i9,5\n")
    config.reviews = str(inside)
    with pytest.raises(DataError, match="r.csv: lies in .*reviews, which this stage replaces"):
        ingest(config, tmp_path / "reviews", tmp_path / "items")
    assert inside.read_text() == CSV + "u9,i9,5\n"


def outputs(root: Path) -> dict[str, Path]:
    paths = run_paths(root)[0]
    places = {"ingest": paths.items, "split": paths.split, "extract": paths.content, "swing": paths.swing}
    places |= {"prepare": paths.shards, "train": paths.train("bce"), "evaluate": paths.evaluation}
    return places | {"refit": paths.final, "report": paths.report}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_a_foreign_folder_first(tmp_path, capsys, stage):
    """No input exists here: a stage that looked at those first would complain of them instead."""
    folder = precious(outputs(tmp_path)[stage])
    (folder / "checkpoints").mkdir()
    (folder / "plan.json").write_text("{}")
    (folder / "manifest.json").write_text('{"name": "an application", "stage": "another"}')
    before = contents(tmp_path)
    for command in ([stage], ["run", "--until", stage], ["run", "--force"]):
        assert main([*command, "--run-dir", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert f"{folder}: is where the stage" in message and "give another --run-dir" in message
        assert contents(tmp_path) == before


def test_force_deletes_what_the_stages_wrote_and_nothing_else(tmp_path, monkeypatch):
    config = load_config(None, {"ingest.size": "tiny"})
    run(config, tmp_path, until="split", say=lambda line: None)
    (tmp_path / "reviews" / "old").write_text("of the last run")
    interrupted = tmp_path / "train" / "of an older configuration"
    interrupted.mkdir(parents=True)
    (interrupted / UNFINISHED).write_text('{"stage": "train"}')
    kept = [
        precious(tmp_path / "train" / "mine"),
        precious(tmp_path / "report"),
        precious(tmp_path / "cache"),
    ]
    run(config, tmp_path, until="split", force=True, say=lambda line: None)
    assert not (tmp_path / "reviews" / "old").exists() and not interrupted.exists()
    assert Manifest.read(tmp_path / "split").stage == "split"
    assert all((folder / "thesis.txt").exists() for folder in kept)


def test_a_training_takes_only_a_free_folder_or_a_trainings(tmp_path):
    shards = write_shards(tmp_path / "shards", rows=(40, 20, 20), users=8, items=8)
    settings = TrainConfig(epochs=1, batch_size=20, device="cpu")

    def run(out: Path, **changes) -> Manifest:
        changed = TrainConfig(**(vars(settings) | changes))
        return train(ModelConfig(), ContrastiveConfig(num_negatives=4), changed, "strict", shards, out)

    out = precious(tmp_path / "out")
    (out / "checkpoints").mkdir()
    for resume in (True, False):
        with pytest.raises(DataError, match="out: is where the stage 'train' writes"):
            run(out, resume=resume)
    assert (out / "thesis.txt").exists()

    free = tmp_path / "free"
    free.mkdir()
    run(free)
    (free / "manifest.json").unlink()  # as a training that was interrupted
    assert json.loads((free / UNFINISHED).read_text()) == {"stage": "train"}
    (free / "trace").write_text("of the first run")
    run(free)
    assert (free / "trace").exists()  # it went on
    (free / "manifest.json").unlink()
    run(free, lr=0.5)  # another training: its folder begins again
    assert not (free / "trace").exists() and Manifest.read(free).config["train"]["lr"] == 0.5


def test_what_appears_while_a_stage_runs_stays(tmp_path):
    with (
        pytest.raises(DataError, match="out: is where the stage 's' writes"),
        stage_output(Manifest("s", {}, {}), tmp_path / "out"),
    ):
        precious(tmp_path / "out")
    assert contents(tmp_path) == {"out/thesis.txt": b"years of work"}


def test_whose_folder_it_is(tmp_path):
    assert stage_of(tmp_path / "none") is None and stage_of(tmp_path) is None
    check_output(tmp_path / "none", "s")
    check_output(tmp_path, "s")  # empty
    for text in ("{", "[]", '{"stage": 3}', "\udcff"):
        (tmp_path / "manifest.json").write_bytes(os.fsencode(text))
        assert stage_of(tmp_path) is None
        assert Manifest("s", {}, {}).current(tmp_path) is None
        with pytest.raises(DataError):
            check_output(tmp_path, "s")
    Manifest("s", {}, {}).write(tmp_path)
    check_output(tmp_path, "s")
    with pytest.raises(DataError, match="no manifest.json of 'other'"):
        check_output(tmp_path, "other")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DataError), atomic_folder(file, "s"):
        pass
    remove_own(file, "s")
    remove_own(tmp_path, "other")
    assert file.read_text() == "mine"
    remove_own(tmp_path, "s")
    assert not tmp_path.exists() and folders.stage_of(tmp_path) is None


def test_a_users_folder_that_looks_temporary_stays(tmp_path):
    for name in (".reviews.tmp-mybackup", ".reviews.old-2024b"):
        (tmp_path / name).mkdir()
    (tmp_path / ".reviews.tmp-99999999").mkdir()  # of a process that was killed
    with atomic_folder(tmp_path / "reviews", "ingest") as folder:
        (folder / "x").write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".reviews.old-2024b",
        ".reviews.tmp-mybackup",
        "reviews",
    ]


def test_a_folder_is_held_by_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_HELD_SECONDS", 0.2)
    assert folders.hold(tmp_path / "none", "is being trained") is None
    held = folders.hold(tmp_path, "is being trained")
    with pytest.raises(DataError, match="is being trained in another process; .* --run-dir"):
        folders.hold(tmp_path, "is being trained")
    os.close(held)
    again = folders.hold(tmp_path, "is being trained")
    assert again is not None
    os.close(again)


def test_a_folder_counts_as_held_only_after_a_moment(tmp_path):
    """A killed process's workers end a little later than it does."""
    held = folders.hold(tmp_path, "is being trained")
    threading.Timer(0.5, os.close, (held,)).start()
    again = folders.hold(tmp_path, "is being trained")
    assert again is not None
    os.close(again)


def test_a_training_that_another_process_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_HELD_SECONDS", 0.2)
    shards = write_shards(tmp_path / "shards", rows=(60, 30, 10), users=10, items=8)

    def trained(epochs):
        settings = TrainConfig(epochs=epochs, batch_size=30, device="cpu")
        return train(ModelConfig(), ContrastiveConfig(), settings, "strict", shards, tmp_path / "out")

    trained(1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    held = folders.hold(tmp_path / "out", "is being trained")
    with pytest.raises(DataError, match="out: is being trained in another process"):
        trained(2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    os.close(held)
    assert trained(2).facts["epochs"] <= 2
