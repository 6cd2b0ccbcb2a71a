"""SWING from files to files: inputs, errors, the command, resuming."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swing
from swing import interactions, local, parts

DRAW = random.Random(8)
PAIRS = [(f"u{DRAW.randrange(9)}", f"i{int(7 * DRAW.random() ** 1.5)}") for _ in range(40)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table():
    return pl.DataFrame(PAIRS, schema=["user_id", "item_id"], orient="row").with_columns(rating=pl.lit(4.0))


@pytest.fixture(scope="module")
def expected(table):
    return swing.similar(table)


def test_every_form_of_input_gives_the_same(tmp_path, table, expected):
    folder = tmp_path / "hive"
    for number, piece in enumerate((table[:25], table[25:])):
        (folder / f"day={number}").mkdir(parents=True)
        piece.write_parquet(folder / f"day={number}" / "a.parquet")
    table.write_parquet(tmp_path / "whole.parquet")
    table.write_csv(tmp_path / "rows.csv")
    table.write_csv(tmp_path / "rows.tsv", separator="\t")
    renamed = table.rename({"user_id": "who", "item_id": "what"})
    for source in (folder, tmp_path / "whole.parquet", tmp_path / "rows.csv", tmp_path / "rows.tsv"):
        assert swing.similar(source).equals(expected), source
    assert swing.similar(str(folder / "*" / "*.parquet")).equals(expected)
    assert swing.similar(table.lazy()).equals(expected)
    assert swing.similar(table.cast({"item_id": pl.Categorical})).equals(expected)
    assert swing.similar(renamed, user="who", item="what").equals(expected)


def test_integer_ids_stay_integers_and_sort_as_numbers(table, expected):
    numbers = table.with_columns(
        pl.col("user_id").str.slice(1).cast(pl.Int64), pl.col("item_id").str.slice(1).cast(pl.Int16) + 8
    )
    lists = swing.similar(numbers)
    assert lists.schema == {"id": pl.Int16, "neighbors": pl.List(pl.Int16), "scores": pl.List(pl.Float32)}
    assert lists["id"].to_list() == sorted(lists["id"].to_list())
    assert lists["neighbors"].to_list() == [[8 + int(j[1:]) for j in row] for row in expected["neighbors"]]


def test_text_ids_keep_their_zeros(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\n01,007\n01,7\n1,007\n1,7\n")
    lists = swing.similar(tmp_path / "a.csv")
    assert dict(zip(lists["id"], lists["neighbors"].to_list(), strict=True)) == {"007": ["7"], "7": ["007"]}


def test_null_ids_are_left_out_and_counted(table, expected):
    dirty = pl.concat(
        [table, pl.DataFrame({"user_id": [None, "u1"], "item_id": ["i1", None], "rating": [1.0, 1.0]})]
    )
    read = swing.read(dirty)
    assert read.facts["null_rows"] == 2 and read.facts["rows"] == 42
    assert read.facts["duplicate_rows"] == 40 - len(set(PAIRS))
    assert swing.similar(dirty).equals(expected)


def rows(*pairs):
    return pl.DataFrame(pairs, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (rows(), "no interactions"),
        (rows((None, "a"), ("b", None)), "no interactions left .*null_rows 2"),
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


def test_run_writes_parts_and_manifest(tmp_path, table, expected, monkeypatch):
    monkeypatch.setattr(parts, "PART_COST", 1)
    steps = []
    report = swing.run(table, tmp_path / "out", progress=lambda step: steps.append(step))
    part_files = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [p.name for p in part_files] == [f"part-{n:05d}.parquet" for n in range(7)]
    assert report["parts"] == report["ids"] == 7 and report["parts_resumed"] == 0
    assert report["bytes"] == sum(p.stat().st_size for p in part_files)
    assert pl.read_parquet(part_files).equals(expected)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert report["side"] == "items" and report["parameters"]["top_k"] == 100 and report["filters"] is None
    assert report["coverage"] == pytest.approx(expected["neighbors"].list.len().gt(0).mean(), abs=1e-6)
    assert report["covered"] == expected["neighbors"].list.len().gt(0).sum()
    assert report["neighbors"] == expected["neighbors"].list.len().sum()
    assert report["input"]["rows"] == 40 and report["limits"]["edges_left"] <= len(set(PAIRS))
    assert set(report["seconds"]) == {"read", "build", "score_and_write"}
    assert report["versions"]["numpy"] == np.__version__ and report["peak_memory_mib"] > 50
    assert report["workers"]["processes"] == 1 and report["workers"]["parts_redone"] == 0
    assert sum(s["steps"] for s in steps) == steps[0]["total_steps"] > 0
    assert sum(s["edges"] for s in steps) == steps[0]["total_edges"]


def test_degrees_are_those_that_the_limits_left(tmp_path, table):
    config = swing.preset(min_user_items=3, max_item_users=3)
    swing.run(table, tmp_path / "out", config)
    graph = interactions.build(swing.read(table), config)
    degrees = pl.read_ipc(tmp_path / "out" / "degrees.arrow")
    assert degrees.schema == {"id": pl.String, "degree": pl.Int32}
    assert degrees["id"].equals(graph.anchor_ids.alias("id"))
    assert degrees["degree"].to_list() == graph.anchor_size.tolist()
    assert degrees["degree"].max() == 3


def test_filters_and_warnings_are_in_the_manifest(tmp_path, table, expected):
    rated = table.with_columns(pl.when(pl.int_range(pl.len()) < 5).then(1.0).otherwise(4.0).alias("rating"))
    filters = swing.Filters(min_rating=3.0)
    report = swing.run(rated.with_columns(weight=pl.lit(2)), tmp_path / "out", filters=filters)
    assert report["filters"]["min_rating"] == 3.0
    assert report["input"]["rows_below_min_rating"] == 5
    assert any("weight" in warning for warning in report["warnings"])
    written = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert written.equals(swing.similar(rated, filters=filters)) and not written.equals(expected)
    with pytest.raises(swing.SwingError, match="filters apply while a table is read"):
        swing.run(swing.read(rated), tmp_path / "other", filters=filters)


@pytest.mark.parametrize("kind", [pl.String, pl.Int8, pl.UInt8, pl.Int16, pl.UInt32, pl.Int64, pl.UInt64])
def test_every_reader_sees_plain_lists(tmp_path, table, kind):
    """Whatever way of packing the ids of a type has in the file."""
    ids = pl.col("item_id").str.slice(1).cast(pl.Int64) + 8
    if kind == pl.Int64:
        ids = ids - 2**62
    source = table.with_columns(ids.cast(kind))
    swing.run(source, tmp_path / "out", swing.preset(top_k=3))
    path = tmp_path / "out" / "part-00000.parquet"
    lists = swing.similar(source, swing.preset(top_k=3))
    assert lists.schema == {"id": kind, "neighbors": pl.List(kind), "scores": pl.List(pl.Float32)}
    assert pl.read_parquet(path).equals(lists)
    schema = pq.read_schema(path)
    plain = pa.string() if kind == pl.String else parts.arrow_ids(lists["id"]).type
    assert schema.field("id").type == schema.field("neighbors").type.value_type == plain
    assert pq.read_table(path).to_pylist() == lists.to_dicts()


def chunk(begin, lists):
    flat = [code for row in lists for code in row]
    counts = np.array([len(row) for row in lists], np.int32)
    scores = np.linspace(1, 0, len(flat), dtype=np.float32)
    return local.Neighbors(begin, begin + len(lists), counts, np.array(flat, np.int32), scores, 0)


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 59), max_size=9), min_size=1, max_size=9), min_size=1, max_size=4
    )
)
def test_packed_strings_are_the_same_strings(tmp_path_factory, chunks):
    """Few neighbours of many ids, many of few, none at all."""
    ids = pl.Series([f"id {n:02d}" for n in range(60)])
    begins = np.cumsum([3, *map(len, chunks)])
    neighbors = [chunk(int(begin), lists) for begin, lists in zip(begins[:-1], chunks, strict=True)]
    path = tmp_path_factory.mktemp("packed") / "part.parquet"
    parts.write(parts.table(parts.arrow_ids(ids), neighbors, pack=True), path, "{}")
    rows = [row for lists in chunks for row in lists]
    expected = {"id": ids[3 : 3 + len(rows)], "neighbors": [[ids[code] for code in row] for row in rows]}
    kinds = {"id": pl.String, "neighbors": pl.List(pl.String)}
    assert pl.read_parquet(path, columns=["id", "neighbors"]).equals(pl.DataFrame(expected, schema=kinds))


@settings(max_examples=50)
@given(st.integers(0, 99), st.sampled_from([1, 40, 300, 5000, 1 << 40]))
def test_parts_hold_every_id_once(seed, cost):
    draw = random.Random(seed)
    pairs = [(draw.randrange(30), int(40 * draw.random() ** 3)) for _ in range(200)]
    source = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    config = swing.SwingConfig(top_k=5)
    scorer = local.Scorer(interactions.build(swing.read(source), config), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_COST", cost)
        job_parts = parts.divide(scorer)
    assert [part.number for part in job_parts] == list(range(len(job_parts)))
    assert [part.begin for part in job_parts] == [0, *(part.end for part in job_parts[:-1])]
    assert job_parts[-1].end == len(scorer.steps) and all(part.begin < part.end for part in job_parts)
    assert sum(part.steps for part in job_parts) == scorer.steps.sum()
    assert sum(part.edges for part in job_parts) == len(scorer.graph.anchor_idx)
    assert (
        len(job_parts) == len(scorer.steps) if cost == 1 else len(job_parts) == 1 if cost == 1 << 40 else True
    )
    for part in job_parts:
        lengths = [len(chunk.codes) for chunk in scorer.score(part.begin, part.end)]
        assert part.slots >= sum(lengths)


def test_the_bytes_do_not_depend_on_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_COST", 3000)
    monkeypatch.setattr(local, "CHUNK_COST", 200)
    draw = random.Random(3)
    pairs = [(draw.randrange(90), f"i{int(60 * draw.random() ** 2)}") for _ in range(1500)]
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    contents = []
    for threads in (1, 2, 5):
        folder = tmp_path / str(threads)
        report = swing.run(table, folder, side="items", threads=threads)
        assert report["threads"] == threads and report["parts"] > 5
        names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
        contents.append({name: (folder / name).read_bytes() for name in names})
    assert contents[0] == contents[1] == contents[2]


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "swing", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path, table, expected):
    assert len(expected) == 7 and expected["scores"].list.n_unique().max() >= 3
    table.write_csv(tmp_path / "rows.csv")
    result = command("items", "--input", tmp_path / "rows.csv", "--output", tmp_path / "out", "--threads", 2)
    assert result.returncode == 0, result.stderr
    assert "edges/s" in result.stderr
    assert json.loads(result.stdout)["ids"] == 7
    assert pl.read_parquet(tmp_path / "out" / "part-00000.parquet").equals(expected)


def test_the_command_explains_itself_and_its_errors(tmp_path, capsys):
    from swing.__main__ import main

    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("items", "users", "audit", "examples:", "flink"):
        assert word in text
    with pytest.raises(SystemExit):
        main(["items", "--help"])
    text = capsys.readouterr().out
    for word in ("--preset", "flink", "--max-item-users", "--engine", "--address", "manifest.json"):
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
    written = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert written.equals(swing.similar(table, config, "users"))


def test_the_kernel_runs_where_nothing_can_be_cached(tmp_path):
    """A read-only install without a home: numba finds no folder for its cache."""
    script = (
        "import numba.core.caching as c, sys\n"
        "c.CacheImpl._locator_classes = []\n"
        "import swing\n"
        "assert swing.csr.edge_hash(1, 2, 0) != swing.csr.edge_hash(2, 1, 0)\n"
        "for function in (swing.csr.edge_hash, swing.kernel.score_range):\n"
        "    assert type(function._cache) is c.NullCache\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_random_files_agree_with_frames(tmp_path):
    """Many row groups and files, so that the streaming reader meets rows in any order."""
    draw = random.Random(0)
    pairs = [(draw.randrange(400), draw.randrange(300)) for _ in range(20_000)]
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    for number in range(5):
        table[number::5].write_parquet(tmp_path / f"{number}.parquet", row_group_size=500)
    assert swing.similar(tmp_path, side="users").equals(swing.similar(table, side="users"))
