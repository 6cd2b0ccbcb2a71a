"""The reader of tables with named columns, errors that name their cause, and what all readers share."""

import gzip
import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrrec_torchrec.ingest import source_files as files
from dlrrec_torchrec.ingest import validate
from dlrrec_torchrec.ingest.facts import SeenHashes
from dlrrec_torchrec.ingest.source_files import Record, Stream
from dlrrec_torchrec.ingest.values import as_price, as_seconds
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import REVIEWS
from tests.helpers.sources import lines, read, rejected, review

COLUMNS = {"user": "who", "item": "what", "rating": "stars", "text": "words", "time": "when"}

# tables -----------------------------------------------------------------------------------------------------

CSV = '''who,what,stars,words,when,other
u1,i1,5,"two
lines, one ""row""",5/25/2019 15:54,
,,,,,

u2,i1,Like,x,,
u3,i1,4,,2019-05-25T15:54:00+02:00,
u4,i1,4
,i1,,,,seen
u1,i1,1,again,,
u5,"i1",4.5,y,1558799640000,
'''
CSV_ROWS = [
    review("u1", "i1", 5.0, 'two\nlines, one "row"', 1558799640),
    review("u3", "i1", 4.0, None, 1558792440),
    review("u5", "i1", 4.5, "y", 1558799640),
]


@pytest.mark.parametrize("form", ["r.csv", "r.csv.gz", "r.tsv", "semicolon.csv", "bom.csv", "crlf.csv"])
def test_csv_keeps_line_numbers_over_quoted_breaks(tmp_path, form):
    text = CSV
    if form in ("r.tsv", "semicolon.csv"):
        mark = "\t" if form == "r.tsv" else ";"
        text = text.replace(",", mark).replace(f"lines{mark}", "lines,")
    if form == "crlf.csv":
        text = text.replace("\n", "\r\n")
    body = (b"\xef\xbb\xbf" if form == "bom.csv" else b"") + text.encode()
    (tmp_path / form).write_bytes(gzip.compress(body) if form.endswith("gz") else body)
    manifest, rows, _ = read(tmp_path, source="table", reviews=tmp_path / form, columns=COLUMNS)
    if form == "crlf.csv":
        rows[0]["text"] = rows[0]["text"].replace("\r\n", "\n")
    assert rows == CSV_ROWS
    assert [(r["line"], r["reason"]) for r in rejected(tmp_path)] == [
        (6, "rating is not a number"),
        (8, "wrong number of fields"),
        (9, "empty row"),
        (10, "duplicate user-item pair"),
    ]
    facts = manifest.facts
    assert (facts["read"], facts["accepted"], facts["blank"]) == (7, 3, 2)
    assert facts["users"] == 3 and facts["items"] == 1
    assert facts["ratings"] == {"4": 1, "4.5": 1, "5": 1} and facts["with_text"] == 2


