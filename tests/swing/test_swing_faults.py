"""SWING where things go wrong: killed, torn files, no room, folders that are someone else's."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import swing
from swing import output, parts

ROOT = Path(__file__).parents[2]
COST = 3000  # gives this table some ten parts


@pytest.fixture(scope="module")
def table():
    draw = random.Random(5)
    pairs = [(draw.randrange(90), f"i{int(60 * draw.random() ** 2)}") for _ in range(1500)]
    return pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_COST", COST)


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    """(manifest, files) of a run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_COST", COST)
        folder = tmp_path_factory.mktemp("whole") / "out"
        manifest = swing.run(table, folder)
    assert manifest["parts"] >= 8
    return manifest, files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def assert_same(folder: Path, report: dict, finished: tuple[dict, dict]) -> None:
    """Every file, and every fact but those of the attempt."""
    manifest, expected = finished
    attempt = {"seconds", "edges_per_second", "peak_memory_mib", "workers", "parts_resumed", "threads"}
    assert files(folder) == expected
    assert json.loads((folder / "manifest.json").read_text()) == report
    assert {k: v for k, v in report.items() if k not in attempt} == {
        k: v for k, v in manifest.items() if k not in attempt
    }
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


class Stop(Exception):
    pass


def stopped(table: pl.DataFrame, folder: Path, after: int = 3) -> Path:
    """Stop a run when so many parts are written; returns its folder of parts."""
    partial = folder.parent / f".{folder.name}.partial"

    def progress(step):
        if len(list(partial.glob("part-*.parquet"))) >= after:
            raise Stop

    with pytest.raises(Stop):
        swing.run(table, folder, progress=progress)
    return partial


WAITS = """
import sys, threading
from pathlib import Path
import swing
from swing import parts

parts.PART_COST = int(sys.argv[3])
partial = Path(sys.argv[2]).parent / ".out.partial"

def progress(done):
    if len(list(partial.glob("part-*.parquet"))) >= 2:
        print("two parts", flush=True)
        threading.Event().wait()

swing.run(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_run_goes_on_and_holds_its_folder_until_then(tmp_path, table, finished):
    table.write_parquet(tmp_path / "rows.parquet")
    folder = tmp_path / "job" / "out"
    command = [sys.executable, "-c", WAITS, tmp_path / "rows.parquet", folder, str(COST)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "two parts\n"
        with pytest.raises(swing.SwingError, match=rf"out: another run is writing it \(.*-{run.pid}\)"):
            swing.run(table, folder)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert not folder.exists()
    report = swing.run(tmp_path / "rows.parquet", folder)
    assert 2 <= report["parts_resumed"] < report["parts"]
    assert_same(folder, report, finished)


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_run_goes_on(tmp_path, table, finished, after):
    partial = stopped(table, tmp_path / "out", after)
    written_before = {path.name: path.stat().st_mtime_ns for path in partial.glob("part-*.parquet")}
    steps = []
    report = swing.run(table, tmp_path / "out", progress=steps.append)
    assert report["parts_resumed"] == len(written_before) >= after
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written_before} == written_before
    assert sum(step["steps"] for step in steps) == steps[0]["total_steps"]
    assert 0 < sum(step["steps"] for step in steps if step["resumed"]) < steps[0]["total_steps"]
    assert_same(tmp_path / "out", report, finished)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_job(path: Path) -> None:
    """The same ids with other neighbours."""
    rows = pl.read_parquet(path)
    note = {"job": "another", "begin": 0, "end": len(rows), "covered": 0, "neighbors": 0, "pair_updates": 0}
    parts.write(rows.to_arrow(), path, json.dumps(note))


def without_a_note(path: Path) -> None:
    pl.read_parquet(path).write_parquet(path)


def another_part(path: Path) -> None:
    shutil.copy(max(path.parent.glob("part-*.parquet")), path)


@pytest.mark.parametrize("tear", [cut, empty, of_another_job, without_a_note, another_part])
def test_a_torn_part_is_written_again(tmp_path, table, finished, tear):
    partial = stopped(table, tmp_path / "out")
    count = len(list(partial.glob("part-*.parquet")))
    tear(partial / "part-00000.parquet")
    (partial / ".part-00005.parquet.elsewhere-1.tmp").write_bytes(b"PAR1 half of it")
    report = swing.run(table, tmp_path / "out")
    assert report["parts_resumed"] == count - 1
    assert_same(tmp_path / "out", report, finished)


def refuses(function, error: int, after: int):
    """`function` that, from its call number `after` on, fails as a disk does."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(error, os.strerror(error))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_is_needed_and_the_run_goes_on(tmp_path, table, finished, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr(parts.os, "fsync", refuses(os.fsync, error, 4))
        with pytest.raises(swing.SwingError) as caught:
            swing.run(table, tmp_path / "out", threads=1)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/out: no room to write ({os.strerror(error)}): ")
    assert f"of {finished[0]['parts']} parts are in {tmp_path}/.out.partial, the rest needs about" in message
    assert "the same command continues" in message
    assert not (tmp_path / "out").exists() and not list((tmp_path / ".out.partial").glob("*.tmp"))
    report = swing.run(table, tmp_path / "out")
    assert report["parts_resumed"] >= 1
    assert_same(tmp_path / "out", report, finished)


