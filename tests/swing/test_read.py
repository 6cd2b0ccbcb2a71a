"""From tables to CSR: numbering, sorting, limits, filters, and what a reader is told."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swing
from swing import csr, interactions, numbering

ROOT = Path(__file__).parents[2]


def rows_of(ptr, idx):
    return [idx[a:b].tolist() for a, b in zip(ptr[:-1], ptr[1:], strict=True)]


def csr_of(rows):
    ptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return ptr, np.array([column for row in rows for column in row], np.int32)


@pytest.mark.parametrize("start", [["-m", "swing", "items", "--output", "out", "--input"], ["-c", "{}"]])
def test_without_a_compiler_that_is_said(tmp_path, start):
    """In place of numba's traceback."""
    pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"]}).write_csv(tmp_path / "rows.csv")
    code = (
        "import sys, swing\n"
        "try:\n    swing.similar(sys.argv[1])\n"
        "except swing.SwingError as error:\n    sys.exit(str(error))"
    )
    command = [sys.executable, *(part.format(code) for part in start), "rows.csv"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, stderr=subprocess.PIPE)
    assert done.returncode and "NUMBA_DISABLE_JIT" in done.stderr and "unset it" in done.stderr
    assert "Traceback" not in done.stderr


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 40, 511, 512, 513, 5000]),
    st.sampled_from([1, 3, 600, 2048]),
    st.sampled_from([1, 30, 3000]),
)
def test_pairs_become_sorted_distinct_rows(seed, users, items, count):
    """The numbers of rows lie on both sides of the number of buckets."""
    draw = np.random.default_rng(seed)
    u, i = (
        draw.integers(users, size=count).astype(np.uint32),
        draw.integers(items, size=count).astype(np.uint32),
    )
    user_rank, item_rank = (draw.permutation(n).astype(np.int32) for n in (users, items))
    cuts = np.sort(draw.integers(count + 1, size=2))
    chunks = list(zip(np.split(u, cuts), np.split(i, cuts), strict=True))
    ptr, idx = csr.from_pairs(chunks, user_rank, item_rank)
    expected = sorted(set(zip(user_rank[u].tolist(), item_rank[i].tolist(), strict=True)))
    assert ptr.dtype == np.int64 and idx.dtype == np.int32 and len(ptr) == users + 1
    assert [(row, c) for row, columns in enumerate(rows_of(ptr, idx)) for c in columns] == expected
    back_ptr, back = csr.transpose(ptr, idx, items)
    turned = [(row, c) for c, rows in enumerate(rows_of(back_ptr, back)) for row in rows]
    assert turned == sorted(expected, key=lambda edge: edge[::-1])


def test_keep_rows_and_prune():
    ptr, idx = csr_of([[0], [0, 1, 2], [], [1, 2], [3, 4]])
    assert rows_of(*csr.keep_rows(ptr, idx, 2, None)) == [[], [0, 1, 2], [], [1, 2], [3, 4]]
    assert rows_of(*csr.keep_rows(ptr, idx, 1, 2)) == [[0], [], [], [1, 2], [3, 4]]
    size = np.bincount(idx, minlength=5)
    assert rows_of(*csr.prune(ptr, idx, size, 2)) == [[], [0, 1, 2], [], [1, 2], []]
    assert rows_of(*csr.prune(ptr, idx, size, 1)) == [[0], [0, 1, 2], [], [1, 2], []]
    assert csr.prune(*csr_of([[0, 1], [0, 1]]), np.array([2, 2]), 2) is None
    assert csr.prune(*csr_of([[], []]), np.array([0, 0]), 2) is None


def sample(columns, limit, seed):
    ptr, idx = csr.sample_rows(*csr_of([[7], list(range(columns))]), limit, seed)
    in_sample = np.zeros(columns, bool)
    in_sample[idx[ptr[1] :]] = True
    assert idx[: ptr[1]].tolist() == [7]  # a row within the limit stays as it is
    return in_sample


