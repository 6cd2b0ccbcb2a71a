"""SWING's audit from files to files: broken promises, unusable input, its output, figures, the command."""

import argparse
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import polars as pl
import pytest
from pyarrow import feather

import swing
from swing import SwingError
from swing.audit import add_arguments, audit, main
from tests.helpers.audits import DEGREES, OTHER, WORLD, skip_figures, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    return write(tmp_path / "run", WORLD, DEGREES)


@pytest.fixture
def no_figures(monkeypatch):
    skip_figures(monkeypatch)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"b": [("z", 2.0)]}, "neighbours that are no id of this output: 1, first at 'b'"),
        ({"b": [("b", 2.0)]}, "neighbours that are the id itself: 1, first at 'b'"),
        ({"b": [("a", 2.0), ("a", 1.0)]}, "lists that name a neighbour twice: 1, first at 'b'"),
        ({"c": [("a", 1.0), ("b", 0.0)]}, "scores that are not positive and finite: 1, first at 'c'"),
        ({"c": [("a", 1.0), ("b", -1.0)]}, "scores that are not positive and finite: 1, first at 'c'"),
        ({"c": [("a", math.nan)]}, "scores that are not positive and finite: 1, first at 'c'"),
        ({"c": [("a", math.inf)]}, "scores that are not positive and finite: 1, first at 'c'"),
        ({"c": [("a", 1.0), ("b", 1.5)]}, "scores better than the one before: 1, first at 'c'"),
        ({"c": [("b", 1.0), ("a", 1.0)]}, "ties that are not in the order of ids: 1, first at 'c'"),
        ({"d": [("a", 1.0)]}, None),
        ({"e": [("a", 1.0)]}, "ids without edges that have neighbours: 1, first at 'e'"),
    ],
)
def test_a_broken_list_is_a_problem(tmp_path, no_figures, change, problem):
    report = audit(write(tmp_path / "run", WORLD | change, DEGREES))
    assert report["problems"] == ([problem] if problem else [])


def test_broken_rows_and_counts_are_problems(tmp_path, no_figures):
    rows = list(WORLD.items())
    swapped = audit(write(tmp_path / "swapped", [rows[1], rows[0], *rows[2:]]))
    assert swapped["problems"] == ["ids out of order: 1, first at 'a'"]
    twice = audit(write(tmp_path / "twice", [rows[0], *rows]))
    assert twice["problems"] == ["rows with an id that has another row too: 2, first at 'a'"]
    long = audit(write(tmp_path / "long", WORLD, parameters={"top_k": 1}))
    assert long["problems"] == ["lists longer than top_k 1: 2, first at 'a'"] and long["lists"]["full"] == 3
    normalised = audit(write(tmp_path / "normalised", WORLD, parameters={"normalize": True}))
    assert normalised["problems"] == [
        "lists that do not begin with score 1 though normalised: 2, first at 'a'"
    ]
    for name, value in {"ids": 6, "covered": 2, "coverage": 0.61, "neighbors": 9}.items():
        wrong = audit(write(tmp_path / name, WORLD, **{name: value}))["problems"]
        actual = {"ids": 5, "covered": 3, "coverage": 0.6, "neighbors": 5}[name]
        assert wrong == [f"manifest.json says {name} {value}, the parts hold {actual}"]
    run = write(tmp_path / "lost", WORLD, DEGREES, parts=5)
    (run / "part-00003.parquet").unlink()
    assert audit(run)["problems"] == [
        "manifest.json says ids 5, the parts hold 4",
        "manifest.json says coverage 0.6, the parts hold 0.75",
        "manifest.json says parts 5, the parts hold 4",
        "part-00003.parquet is missing",
        "degrees.arrow names other ids than the parts, or in another order",
    ]


def test_broken_degrees_are_a_problem(tmp_path, no_figures):
    report = audit(write(tmp_path / "run", WORLD, DEGREES | {"d": -1}))
    assert report["problems"] == ["degrees.arrow has degrees that are null or below 0"]
    assert report["by_degree"] == []


def test_what_cannot_be_compared(tmp_path, run):
    write(tmp_path / "numbers", {1: [(2, 1.0)], 2: []}, kind=pl.Int64)
    write(tmp_path / "users", WORLD, side="users")
    write(tmp_path / "strange", {"x": [("y", 1.0)], "y": []})
    with pytest.raises(
        SwingError, match="numbers: its ids are integers, those of the other output are strings"
    ):
        audit(run, other=tmp_path / "numbers")
    with pytest.raises(SwingError, match="run has neighbours of items, .*users of users"):
        audit(run, other=tmp_path / "users")
    with pytest.raises(SwingError, match="no id in common"):
        audit(run, other=tmp_path / "strange")
    with pytest.raises(SwingError, match="k must be 1 or more, not 0"):
        audit(run, k=0)
    with pytest.raises(SwingError, match="threshold must be a finite number, not nan"):
        audit(run, threshold=math.nan)
    assert not (tmp_path / "run-audit").exists()