def test_no_room_from_the_start(tmp_path, table, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parts.os, "fsync", refuses(os.fsync, errno.ENOSPC, 1))
        with pytest.raises(swing.SwingError, match=r"0 of \d+ parts .* needs 0 MiB at most"):
            swing.run(table, tmp_path / "out")
        patch.setattr(parts.os, "fsync", refuses(os.fsync, errno.ENOSPC, 0))
        with pytest.raises(swing.SwingError, match="no room to write"):
            swing.run(table, tmp_path / "out")


def test_a_limit_of_the_system_ends_the_command(tmp_path, table, finished):
    """Refused by the kernel: no file may grow beyond 2000 bytes."""
    table.write_parquet(tmp_path / "rows.parquet")
    command = [sys.executable, "-m", "swing", "items", "--input", tmp_path / "rows.parquet"]
    result = subprocess.run(
        [*command, "--output", tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert result.returncode == 2, result.stderr
    assert "out: no room to write (File too large): 0 of 1 parts" in result.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.parquet.*"))


@pytest.mark.parametrize("step", ["output.rename(old)", "partial.rename(output)"])
def test_a_crash_between_the_renames_loses_nothing(tmp_path, table, finished, monkeypatch, step):
    """Of a run that overwrites another's output."""
    folder = tmp_path / "out"
    swing.run(table, folder, swing.preset("recfarm"))
    rename, crash_at = Path.rename, folder if step == "output.rename(old)" else tmp_path / ".out.partial"

    def crash(path, target):
        if path == crash_at:
            raise Stop
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(Stop):
        swing.run(table, folder, overwrite=True)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PART_COST", COST)
    assert not folder.exists() or json.loads((folder / "manifest.json").read_text())["bytes"] > 0
    report = swing.run(table, folder, overwrite=True)
    assert report["parts_resumed"] == report["parts"] and report["edges_per_second"] == 0
    assert_same(folder, report, finished)


def test_what_swing_did_not_write_is_never_touched(tmp_path, table):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(swing.SwingError, match=f"{name}: exists and is no output of swing"):
            swing.run("input that is not even looked for", tmp_path / name, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
    (tmp_path / "empty").mkdir()
    swing.run(table, tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").exists()


def test_a_folder_that_came_in_the_meantime_is_not_replaced(tmp_path, table):
    def progress(step):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(swing.SwingError, match="out: exists and is no output of swing"):
        swing.run(table, tmp_path / "out", progress=progress)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_an_output_that_lost_a_part_is_not_taken_for_whole(tmp_path, table, finished):
    swing.run(table, tmp_path / "out")
    cut(tmp_path / "out" / "part-00002.parquet")
    with pytest.raises(swing.SwingError, match="out: its parts are not those of its manifest; overwrite it"):
        swing.run(table, tmp_path / "out")
    (tmp_path / "out" / "part-00002.parquet").unlink()
    with pytest.raises(swing.SwingError, match="its parts are not those of its manifest"):
        swing.run(table, tmp_path / "out")
    assert_same(tmp_path / "out", swing.run(table, tmp_path / "out", overwrite=True), finished)


def test_parts_of_another_job_are_neither_taken_nor_thrown_away(tmp_path, table, finished):
    partial = stopped(table, tmp_path / "out")
    count = len(list(partial.glob("part-*.parquet")))
    with pytest.raises(swing.SwingError, match=f"out.partial: {count} parts of an unfinished run"):
        swing.run(table, tmp_path / "out", swing.preset("recfarm"))
    assert len(list(partial.glob("part-*.parquet"))) == count
    report = swing.run(table, tmp_path / "out", swing.preset("recfarm"), overwrite=True)
    assert report["parts_resumed"] == 0 and files(tmp_path / "out") != finished[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_parents_that_are_files_or_missing(tmp_path, table):
    (tmp_path / "file").write_text("")
    with pytest.raises(swing.SwingError, match="file/out: cannot be written"):
        swing.run(table, tmp_path / "file" / "out")
    swing.run(table, tmp_path / "new" / "deep" / "out")
    assert (tmp_path / "new" / "deep" / "out" / "manifest.json").exists()


def test_a_folder_without_permission_is_named(tmp_path, table, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(output.os, "open", refuses(os.open, errno.EACCES, 0))
        with pytest.raises(swing.SwingError, match="out: cannot be written: .*Permission denied"):
            swing.run(table, tmp_path / "out")


def test_storage_without_locks_is_warned_of(tmp_path, table, finished, monkeypatch):
    monkeypatch.setattr(output.fcntl, "flock", refuses(None, errno.ENOLCK, 0))
    report = swing.run(table, tmp_path / "out")
    assert report["warnings"] == [f"{tmp_path} has no file locks: never write one output by two runs at once"]
    assert files(tmp_path / "out") == finished[1]