def test_sampling_is_even_and_follows_the_seed():
    """Each of a row's 40 columns is kept in a quarter of the seeds; |z| < 5 for the least and the most."""
    seeds = 2000
    masks = [sample(40, 10, seed) for seed in range(seeds)]
    times_kept = np.sum(masks, axis=0)
    assert times_kept.sum() == 10 * seeds
    assert np.abs(times_kept - seeds / 4).max() < 5 * math.sqrt(seeds * 0.25 * 0.75)
    together = np.sum([mask[:-1] & mask[1:] for mask in masks], axis=0)  # neighbours are drawn independently
    chance = (10 / 40) * (9 / 39)
    assert np.abs(together - seeds * chance).max() < 5 * math.sqrt(seeds * chance)


def test_the_sample_is_that_of_the_published_hash():
    """SplitMix64's own test values: the first outputs from the state 1234567."""
    state, hashes = np.uint64(1234567), []
    for _ in range(3):
        value = (int(state) + 0x9E3779B97F4A7C15) % 2**64
        state = np.uint64(value)
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        hashes.append(value ^ value >> 31)
    assert hashes == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    first = hashes[0]  # one round with seed 0 over row 0, column 1234567, then the second round
    value = (first + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    assert int(csr.edge_hash(0, 1234567, 0)) == value ^ value >> 31


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.Int8, pl.UInt32])
def test_integers_of_every_width_are_numbered(kind):
    draw = random.Random(1)
    low, high = (-(2**63), 2**63) if kind == pl.Int64 else (0, 2**64) if kind == pl.UInt64 else (0, 100)
    values = [draw.randrange(low, high) for _ in range(3000)]
    values += [low, high - 1, *values[:500]]
    numbers = numbering.numbering(kind)
    codes = [numbers(pl.Series(values[a : a + 700], dtype=kind)) for a in range(0, len(values), 700)]
    ids, rank = numbering.ranked(numbers, "id")
    assert ids.dtype == kind and ids.to_list() == sorted(set(values))
    assert ids.gather(rank[np.concatenate(codes)]).to_list() == values


def test_the_table_of_numbers_grows():
    numbers = numbering.Integers(pl.Int64)
    values = np.random.default_rng(0).permutation(400_000).astype(np.int64) * 2**20
    codes = numbers(pl.Series(values))
    assert (codes == np.arange(400_000)).all() and numbers.bits > 18
    assert (numbers(pl.Series(values[::-1])) == np.arange(400_000)[::-1]).all()


def table(**columns):
    """Five users who take both x and y, row by row; then the given columns."""
    pairs = [(f"u{n // 2}", "xy"[n % 2]) for n in range(10)]
    return pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").with_columns(
        **{k: pl.Series(v) for k, v in columns.items()}
    )


def test_a_rating_threshold(tmp_path):
    rated = table(rating=[5.0, 4.0, 5.0, 4.0, 3.5, 4.0, None, 4.0, 5.0, 5.0])
    liked = swing.read(rated, filters=swing.Filters(min_rating=4))
    assert liked.facts["rows_below_min_rating"] == 2 and liked.facts["edges"] == 8
    renamed = rated.rename({"rating": "stars"})
    renamed.write_csv(tmp_path / "a.csv")
    text = swing.read(tmp_path / "a.csv", filters=swing.Filters(min_rating=4, rating_column="stars"))
    assert text.facts == liked.facts and text.digest() == liked.digest()
    with pytest.raises(swing.SwingError, match="no column 'rating'.*stars.*--rating-column"):
        swing.read(renamed, filters=swing.Filters(min_rating=4))
    with pytest.raises(swing.SwingError, match=r"no interactions left \(rows 10, rows_below_min_rating 10\)"):
        swing.read(rated, filters=swing.Filters(min_rating=6))
    (tmp_path / "b.csv").write_text("user_id,item_id,rating\na,x,4\na,y,Like\n")
    with pytest.raises(swing.SwingError, match="b.csv: cannot be read.*Like"):
        swing.read(tmp_path / "b.csv", filters=swing.Filters(min_rating=4))
    with pytest.raises(swing.SwingError, match="ratings are numbers"):
        swing.read(table(rating=[True] * 10), filters=swing.Filters(min_rating=1))


DAYS = [f"2024-01-{day:02}" for day in range(1, 11)]
SECONDS = [1704067200 + 86400 * day for day in range(10)]