def test_parquet_and_json_lines_agree(tmp_path):
    rows = [
        {
            "u": n,
            "i": f"i{n % 2}",
            "r": r,
            "t": t,
            "pics": ["a", "b"] if n else [],
            "caps": ["x", None] if n else None,
        }
        | {"part": part}
        for n, (r, t, part) in enumerate(
            [(5.0, "a", "train"), (None, "b", "test"), (2.0, None, "valid"), (1.0, "", "?")]
        )
    ]
    columns = {"user": "u", "item": "i", "rating": "r", "text": "t", "images": "pics", "captions": "caps"}
    columns["split"] = "part"
    lines(tmp_path / "r.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=2)
    expected = [
        review("0", "i0", 5.0, "a", split="train"),
        review("2", "i0", 2.0, None, None, ["a", "b"], ["x", ""], "train"),
    ]
    for name, unit in (("r.jsonl", "line"), ("r.parquet", "record")):
        _, table, _ = read(tmp_path, source="table", reviews=tmp_path / name, columns=columns)
        assert table == expected
        reasons = [(r[unit], r["reason"]) for r in rejected(tmp_path)]
        assert reasons == [(2, "rating is missing"), (4, "split is neither train nor test")]


def test_parquet_times_in_nanoseconds(tmp_path):
    times = pa.array([1558799640_123456789, None], pa.timestamp("ns"))
    table = pa.table(
        {"who": ["a", "b"], "what": ["i", "i"], "stars": [1, 2], "words": ["", "w"], "when": times}
    )
    (tmp_path / "parts").mkdir()
    pq.write_table(table, tmp_path / "parts" / "part-0.parquet")
    _, rows, _ = read(tmp_path, source="table", reviews=tmp_path / "parts", columns=COLUMNS)
    assert [r["timestamp"] for r in rows] == [1558799640, None]


def test_table_metadata(tmp_path):
    (tmp_path / "r.csv").write_text(CSV)
    (tmp_path / "i.csv").write_text(
        'name,kind,cost,pics\ni1,"Thai, Sushi, Thai","1,200",a.jpg|b.jpg\ni2,,free,\ni1,x,1,\n'
        'i3,"[""A, B""]","12,50 €",\n',
        encoding="utf-8",
    )
    columns = {"item": "name", "title": "name", "categories": "kind", "price": "cost", "images": "pics"}
    settings = {"reviews": tmp_path / "r.csv", "items": tmp_path / "i.csv", "columns": COLUMNS}
    _, _, items = read(tmp_path, source="table", item_columns=columns, **settings)
    metadata = [(i["item_id"], i["categories"], i["price"], i["images"]) for i in items]
    assert metadata == [
        ("i1", ["Thai", "Sushi"], 1200.0, ["a.jpg", "b.jpg"]),
        ("i2", None, None, None),
        ("i3", ["A, B"], 12.5, None),
    ]


@pytest.mark.parametrize("first", ["7,1002,4.0,978300760", "1,2,3,978300760"])
@pytest.mark.parametrize("name", ["r.csv", "r.dat"])
def test_columns_of_a_file_without_a_header_are_numbers(tmp_path, name, first):
    (tmp_path / name).write_text(first + "\n8,1002,x,978300760\n8,1003,2.5,978300761\n")
    columns = {"user": "1", "item": "2", "rating": "3", "time": "4"}
    _, rows, _ = read(tmp_path, source="table", reviews=tmp_path / name, columns=columns)
    user, item, rating, time = first.split(",")
    assert rows == [
        review(user, item, float(rating), None, int(time)),
        review("8", "1003", 2.5, None, 978300761),
    ]
    assert [row["line"] for row in rejected(tmp_path)] == [2]


def test_a_header_of_numbers_is_a_header(tmp_path):
    (tmp_path / "r.csv").write_text("0,1,2\nann,pie,4\nbob,pie,5\n")
    columns = {"user": "0", "item": "1", "rating": "2"}
    _, rows, _ = read(tmp_path, source="table", reviews=tmp_path / "r.csv", columns=columns)
    assert rows == [review("ann", "pie", 4.0), review("bob", "pie", 5.0)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"columns": COLUMNS | {"rating": "Stars"}},
            r"r\.csv: column 'Stars' is missing \(found: who, .*mean 'stars'",
        ),
        ({"columns": COLUMNS | {"ratings": "stars"}}, "--columns: unknown name 'ratings'.*mean 'rating'"),
        (
            {"columns": {"user": "who", "item": "what"}},
            r"--columns: say which column is 'rating' .*r\.csv begins with: who,",
        ),
        ({"columns": {"user": "9", "item": "1", "rating": "2"}}, r"'9' is missing .*as user=1 item=2"),
        ({"reviews": "nowhere.csv"}, "--reviews .*nowhere.csv: no such file"),
        ({"reviews": ""}, "--reviews is missing"),
        ({"items": "i.csv", "item_columns": {}}, "--item-columns: say which column is 'item'"),
        ({"item_columns": {"item": "what"}}, "--item-columns needs a file of items"),
        ({"source": "amazon"}, "--columns.*ingest.source=table"),
        ({"source": "synthetic", "columns": {}}, "--reviews.*synthetic.*ingest.source"),
        (
            {"max_rejected": 0.05},
            r"4 of 7 rows \(57.1%\) are bad.*--max-rejected.*1 x empty row.*rejected\.jsonl",
        ),
    ],
)
def test_errors_name_flag_column_and_way_out(tmp_path, settings, words):
    (tmp_path / "r.csv").write_text(CSV)
    settings = {"source": "table", "reviews": tmp_path / "r.csv", "columns": COLUMNS} | settings
    with pytest.raises(DataError, match=words):
        read(tmp_path, **settings)
    assert not (tmp_path / "out" / "reviews").exists()


