"""`dlrrec experiment`: a whole table of the tiny world, killed, resumed, shared out, and bad input."""

from __future__ import annotations

import csv
import dataclasses
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config.read import with_values
from dlrrec_torchrec.experiments import cells, experiment
from dlrrec_torchrec.experiments.cells import jobs, run_here
from dlrrec_torchrec.experiments.definitions import Options
from dlrrec_torchrec.experiments.gathered import gather
from dlrrec_torchrec.experiments.measures import METRICS
from dlrrec_torchrec.experiments.papers import table1
from dlrrec_torchrec.experiments.workers import Workers
from dlrrec_torchrec.metrics import binary_metrics, sigmoid
from dlrrec_torchrec.store.errors import Unfinished
from dlrrec_torchrec.store.manifest import Manifest
from tests.helpers.threads import one_thread  # noqa: F401

ROOT = Path(__file__).parents[2]
# The papers' model, but narrow.
NARROW = "--text-tower 8 --image-tower 8 --embedding-dim 8 --dense-arch 8 8 --over-arch 8 1".split()
NARROW += ["--num-negatives", "16"]
CALL = ["experiment", "table1", "--quick", "--epochs", "2", *NARROW, "--no-progress"]
COSTS = ("seconds", "peak_mib")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished table."""
    out = tmp_path_factory.mktemp("experiment") / "table1"
    assert main([*CALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(done, tmp_path):
    """A copy of it, to change."""
    shutil.copytree(done, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def rows_of(out, name="cells.csv"):
    with open(out / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_costs(out):
    return [{key: text for key, text in row.items() if key not in COSTS} for row in rows_of(out)]


def the_jobs(out, call=CALL):
    arguments = cli_arguments(call)
    return jobs(table1(experiment.options_of(arguments)), out)


def cli_arguments(words):
    from dlrrec_torchrec.cli import build_parser

    return build_parser().parse_args(words)


# --- a whole table


def test_every_cell_is_in_the_table_with_its_costs(done):
    rows = rows_of(done)
    assert len(rows) == 18 and {row["protocol"] for row in rows} == {"paper", "strict"}
    cells_of = {(row["model"], row["inputs"], row["objective"]) for row in rows}
    assert len(cells_of) == 9 and ("V0", "text + image", "BCE") in cells_of
    for row in rows:
        assert int(row["parameters"]) > 0 and float(row["seconds"]) > 0 and float(row["peak_mib"]) > 0
        assert int(row["epochs"]) == 2
    published = {row["inputs"]: row["published_accuracy"] for row in rows if row["model"] == "V0"}
    assert published == {"text": "0.791", "image": "0.579", "text + image": "0.835"}
    text = (done / "table.md").read_text(encoding="utf-8")
    assert "## DLRREC Table 1" in text and "| accuracy | published |" in text and "0.9846" in text
    assert text.count("\n| DLRREC | ") == 12 and "no evidence" not in text and "nothing else" in text
    page = (done / "index.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "<h2>Differences</h2>" in page and "http" not in page
    assert (done / "cells.png").stat().st_size > 1000
    differences = rows_of(done, "differences.csv")
    pairs = {(row["factor"], row["level"], row["base"]) for row in differences}
    assert ("objective", "BCE + contrastive", "BCE") in pairs and ("model", "DLRREC", "V0") in pairs


def test_numbers_are_those_of_the_predictions(done):
    """The metrics of every cell once more, from its predictions."""
    by_job = {(job.group, job.cell): job for job in the_jobs(done)}
    assert len(by_job) == 18
    for job in by_job.values():
        table = pq.read_table(job.measured / "predictions.parquet").to_pydict()
        label, logit = np.array(table["label"]), np.array(table["logit"])
        expected = binary_metrics(label, sigmoid(logit), np.array(table["user"]), score=logit)
        facts = Manifest.read(job.measured).facts["test"]
        for name in ("accuracy", "fpr", "loss", "auc"):
            assert facts[name] == pytest.approx(expected[name], nan_ok=True)
        assert not job.paths.train(job.cell).exists()
        assert (job.measured / "history.jsonl").read_text().count("\n") == 2


def test_only_what_differs_is_made_twice(done):
    """Reviews, items and vectors are there once; so is what the cells of a group share."""
    groups = sorted(path.name for path in (done / "groups").iterdir())
    assert groups == ["paper", "strict"]
    assert len(list((done / "data").iterdir())) == 1
    for group in groups:
        assert all((done / "groups" / group / name).is_symlink() for name in ("reviews", "items", "cache"))


# --- going on


def test_the_same_call_trains_nothing_again(copied, monkeypatch, capsys):
    monkeypatch.setattr(cells, "train_and_measure", None)
    before = (copied / "table.md").read_text(encoding="utf-8")
    assert main([*CALL, "--out", str(copied)]) == 0
    assert "18 cells, 18 of 18 done" in capsys.readouterr().out
    assert (copied / "table.md").read_text(encoding="utf-8") == before


def test_a_changed_setting_trains_the_cells_that_it_changes(copied):
    changed = the_jobs(copied, [*CALL, "--set", "contrastive.temperature=0.5"])
    assert not any(job.done() for job in changed)  # it is a setting of all of them, used or not
    assert all(job.done() for job in the_jobs(copied))


def test_kill_9_loses_one_cell_and_leaves_no_process(done, copied):
    lost = the_jobs(copied)[-4:]
    for job in lost:
        shutil.rmtree(job.measured)
    command = [sys.executable, "-m", "dlrrec_torchrec", *CALL, "--out", str(copied), "--parallel", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 240
    while not any((job.paths.train(job.cell) / "unfinished.json").exists() for job in lost):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sum(not job.done() for job in lost)
    assert left >= 2  # none was told done that is not, and those under way are
    assert main([*CALL, "--out", str(copied)]) == 0  # refused while another process trains there
    assert without_costs(copied) == without_costs(done)


def test_processes_come_to_the_same(done, copied):
    work = the_jobs(copied)[:3]
    for job in work:
        shutil.rmtree(job.measured)
    said = []
    with Workers(2, copied) as workers:
        assert workers.run(work, said.append) == {}
    assert len(said) == 3 and said[-1].startswith("[3/3]")
    for job in work:
        own = Manifest.read(job.measured).facts
        first = Manifest.read(done / job.measured.relative_to(copied)).facts
        assert own["test"] == first["test"] and own["train"] == first["train"]


def test_a_process_that_is_killed_is_told_and_its_cell_goes_on(done, copied):
    (job,) = the_jobs(copied)[:1]
    shutil.rmtree(job.measured)
    with Workers(1, copied) as workers:
        (process,) = workers._running.values()
        threading.Timer(1.0, process.kill).start()
        with pytest.raises(
            Unfinished, match=f"'{job.title}' ended by SIGKILL.*log.txt.*the same command goes on"
        ):
            workers.run([job], str)
    assert not job.done() and run_here([job], copied, str) == {} and job.done()


def test_a_cell_that_fails_is_told_and_the_others_go_on(copied, capsys):
    """Of a rate that makes numbers overflow."""
    work = the_jobs(copied)[:2]
    work[0] = dataclasses.replace(work[0], config=with_values(work[0].config, {"train.lr": 1e30}))
    shutil.rmtree(work[1].measured)
    said = []
    failed = run_here(work, copied, said.append)
    assert list(failed) == [work[0].title] and "failed" in said[0] and work[1].done()
    with Workers(1, copied) as workers:
        assert list(workers.run(work[:1], said.append)) == [work[0].title]
    shutil.rmtree(work[0].measured)
    results = gather(table1(experiment.options_of(cli_arguments(CALL))), copied, failed, draws=10)
    assert results.missing == {work[0].title: failed[work[0].title]}


def test_shares_make_the_table_together(done, tmp_path, monkeypatch, capsys):
    out, call = tmp_path / "shared", [*CALL, "--protocol", "strict"]
    first = [*call, "--share", "0/2", "--out", str(out)]

    def other_share(_):  # what the second one waits for
        monkeypatch.undo()
        assert main(first) == 0
        assert "4 cells of other shares are not done" in capsys.readouterr().out

    monkeypatch.setattr(time, "sleep", other_share)
    assert main([*call, "--share", "1/2", "--out", str(out)]) == 0
    assert len(rows_of(out)) == 9
    strict = [row for row in without_costs(done) if row["protocol"] == "strict"]
    assert without_costs(out) == strict


# --- bad input


@pytest.mark.parametrize(
    "words, told",
    [
        (["domains"], "--data FILE FILE"),
        (["table1", "--data", "nowhere.yaml"], "--data nowhere.yaml: no such file, and no size"),
        (["table1", "--data", "tiny", "tiny"], "two are called 'tiny'"),
        (["table1", "--data", "tiny", "small", "--reviews", "x.csv"], "(--reviews) is of one source"),
        (["table1", "--quick", "--lr", "-1"], "train.lr (--lr)"),
        (["table1", "--quick", "--set", "train.lrr=1"], "unknown key 'lrr'"),
        (["table1", "--quick", "--set", "train"], "must be SECTION.KEY=VALUE"),
        (["table1", "--source", "table", "--epochs", "1"], "--reviews is missing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(words, told, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["experiment", *words, "--out", str(out)]) == 2
    assert told in capsys.readouterr().err
    assert not list(out.rglob("manifest.json"))


@pytest.mark.parametrize("share", ["2/2", "1", "a/b", "-1/2", "1/0"])
def test_shares_that_cannot_be(share, capsys):
    with pytest.raises(SystemExit):
        main(["experiment", "table1", f"--share={share}"])
    assert "is not K/N" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    assert main([*CALL, "--out", str(tmp_path / "out")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_what_lies_in_the_way_is_not_replaced(copied, capsys):
    link = copied / "groups" / "paper" / "reviews"
    link.unlink()
    link.mkdir()
    (link / "mine.txt").write_text("x")
    assert main([*CALL, "--out", str(copied)]) == 2
    assert "is in the way" in capsys.readouterr().err and (link / "mine.txt").exists()


def test_cells_that_ask_for_pictures_of_data_without_any(tmp_path, capsys):
    """Told before anything is trained, with a way out that works."""
    reviews = tmp_path / "own.csv"
    lines = [f"u{n // 10},i{n % 10},{1 + n * n % 5},soup and bread {n}" for n in range(160)]
    reviews.write_text("\n".join(["user,item,rating,text", *lines]) + "\n")
    call = [*CALL, "--protocol", "strict", "--out", str(tmp_path / "out"), "--source", "table"]
    call += [
        "--reviews",
        str(reviews),
        "--columns",
        *(f"{n}={n}" for n in ("user", "item", "rating", "text")),
    ]
    assert main(call) == 2
    told = capsys.readouterr().err
    assert "'table' has no item_image, which 6 of 9 cells ask for (bce-image," in told
    assert not (tmp_path / "out" / "groups" / "strict" / "cells").exists()
    way_out = shlex.split(re.search(r"--set '[^']*'", told)[0])
    assert main([*call, *way_out]) == 0
    assert {row["inputs"] for row in rows_of(tmp_path / "out")} == {"text"}


def test_all_sources_are_read_before_any_is_worked_on(tmp_path, capsys):
    """Of several data, one that cannot be read is told before hours of work on the first."""
    unsaid, absent, empty = (tmp_path / f"{name}.yaml" for name in ("unsaid", "absent", "empty"))
    empty.write_text("\n")
    unsaid.write_text("ingest: {source: table}\n")
    absent.write_text("ingest: {source: table, reviews: nowhere.csv}\n")
    call = ["experiment", "domains", "--quick", "--no-progress", "--out", str(tmp_path / "out")]
    assert main([*call, "--data", "tiny", str(unsaid)]) == 2
    told = capsys.readouterr().err
    assert f"--data {unsaid}: ingest.reviews is missing; write it into that file" in told
    assert main([*call, "--data", "tiny", str(empty)]) == 2
    assert f"--data {empty}: is empty; name data in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*call, "--data", "tiny", str(absent)]) == 2
    assert "nowhere.csv" in capsys.readouterr().err and not (tmp_path / "out" / "groups").exists()


def test_the_call_on_the_pages_can_be_typed_again():
    words = ["experiment", "mmrec", "--data", "tiny", "--quick", "--seeds", "2", "--protocol", "paper"]
    words += ["--lr", "0.1", "--over-arch", "8", "1", "--set", "swing.alpha=null", "prepare.text=mean"]
    again = shlex.split(experiment.command_text(cli_arguments([*words, "--parallel", "2", "--out", "x"])))
    assert again[0] == "dlrrec" and "--parallel" not in again and "x" not in again
    first, second = (experiment.options_of(cli_arguments(call)) for call in (words, again[1:]))
    assert dataclasses.replace(first, given=()) == dataclasses.replace(second, given=())
    assert set(first.given) == set(second.given)


def test_options_of_a_call():
    options = experiment.options_of(cli_arguments(["experiment", "table1", "--lr", "0.1", "--seeds", "3"]))
    assert isinstance(options, Options) and list(options.data) == ["small"] and options.seeds == 3
    assert options.given == ("train.lr",) and options.data["small"].train.lr == 0.1
    assert set(METRICS) >= set(table1(options).metrics)
    assert all(group.config.train.lr == 0.1 for group in table1(options).groups)
    words = ["experiment", "table1", "--quick", "--set", "model.tables.category.dtype=fp16"]
    assert experiment.options_of(cli_arguments(words)).given == ("model.tables",)
    words = ["experiment", "table1", "--config", str(ROOT / "configs" / "zomato.yaml")]
    assert list(experiment.options_of(cli_arguments(words)).data) == ["zomato"]