@pytest.mark.parametrize("form", ["seconds", "date", "datetime", "zoned", "text seconds", "text dates"])
def test_a_time_window_by_dates_in_every_form_of_column(form, tmp_path):
    source = table(timestamp=SECONDS)
    dates = table(timestamp=DAYS).with_columns(pl.col("timestamp").str.to_datetime())
    if form == "date":
        source = dates.with_columns(pl.col("timestamp").dt.date())
    elif form == "datetime":
        source = dates
    elif form == "zoned":
        source = dates.with_columns(
            pl.col("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
        )
    elif form.startswith("text"):
        (table(timestamp=DAYS) if "dates" in form else source).write_csv(tmp_path / "a.csv")
        source = tmp_path / "a.csv"
    inside = swing.read(source, filters=swing.Filters(since="2024-01-03", until="2024-01-07"))
    assert inside.facts["rows_outside_time_window"] == 6 and inside.facts["edges"] == 4
    assert inside.user_ids.to_list() == ["u1", "u2"]
    if form in ("seconds", "text seconds"):
        numbers = swing.read(source, filters=swing.Filters(since=SECONDS[2], until=SECONDS[6]))
        assert numbers.facts == inside.facts
    late = swing.read(source, filters=swing.Filters(since="2024-01-03T00:00+00:00"))
    assert late.facts["edges"] == 8


def test_each_row_has_one_reason_to_go():
    source = table(rating=[1, 5] * 5, timestamp=SECONDS).with_columns(
        item_id=pl.when(pl.int_range(10) == 0).then(None).otherwise("item_id")
    )
    facts = swing.read(source, filters=swing.Filters(min_rating=3, until="2024-01-06")).facts
    assert (facts["null_rows"], facts["rows_below_min_rating"], facts["rows_outside_time_window"]) == (
        1,
        4,
        3,
    )
    assert facts["rows"] == 10 and facts["edges"] == 2


def test_bounds_that_make_no_sense():
    with pytest.raises(swing.SwingError, match="must be a number or a date like 2024-01-31, not 'May'"):
        swing.Filters(since="May")
    with pytest.raises(swing.SwingError, match="both be dates or both be numbers"):
        swing.Filters(since="2024-01-01", until=5)
    with pytest.raises(swing.SwingError, match="since .7. must be before until .5."):
        swing.Filters(since=7, until=5)
    milliseconds = table(timestamp=[1000 * s for s in SECONDS])
    with pytest.raises(swing.SwingError, match="no time in seconds.*column's own unit"):
        swing.read(milliseconds, filters=swing.Filters(since="2024-01-03"))
    assert swing.read(milliseconds, filters=swing.Filters(since=1000 * SECONDS[8])).facts["edges"] == 2


@pytest.mark.parametrize("name", ["u", "i", "kept", "null_rows", "literal"])
def test_a_column_may_have_any_name(name):
    renamed = table(rating=[5] * 10).rename({"user_id": name})
    assert swing.read(renamed, user=name, filters=swing.Filters(min_rating=3)).facts["edges"] == 10
    other = table().rename({"item_id": name})
    assert swing.read(other, item=name).digest() == swing.read(table()).digest()


def test_a_column_of_weights_is_ignored_aloud():
    weighted = swing.read(table(weight=[2.0] * 10))
    assert weighted.warnings == [
        "column 'weight' is ignored: an interaction counts once, whatever its weight"
    ]
    assert weighted.digest() == swing.read(table()).digest() and not swing.read(table()).warnings


def test_a_hive_partition_can_be_a_column(tmp_path):
    for user, part in table().group_by("user_id"):
        (tmp_path / f"user_id={user[0]}").mkdir()
        part.drop("user_id").write_parquet(tmp_path / f"user_id={user[0]}" / "part.parquet")
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "part.parquet").write_bytes(b"half")
    assert swing.read(tmp_path).digest() == swing.read(table()).digest()
    assert swing.read(str(tmp_path / "*" / "*.parquet")).digest() == swing.read(table()).digest()