def test_too_many_bad_rows_keep_the_list_until_it_is_well(tmp_path):
    (tmp_path / "r.csv").write_text(CSV)
    settings = {"source": "table", "reviews": tmp_path / "r.csv", "columns": COLUMNS}
    rejected_copy = tmp_path / "out" / "reviews.rejected.jsonl"
    with pytest.raises(DataError, match=str(rejected_copy)):
        read(tmp_path, **settings, max_rejected=0.5)
    assert [json.loads(line)["line"] for line in rejected_copy.read_text().splitlines()] == [6, 8, 9, 10]
    read(tmp_path, **settings, max_rejected=0.58)
    assert not rejected_copy.exists()


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("r.csv", b"", "empty"),
        ("r.csv", b"who,what,stars,words,when\n", "no rows"),
        (
            "r.csv",
            b"who,what,stars,words,when\nu,i,bad,w,\n",
            "1 of 1 rows .*none is usable: 1 x rating is not a",
        ),
        ("r.csv", CSV.encode("utf-16"), "UTF-16"),
        (
            "r.csv",
            b'who,what,stars,words,when\nu,i,1,w,\nu,i,1,"' + b"x\n" * (1 << 20),
            "line 3 .*unclosed quote",
        ),
        ("r.jsonl.gz", gzip.compress(b'{"who": 1}\n' * 9999)[:-20], "cannot be read after line"),
        ("r.parquet", b"PAR1 no", "Parquet"),
        ("r.xlsx", b"PK", "suffix '.xlsx'"),
        (
            "r.jsonl",
            b'{"who": 1, "what": 2, "stars": 3, "words": "w", "wen": 1}',
            "'when' is missing .*mean 'wen'",
        ),
        (
            "r.csv",
            b"who,what,stars,words,when\nu,i,1,w,25/5/2019\n",
            "1 of 1 values of the time .*'25/5/2019'",
        ),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, body, words):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=rf"(?s){name}.*{words}"):
        read(tmp_path, source="table", reviews=tmp_path / name, columns=COLUMNS, max_rejected=0.5)


# the frame --------------------------------------------------------------------------------------------------


def test_a_second_run_reads_nothing_and_changes_are_seen(tmp_path):
    films = tmp_path / "movies.dat"
    films.write_text("1::A::Drama\n")
    (tmp_path / "ratings.dat").write_text("1::1::5::978300760\n")
    settings = {"source": "movielens", "reviews": tmp_path / "ratings.dat"}
    assert not read(tmp_path, **settings)[0].reused
    assert read(tmp_path, **settings)[0].reused
    films.write_text("1::B::Drama\n")
    manifest, rows, _ = read(tmp_path, **settings)
    assert not manifest.reused and rows[0]["text"] == "B. Drama"
    films.unlink()
    manifest, rows, items = read(tmp_path, **settings)
    assert not manifest.reused and rows[0]["text"] is None and items is None


def test_the_synthetic_world_passes_through(tmp_path):
    manifest, rows, items = read(tmp_path, source="synthetic", size="tiny")
    assert manifest.rows["reviews"] == len(rows) and manifest.facts["users"] == len(
        {r["user_id"] for r in rows}
    )
    assert 0.5 < manifest.facts["reachable_auc"] < 1 and items
    pictures = [image for row in rows for image in row["images"] or ()]
    assert pictures and all((tmp_path / "out" / "reviews" / p).is_file() for p in pictures)


