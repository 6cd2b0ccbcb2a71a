"""Whose the folder of an experiment's results is, and who works in it."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.config import IngestConfig, RunConfig
from dlrrec_torchrec.experiments.definitions import Cell, Experiment, Group
from dlrrec_torchrec.experiments.results_folder import MARK, default_folder, results_folder
from dlrrec_torchrec.store import folders
from dlrrec_torchrec.store.errors import DataError


def an_experiment(name="table1", **data_of):
    """Groups "strict" of the data "small", or as given: name of a group -> its data."""
    groups = tuple(
        Group(group, {"data": data}, RunConfig(), (Cell("bce", {}),))
        for group, data in (data_of or {"strict": "small"}).items()
    )
    return Experiment(name, "", "", groups, ("auc",), ("auc",), ())


def on_file(reviews):
    """The experiment on data of one form, in a file of this name."""
    group = an_experiment(strict="table").groups[0]
    config = dataclasses.replace(group.config, ingest=IngestConfig(source="table", reviews=reviews))
    return dataclasses.replace(an_experiment(), groups=(dataclasses.replace(group, config=config),))


def contents(folder):
    """File -> its bytes, of all that is in the folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folders, "_HELD_SECONDS", 0.2)


def test_the_same_experiment_goes_on_and_may_get_more_groups(tmp_path):
    out = tmp_path / "a" / "b"
    for groups in ({"strict": "small"}, {"strict": "small", "paper": "small"}, {"strict": "small"}):
        with results_folder(out, an_experiment(**groups)):
            pass
    assert json.loads((out / MARK).read_text())["groups"] == {"strict": "small", "paper": "small"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (an_experiment("mmrec"), "holds the experiment 'table1', not 'mmrec'"),
        (an_experiment(strict="zomato"), "holds 'strict' trained on 'small', not on 'zomato'"),
        (an_experiment(paper="small", strict="zomato"), "not on 'zomato'"),
    ],
)
def test_results_of_another_experiment_or_other_data_are_not_replaced(other, told, tmp_path):
    with results_folder(tmp_path, an_experiment()):
        (tmp_path / "table.md").write_text("days of work")
    before = contents(tmp_path)
    with pytest.raises(DataError, match=f"{told}.*another --out"), results_folder(tmp_path, other):
        pytest.fail("it was let in")
    assert contents(tmp_path) == before


def test_two_files_of_one_form_are_two_data(tmp_path):
    for path in ("here/a.csv", "/from/elsewhere/a.csv"):
        with results_folder(tmp_path, on_file(path)):
            pass
    told = r"trained on 'table \(a.csv\)', not on 'table \(b.csv\)'"
    with pytest.raises(DataError, match=told), results_folder(tmp_path, on_file("here/b.csv")):
        pytest.fail("it was let in")


def test_a_folder_of_anything_else_is_not_used(tmp_path):
    (tmp_path / "config.yaml").write_text("protocol: strict\n")
    with (
        pytest.raises(DataError, match="no results of an experiment"),
        results_folder(tmp_path, an_experiment()),
    ):
        pytest.fail("it was let in")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("text", ["", "[]", '{"name": "table1"}', '{"name": "table1", "groups": 3}'])
def test_a_damaged_mark_is_told(text, tmp_path):
    (tmp_path / MARK).write_text(text)
    with pytest.raises(DataError, match="damaged"), results_folder(tmp_path, an_experiment()):
        pytest.fail("it was let in")


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ((0, 1), (0, 1), False),
        ((0, 1), (0, 2), False),
        ((1, 2), (0, 1), False),
        ((1, 2), (1, 2), False),
        ((0, 2), (1, 2), True),
    ],
)
def test_two_calls_do_not_work_on_the_same_cells(first, second, together, tmp_path, impatient):
    with results_folder(tmp_path, an_experiment(), first):
        if together:
            with results_folder(tmp_path, an_experiment(), second):
                pass
        else:
            with pytest.raises(DataError, match="in another process"):
                with results_folder(tmp_path, an_experiment(), second):
                    pytest.fail("it was let in")
    with results_folder(tmp_path, an_experiment(), second):  # once the first has ended
        pass


def test_a_share_may_begin_while_another_one_makes_the_folder(tmp_path):
    (tmp_path / ".shares" / "0-of-2").mkdir(parents=True)
    with results_folder(tmp_path, an_experiment(), (1, 2)):
        assert (tmp_path / MARK).exists()


def test_other_data_have_another_folder_by_default():
    def told(*data, usual="small", quick=False):
        return os.fspath(default_folder("table1", list(data), usual, quick))

    assert told("small") == "runs/table1" and told("zomato") == "runs/table1-zomato"
    assert told("tiny", usual="tiny", quick=True) == "runs/table1-quick"
    assert told("zomato", usual="tiny", quick=True) == "runs/table1-zomato-quick"
    assert told("zomato", "small") == "runs/table1"  # whose groups have the data's names


@pytest.mark.parametrize(
    "words",
    [
        ["experiment", "table1", "--quick", "--out", "file/x"],
        ["experiment", "table1", "--quick", "--out", "x" * 300],
        ["ingest", "--source", "synthetic", "--size", "tiny", "--run-dir", "file/x"],
        ["split", "--run-dir", "x" * 300],
    ],
)
def test_a_folder_that_cannot_be_made_is_told(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert words[-1] in told and "name another" in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_call_on_other_data_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    """The table of one call is not replaced by the next one's, whatever is left to be the default."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "table1-quick"
    with results_folder(out, an_experiment(strict="tiny")):
        (out / "table.md").write_text("a table")
    call = ["experiment", "table1", "--quick", "--protocol", "strict", "--no-progress"]
    assert main([*call, "--data", "small", "--out", str(out)]) == 2
    assert "trained on 'tiny', not on 'small'" in capsys.readouterr().err
    assert (out / "table.md").read_text() == "a table"
