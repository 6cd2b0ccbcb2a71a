"""SWING from files to files: inputs, errors, the command, resuming."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import swing
from swing import job

DRAW = random.Random(8)
PAIRS = [(f"u{DRAW.randrange(9)}", f"i{int(7 * DRAW.random() ** 1.5)}") for _ in range(40)]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    return pl.DataFrame(PAIRS, schema=["user_id", "item_id"], orient="row").with_columns(rating=pl.lit(4.0))


@pytest.fixture(scope="module")
def wanted(table):
    return swing.similar(table)


def test_every_form_of_input_gives_the_same(tmp_path, table, wanted):
    folder = tmp_path / "hive"
    for number, piece in enumerate((table[:25], table[25:])):
        (folder / f"day={number}").mkdir(parents=True)
        piece.write_parquet(folder / f"day={number}" / "a.parquet")
    table.write_parquet(tmp_path / "whole.parquet")
    table.write_csv(tmp_path / "rows.csv")
    table.write_csv(tmp_path / "rows.tsv", separator="\t")
    named = table.rename({"user_id": "who", "item_id": "what"})
    for source in (folder, tmp_path / "whole.parquet", tmp_path / "rows.csv", tmp_path / "rows.tsv"):
        assert swing.similar(source).equals(wanted), source
    assert swing.similar(str(folder / "*" / "*.parquet")).equals(wanted)
    assert swing.similar(table.lazy()).equals(wanted)
    assert swing.similar(table.cast({"item_id": pl.Categorical})).equals(wanted)
    assert swing.similar(named, user="who", item="what").equals(wanted)


def test_integer_ids_stay_integers_and_sort_as_numbers(table, wanted):
    numbers = table.with_columns(
        pl.col("user_id").str.slice(1).cast(pl.Int64), pl.col("item_id").str.slice(1).cast(pl.Int16) + 8
    )
    found = swing.similar(numbers)
    assert found.schema == {"id": pl.Int16, "neighbors": pl.List(pl.Int16), "scores": pl.List(pl.Float32)}
    assert found["id"].to_list() == sorted(found["id"].to_list())
    assert found["neighbors"].to_list() == [[8 + int(j[1:]) for j in row] for row in wanted["neighbors"]]


def test_text_ids_keep_their_zeros(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\n01,007\n01,7\n1,007\n1,7\n")
    found = swing.similar(tmp_path / "a.csv")
    assert dict(zip(found["id"], found["neighbors"].to_list(), strict=True)) == {"007": ["7"], "7": ["007"]}


def test_null_ids_are_left_out_and_counted(table, wanted):
    dirty = pl.concat(
        [table, pl.DataFrame({"user_id": [None, "u1"], "item_id": ["i1", None], "rating": [1.0, 1.0]})]
    )
    read = swing.read(dirty)
    assert read.facts["null_rows"] == 2 and read.facts["rows"] == 42
    assert read.facts["duplicate_rows"] == 40 - len(set(PAIRS))
    assert swing.similar(dirty).equals(wanted)


def rows(*pairs):
    return pl.DataFrame(pairs, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (rows(), "no interactions"),
        (rows((None, "a"), ("b", None)), "all 2 have a null id"),
        (rows(("a", "x"), ("a", "y")), r"only one of the users \('a'\).*two users"),
        (rows(("a", "x"), ("b", "x")), r"only one of the items \('x'\)"),
        (rows(("a", "x"), ("b", "y")), "limits dropped all 2 interactions.*lower min_user_items"),
        (rows(("a", "x")).rename({"item_id": "sku"}), r"no column 'item_id' \(found: user_id, sku\)"),
        (rows(("a", "x")).with_columns(item_id=pl.lit(1.5)), "'item_id' has type Float64"),
        ("nowhere/at-all.parquet", "nowhere/at-all.parquet: no such file"),
        ("nowhere/*.csv", "no such file"),
        (__file__, r"expected .parquet, .csv or .tsv, not '.py'"),
        (Path(__file__).parent, "no .parquet, .csv or .tsv file in this folder"),
    ],
)
def test_unusable_input_says_what_is_wrong(source, words):
    with pytest.raises(swing.SwingError, match=words):
        swing.similar(source)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(swing.SwingError, match="bad.parquet: cannot be read"):
        swing.similar(tmp_path / "bad.parquet")


def test_run_writes_parts_and_manifest(tmp_path, table, wanted, monkeypatch):
    monkeypatch.setattr(job, "PART_IDS", 3)
    steps = []
    report = swing.run(table, tmp_path / "out", progress=lambda done: steps.append(done))
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [p.name for p in parts] == [f"part-{n:05d}.parquet" for n in range(report["parts"])]
    assert report["parts"] == 3
    assert pl.read_parquet(parts).equals(wanted)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert report["ids"] == 7 and report["parameters"]["top_k"] == 100
    assert report["coverage"] == pytest.approx(wanted["neighbors"].list.len().gt(0).mean(), abs=1e-6)
    assert report["neighbors"] == wanted["neighbors"].list.len().sum()
    assert sum(s["steps"] for s in steps) == steps[0]["total_steps"] > 0
    assert sum(s["edges"] for s in steps) == steps[0]["total_edges"]


def test_a_finished_run_is_kept_and_another_is_refused(tmp_path, table):
    first = swing.run(table, tmp_path / "out")
    before = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    again = swing.run(table, tmp_path / "out", threads=1)
    assert again == first | {"reused": True}
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == before
    config = swing.preset("recfarm")
    with pytest.raises(swing.SwingError, match="another run's output.*overwrite"):
        swing.run(table, tmp_path / "out", config)
    assert swing.run(table, tmp_path / "out", config, overwrite=True)["fingerprint"] != first["fingerprint"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(swing.SwingError, match="no output of swing"):
        swing.run(table, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_stopped_run_goes_on_at_the_first_missing_part(tmp_path, table, wanted, monkeypatch):
    monkeypatch.setattr(job, "PART_IDS", 2)
    written, write = [], job.pq.write_table

    def stops(*arguments, **options):
        if len(written) == 2:
            Path(arguments[1]).write_bytes(b"PAR1 half of it")
            raise KeyboardInterrupt
        written.append(arguments[1])
        write(*arguments, **options)

    monkeypatch.setattr(job.pq, "write_table", stops)
    with pytest.raises(KeyboardInterrupt):
        swing.run(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(job.pq, "write_table", lambda *a, **o: (written.append(a[1]), write(*a, **o)))
    report = swing.run(table, tmp_path / "out")
    assert len(written) == report["parts"] == 4  # the first two were not written again
    assert report["parts_resumed"] == 2
    assert pl.read_parquet(sorted((tmp_path / "out").glob("part-*.parquet"))).equals(wanted)


def test_parts_of_another_job_are_not_taken_up(tmp_path, table, wanted, monkeypatch):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "plan.json").write_text('{"fingerprint": "of another job"}')
    (partial / "part-00000.parquet").write_bytes(b"not ours")
    swing.run(table, tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "part-00000.parquet").equals(wanted)


def test_an_unwritable_output_is_named(tmp_path, table):
    (tmp_path / "file").write_text("")
    with pytest.raises(swing.SwingError, match="file/out: cannot be written"):
        swing.run(table, tmp_path / "file" / "out")


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "swing", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path, table, wanted):
    assert len(wanted) == 7 and wanted["scores"].list.n_unique().max() >= 3
    table.write_csv(tmp_path / "rows.csv")
    done = command("items", "--input", tmp_path / "rows.csv", "--output", tmp_path / "out", "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert "edges/s" in done.stderr
    assert json.loads(done.stdout)["ids"] == 7
    assert pl.read_parquet(tmp_path / "out" / "part-00000.parquet").equals(wanted)


def test_the_command_explains_itself_and_its_errors(tmp_path, capsys):
    from swing.__main__ import main

    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("items", "users", "--preset", "flink", "--max-item-users", "examples:", "manifest.json"):
        assert word in text
    flags = ["--input", "nowhere.csv", "--output", str(tmp_path / "out")]
    assert main(["items", *flags]) == 2
    assert "swing: nowhere.csv: no such file" in capsys.readouterr().err
    assert main(["users", *flags, "--preset", "fink"]) == 2
    assert "did you mean 'flink'" in capsys.readouterr().err


def test_flags_reach_the_scorer(tmp_path, table, capsys):
    from swing.__main__ import main

    table.write_parquet(tmp_path / "rows.parquet")
    flags = "--preset recfarm --alpha 2 --top-k 2 --min-user-items 2 --max-item-users 4 --seed 3 --normalize"
    paths = ["--input", str(tmp_path / "rows.parquet"), "--output", str(tmp_path / "out")]
    assert main(["users", *paths, *flags.split(), "--count-anchor"]) == 0
    config = swing.preset(
        "recfarm",
        alpha=2.0,
        top_k=2,
        min_user_items=2,
        max_item_users=4,
        seed=3,
        normalize=True,
        count_anchor=True,
    )
    found = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert found.equals(swing.similar(table, config, "users"))


def test_the_kernel_runs_where_nothing_can_be_cached(tmp_path):
    """A read-only install without a home: numba finds no folder for its cache."""
    script = (
        "import numba.core.caching as c, polars as pl, sys\n"
        "c.CacheImpl._locator_classes = []\n"
        "import swing\n"
        "f = pl.DataFrame({'user_id': list('aabb'), 'item_id': list('xyxy')})\n"
        "assert swing.similar(f)['neighbors'].to_list() == [['y'], ['x']]\n"
        "assert type(swing.kernel.score_range._cache) is c.NullCache\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_random_files_agree_with_frames(tmp_path):
    """Many row groups and files, so that the streaming reader meets rows in any order."""
    draw = random.Random(0)
    pairs = [(draw.randrange(400), draw.randrange(300)) for _ in range(20_000)]
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    for number in range(5):
        table[number::5].write_parquet(tmp_path / f"{number}.parquet", row_group_size=500)
    assert swing.similar(tmp_path, side="users").equals(swing.similar(table, side="users"))