def test_what_is_no_finished_output(tmp_path, run):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"rows": 3}')
    write(tmp_path / "no-parts", WORLD, parts=1)
    (tmp_path / "no-parts" / "part-00000.parquet").unlink()
    write(tmp_path / "torn", WORLD)
    (tmp_path / "torn" / "manifest.json").write_text('{"finger')
    for name, words in {
        "nowhere": "nowhere: no such folder",
        "new": "new: not finished yet .*.new.partial.*start the same `python -m swing items`",
        ".new.partial": "unfinished output; start the same `python -m swing items`",
        "empty": "empty: no output of swing .it has no manifest.json",
        "foreign": "foreign: no output of swing .its manifest.json is of another kind",
        "no-parts": "no-parts: has a manifest.json but no part",
        "torn": "torn/manifest.json: cannot be read",
    }.items():
        with pytest.raises(SwingError, match=words):
            audit(tmp_path / name)


def test_damaged_files_are_named(tmp_path, run):
    part = run / "part-00001.parquet"
    intact = part.read_bytes()
    part.write_bytes(intact[:-20])
    with pytest.raises(SwingError, match="part-00001.parquet: cannot be read"):
        audit(run)
    part.write_bytes(intact)
    (run / "degrees.arrow").write_bytes(b"ARROW1 nothing of the kind")
    with pytest.raises(SwingError, match="degrees.arrow: cannot be read"):
        audit(run)
    feather.write_feather(pl.DataFrame({"id": ["a"], "size": [1]}).to_arrow(), run / "degrees.arrow")
    with pytest.raises(
        SwingError, match="degrees.arrow: expected id and degree.*found id String, size Int64"
    ):
        audit(run)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"scores": None}, r"part-00001.parquet: no column 'scores' \(found: id, neighbors\)"),
        ({"scores": pl.col("neighbors")}, "part-00001.parquet: id, neighbors and scores have types"),
        ({"neighbors": pl.lit([[1]])}, "part-00001.parquet: id, neighbors and scores have types"),
        ({"id": pl.lit(None, pl.String)}, "part-00001.parquet: column 'id' holds nulls"),
        ({"scores": pl.lit(None, pl.List(pl.Float32))}, "part-00001.parquet: column 'scores' holds nulls"),
        ({"neighbors": pl.lit([None], pl.List(pl.String))}, "column 'neighbors' holds nulls"),
        ({"scores": pl.lit([1.0, 2.0, 3.0], pl.List(pl.Float32))}, "part-00001.parquet: .* differ in length"),
        (
            {"id": pl.lit(1), "neighbors": pl.lit([1], pl.List(pl.Int32))},
            r"parts have ids of different types \(String, Int32",
        ),
    ],
)
def test_a_part_of_another_form_is_named(run, columns, words):
    part = run / "part-00001.parquet"
    frame = pl.read_parquet(part)
    for name, value in columns.items():
        frame = frame.drop(name) if value is None else frame.with_columns(value.alias(name))
    frame.write_parquet(part)
    with pytest.raises(SwingError, match=words):
        audit(run)


def test_only_an_audit_is_overwritten(tmp_path, run, no_figures):
    other = write(tmp_path / "other", OTHER)
    for inside in (run, run / "audit", other / "deep" / "audit"):
        with pytest.raises(SwingError, match="is inside an audited folder; choose another folder"):
            audit(run, inside, other=other)
    folder = tmp_path / "mine"
    folder.mkdir()
    audit(run, folder)  # an empty folder will do
    (folder / "scores.png").write_text("of the first audit")
    assert audit(run, folder, k=3)["output"] == str(folder)
    assert [path.name for path in folder.iterdir()] == ["audit.json"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(SwingError, match="mine: exists and is no earlier audit"):
        audit(run, folder)
    assert (folder / "thesis.txt").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "scores.png").write_text("of a match")
    for foreign in (tmp_path / "photos", tmp_path / "photos" / "scores.png"):
        with pytest.raises(SwingError, match="exists and is no earlier audit"):
            audit(run, foreign)
    with pytest.raises(SwingError, match="scores.png/deep: cannot be written"):
        audit(run, tmp_path / "photos" / "scores.png" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other", "photos", "run"]


def colours(path):
    """Share of the pixels that are of each of the figures' colours."""
    image = matplotlib.image.imread(path)[..., :3]
    reference = {"blue": (0, 0x72, 0xB2), "orange": (0xD5, 0x5E, 0), "white": (255, 255, 255)}
    return {
        name: np.isclose(image, np.array(c) / 255, atol=0.02).all(-1).mean() for name, c in reference.items()
    }


def test_figures_show_something(tmp_path, run):
    other = write(tmp_path / "other", OTHER)
    audit(run, other=other, threshold=0.7)
    shares = {path.name: colours(path) for path in (tmp_path / "run-audit").glob("*.png")}
    assert sorted(shares) == ["agreement.png", "coverage.png", "popularity.png", "scores.png"]
    assert shares["coverage.png"]["blue"] > 0.1  # bars
    for name in ("coverage.png", "popularity.png", "agreement.png", "scores.png"):
        assert shares[name]["orange"] > 0.0005 and 0.3 < shares[name]["white"] < 0.97
    assert shares["agreement.png"]["blue"] > 0.001


def test_figures_without_neighbours(tmp_path):
    run = write(tmp_path / "run", {"a": [], "b": []}, {"a": 0, "b": 0})
    other = write(tmp_path / "other", {"a": [], "b": []})
    report = audit(run, other=other)
    assert report["problems"] == [] and report["thresholds"] == []
    assert report["agreement"]["overlap"] is None and report["popularity"]["gini"] is None
    assert len(list((tmp_path / "run-audit").glob("*.png"))) == 4


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(a) for a in arguments]))