def test_packed_and_mixed_files(tmp_path):
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table().write_csv().encode()))
    assert swing.read(tmp_path / "a.csv.gz").digest() == swing.read(table()).digest()
    table().write_parquet(tmp_path / "b.parquet")
    with pytest.raises(swing.SwingError, match=r"files of different kinds \(.csv, .parquet\)"):
        swing.read(str(tmp_path / "*"))


def test_rows_are_not_held(tmp_path):
    """Files of 570 MB of ids in memory are read within half of it: the rows stream by."""
    users = pl.int_range(2_000_000, dtype=pl.UInt32, eager=True)
    long = pl.DataFrame({"user_id": users % 1000, "item_id": users % 997}).select(
        pl.format("user-with-a-name-of-many-characters-{}-{}", "user_id", pl.lit("x" * 110)).alias("user_id"),
        pl.format("item-with-a-name-of-many-characters-{}-{}", "item_id", pl.lit("y" * 110)).alias("item_id"),
    )
    assert long.estimated_size("mb") > 570
    for number, part in enumerate(long.iter_slices(250_000)):
        part.write_parquet(tmp_path / f"{number}.parquet", row_group_size=50_000)
    del long
    script = (
        "import sys, swing\n"
        "from swing.machine import peak_memory_mib as peak\n"
        "before = peak()\n"
        "found = swing.read(sys.argv[1])\n"
        "print(found.facts['rows'], peak() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    rows, mebibytes = result.stdout.split()
    assert int(rows) == 2_000_000 and float(mebibytes) < 285


def test_the_graph_has_read_only_arrays_and_counts_before_pruning():
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("d", "z")]
    read = swing.read(pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row"))
    graph = interactions.build(read, swing.preset(min_user_items=1))
    assert graph.anchor_size.tolist() == [3, 2, 1]
    assert rows_of(graph.anchor_ptr, graph.anchor_idx) == [[0, 1], [0, 1], []]
    assert rows_of(graph.user_ptr, graph.user_idx) == [[0, 1], [0, 1], [], []]
    for name in ("anchor_ptr", "anchor_idx", "user_ptr", "user_idx", "user_weight", "anchor_size"):
        assert not getattr(graph, name).flags.writeable


@settings(max_examples=60)
@given(st.lists(st.text(max_size=9), max_size=60), st.integers(1, 20))
def test_strings_are_numbered_in_order_of_appearance(values, size):
    numbers = numbering.Strings(pl.String)
    codes = [numbers(pl.Series(values[a : a + size], dtype=pl.String)) for a in range(0, len(values), size)]
    first = list(dict.fromkeys(values))
    assert [first[code] for chunk in codes for code in chunk] == values
    assert numbers.ids().to_list() == first


def test_the_table_of_strings_grows_and_tells_equal_hashes_apart(monkeypatch):
    values = pl.select(pl.format("{}{}", pl.lit("long " * 5), pl.int_range(100_000)).alias("v"))["v"]
    numbers = numbering.Strings(pl.String)
    assert (numbers(values) == np.arange(100_000)).all() and numbers.ids().equals(values.alias(""))
    assert (numbers(values.reverse()) == np.arange(100_000)[::-1]).all()
    monkeypatch.setattr(numbering, "_hash_strings", lambda offsets, data, out: out.fill(7))
    collided = numbering.Strings(pl.String)
    assert collided(pl.Series(["a", "b", "a", "ab", "", "b"])).tolist() == [0, 1, 0, 2, 3, 1]


@pytest.mark.parametrize("kind", ["frame", "lazy", "parquet", "csv"])
def test_progress_while_reading(tmp_path, kind):
    rows = pl.DataFrame({"user_id": [str(n % 700) for n in range(30_000)], "item_id": list(range(30_000))})
    source, path = {"frame": rows, "lazy": rows.lazy()}.get(kind), tmp_path / f"rows.{kind}"
    if source is None:
        rows.write_parquet(path, row_group_size=9_000) if kind == "parquet" else rows.write_csv(path)
        source = path
    calls = []
    interactions = swing.read(source, progress=lambda done, total: calls.append((done, total)))
    assert interactions.facts["rows"] == 30_000 == calls[-1][0]
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {total for _, total in calls} == {30_000 if kind in ("frame", "parquet") else None}