@pytest.mark.parametrize(
    ("value", "price"),
    [
        ("$12.99", 12.99),
        ("1,200", 1200),
        ("Rs. 1,200 for two", None),
        ("₹1,250", 1250),
        ("1.200,50 €", 1200.5),
        ("12,5", 12.5),
        ("1,234,567.5", 1234567.5),
        ("$10 - $20", 15),
        (".99", 0.99),
        ("from 14.99", 14.99),
        (7, 7),
        (Decimal("3.5"), 3.5),
        ("-5", None),
        (-5, None),
        (True, None),
        ("cheap", None),
        ("1.2.3", None),
    ],
)
def test_prices(value, price):
    if price is None:
        with pytest.raises(ValueError):
            as_price(value)
    else:
        assert as_price(value) == pytest.approx(price)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (-1.5e9, -1_500_000_000),
        (1_558_799_640_123, 1_558_799_640),
        (1_558_799_640_123_456, 1_558_799_640),
        (1_558_799_640_123_456_789, 1_558_799_640),
        ("1558799640.5", 1_558_799_640),
        ("2019-05-25 15:54", 1_558_799_640),
        ("2019-05-25T15:54:00Z", 1_558_799_640),
        ("5/25/2019 3:54 PM", 1_558_799_640),
        ("5/25/2019 12:54 AM", 1_558_745_640),
        ("5/25/2019", 1_558_742_400),
        ("2019/5/25", 1_558_742_400),
        ("2019-5-25", 1_558_742_400),
        ("2019.05.25 15:54", 1_558_799_640),
        ("2019/05/25 3:54:00 PM", 1_558_799_640),
        ("2019-05-25 15:54:00.5", 1_558_799_640),
        ("25 May 2019", 1_558_742_400),
        ("25-May-2019", 1_558_742_400),
        ("Sat May 25 08:54:00 -0700 2019", 1_558_799_640),
        ("Sat, 25 May 2019 15:54:00 +0000", 1_558_799_640),
        ("2019/25/5", ValueError),
        ("2019/5-25", ValueError),
        ("May 25, 2019", 1_558_742_400),
        ("05 25, 2019", 1_558_742_400),
        (date(2019, 5, 25), 1_558_742_400),
        (datetime(2019, 5, 25, 17, 54, tzinfo=timezone(timedelta(hours=2))), 1_558_799_640),
        ("n/a", None),
        (float("nan"), None),
        ("25/5/2019", ValueError),
        ("yesterday", ValueError),
        (float("inf"), ValueError),
        ([1], ValueError),
    ],
)
def test_times(value, seconds):
    if seconds is ValueError:
        with pytest.raises(ValueError):
            as_seconds(value)
    else:
        assert as_seconds(value) == seconds


@given(st.lists(st.lists(st.integers(-20, 20), max_size=30), max_size=8))
def test_seen_hashes_equal_a_set(batches):
    hashes_seen, values_seen = SeenHashes(), set()
    for batch in batches:
        new = []
        for value in batch:
            new.append(value not in values_seen)
            values_seen.add(value)
        assert hashes_seen.add(np.array(batch, np.int64)).tolist() == new
        assert len(hashes_seen) == len(values_seen)


def test_chunks_and_parts_do_not_change_the_table(tmp_path):
    rows = [
        {"user": n % 7, "item": n % 11, "rating": n % 5 if n % 13 else "x", "text": f"t{n}"}
        for n in range(200)
    ]
    results = []
    for name, chunk, part in (("one", 1000, 1000), ("many", 7, 20)):
        (tmp_path / name).mkdir()
        stream = Stream("s", iter([Record(n, row, row) for n, row in enumerate(rows, 1)]))
        tally = validate.collect(
            [stream], validate.ReviewCheck(), validate.ReviewFacts(), tmp_path / name, chunk, part
        )
        table = read_table(tmp_path / name, REVIEWS)
        results.append((table, tally, (tmp_path / name / "rejected.jsonl").read_text()))
    assert results[0][0].equals(results[1][0]) and results[0][1:] == results[1][1:]
    assert results[0][1].accepted == 77 and len(list((tmp_path / "many").glob("part-*"))) > 2


def test_reading_ends_early_without_a_good_row(tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "GIVE_UP_ROWS", 50)
    stream = Stream("s", iter([Record(n, None, None, "not JSON") for n in range(1000)]))
    tally = validate.collect([stream], validate.ReviewCheck(), validate.ReviewFacts(), tmp_path, 20)
    assert (tally.read, tally.rejected, tally.accepted) == (60, 60, 0)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    path = lines(tmp_path / "r.json", ["{}", "x" * 2000])
    with pytest.raises(DataError, match=r"r\.json: line 2 is longer"):
        read(tmp_path, source="amazon", reviews=path)