def test_the_command(tmp_path, run, capsys):
    other = write(tmp_path / "other", OTHER, parameters={"seed": 1})
    flags = ["--other", other, "--output", tmp_path / "out", "-k", 2, "--threshold", 1, "--threshold", 0.7]
    assert command(run, *flags) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for words in (
        "60.0%: 3 of 5 ids have a list",
        "5 neighbours; mean 1.7 a list, median 2, longest 2, 0 full",
        "60.0% of the ids are a neighbour of another; Gini 0.48 (degrees 0.4)",
        "Spearman 0.9487",
        "80.0% of the neighbours name the id back",
        "\n2-3 2 100.0% 1.5 1.5\n",
        "\n0.7 4 80.0% 3 60.0%\n",
        "\nseed None here, 1 there\n",
        "\noverlap@2 0.5\n",
        f"audit.json and figures: {tmp_path / 'out'}",
    ):
        assert words in "\n".join(lines)
    assert "problems" not in text
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 100
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["agreement"]["k"] == 2
    assert command(write(tmp_path / "bad", WORLD, ids=7)) == 1
    assert "problems:\n  manifest.json says ids 7, the parts hold 5" in capsys.readouterr().out
    assert command(tmp_path / "nowhere") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["items", "users"])
@pytest.mark.parametrize("kind", [pl.String, pl.Int32])
def test_a_run_keeps_its_promises(tmp_path, no_figures, side, kind):
    draw = random.Random(5)
    pairs = [(int(40 * draw.random() ** 2), int(30 * draw.random() ** 2)) for _ in range(400)]
    table = pl.DataFrame(pairs, schema={"user_id": kind, "item_id": kind}, orient="row", strict=False)
    runs = {
        "swing": {},
        "pai": {"preset": "pai", "normalize": True, "min_user_items": 2},
        "cosine": {"similarity": "cosine"},
    }
    for name, options in runs.items():
        config = swing.preset(options.pop("preset", "dlrrec"), top_k=10, **options)
        manifest = swing.run(table, tmp_path / name, config, side)
        report = audit(tmp_path / name, other=tmp_path / "swing")
        assert report["problems"] == [] and report["notes"] == []
        assert report["lists"]["neighbors"] == manifest["neighbors"] > 0
        assert sum(row["edges"] for row in report["by_degree"]) == manifest["limits"]["edges_left"]
        assert (report["agreement"]["overlap"] == 1) == (name == "swing")


def test_a_part_of_another_run_is_a_problem(tmp_path, no_figures):
    table = pl.DataFrame({"user_id": list("aabbcc"), "item_id": list("xyxyxz")})
    for name, alpha in (("one", 1.0), ("two", 2.0)):
        swing.run(table, tmp_path / name, swing.preset(alpha=alpha))
    part = tmp_path / "one" / "part-00000.parquet"
    part.write_bytes((tmp_path / "two" / part.name).read_bytes())
    assert "part-00000.parquet is of another run" in audit(tmp_path / "one")["problems"]
    with part.open("ab") as file:  # as an unlucky copy might
        file.write(part.read_bytes())
    problems = audit(tmp_path / "one")["problems"]
    assert any(problem.startswith("manifest.json says bytes ") for problem in problems)


def test_no_torch_and_no_global_figures(run):
    script = (
        "import sys, swing.audit\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"swing.audit.audit({str(run)!r})\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
