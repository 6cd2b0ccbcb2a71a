"""Readers of published forms: each on a small file, bad rows by reason and line, and on real data."""

import gzip
import json
from pathlib import Path

import pytest

from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from tests.helpers.sources import lines, read, rejected, review

DATA = Path(__file__).parents[2].parent / "shared" / "data"

# Google -----------------------------------------------------------------------------------------------------


def google_row(user, item, rating=5, text="good", pics=(), **extra):
    row = {"business_id": item, "user_id": user, "rating": rating, "review_text": text, "pics": list(pics)}
    return row | {"history_reviews": [["x", "old words"]]} | extra


def test_google_lists_become_the_published_split(tmp_path):
    body = {
        "train": [google_row("u1", "b1", pics=["p1", "p2"]), google_row("u1", "b2", rating="bad")],
        "val": [google_row("u2", "b1", 3)],
        "test": [google_row("u2", "b2", text=7), google_row("u3", "b2", 4, None), ["no object"]],
    }
    path = tmp_path / "filter_all_t.json"
    path.write_text(json.dumps(body))
    manifest, rows, items = read(tmp_path, source="google", reviews=path)
    assert rows == [
        review("u1", "b1", 5.0, "good", images=["p1", "p2"], split="train"),
        review("u2", "b1", 3.0, "good", split="train"),
        review("u3", "b2", 4.0, split="test"),
    ]
    assert items is None
    places = [(r["file"], r["record"], r["reason"]) for r in rejected(tmp_path)]
    assert places == [
        ("filter_all_t.json:train", 2, "rating is not a number"),
        ("filter_all_t.json:test", 1, "text is of the wrong type"),
        ("filter_all_t.json:test", 3, "not a JSON object"),
    ]
    assert manifest.facts["published_train"] == 2 and manifest.facts["published_test"] == 1


def test_google_picture_list_and_folder(tmp_path):
    pics = [{"id": "p1", "url": ["http://x/1.jpg", "http://x/1s.jpg"]}, {"id": "p2", "url": "http://x/2.jpg"}]
    (tmp_path / "image_review_all.json").write_text(json.dumps([google_row("u1", "b1", pics=pics)]))
    _, rows, _ = read(tmp_path, source="google", reviews=tmp_path)
    assert rows == [review("u1", "b1", 5.0, "good", images=["http://x/1.jpg", "http://x/2.jpg"])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{"b": 2}', "not one JSON value"),
        ('{"reviews": []}', "train, val and test"),
        ('{"train": {"a": 1}}', "train, val and test"),
        ('[{"user": "u", "business_id": "b", "rating": 1}]', "'user_id' is missing .* did you mean 'user'"),
        ('{"train": [], "val": [], "test": []}', "no rows"),
    ],
)
def test_google_wrong_form(tmp_path, text, words):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(DataError, match=rf"g\.json.*{words}"):
        read(tmp_path, source="google", reviews=tmp_path / "g.json")


# Amazon -----------------------------------------------------------------------------------------------------


def test_amazon_2014_with_python_lines_and_metadata(tmp_path):
    good = {
        "reviewerID": "A1",
        "asin": "B1",
        "overall": 5.0,
        "reviewText": "fine",
        "unixReviewTime": 1400000000,
    }
    lines(tmp_path / "reviews_Food_5.json", [good, "{'reviewerID': 'A2', 'asin': 'B1', 'overall': 2.0}"])
    meta = {
        "asin": "B1",
        "title": "Tea",
        "price": 3.5,
        "imUrl": "http://x/1.jpg",
        "categories": [["Food", "Tea"]],
    }
    with gzip.open(tmp_path / "meta_Food.json.gz", "wt") as out:
        out.write(f"{meta}\n{dict(meta, title='Again')}\n")
    manifest, rows, items = read(tmp_path, source="amazon", reviews=tmp_path)
    assert rows == [review("A1", "B1", 5.0, "fine", 1400000000), review("A2", "B1", 2.0)]
    assert items == [
        {"item_id": "B1", "title": "Tea", "text": None, "categories": ["Food", "Tea"], "price": 3.5}
        | {"images": ["http://x/1.jpg"], "captions": None}
    ]
    assert Manifest.read(tmp_path / "out" / "items").facts["rejected"] == {"duplicate item": 1}


def test_amazon_2018_strings_and_images(tmp_path):
    row = {
        "reviewerID": "A1",
        "asin": "B1",
        "overall": "4.0",
        "reviewText": "ok",
        "unixReviewTime": "1500000000",
    }
    lines(tmp_path / "r.json", [row | {"image": ["http://x/a.jpg"]}, row | {"asin": "B2", "overall": "x"}])
    meta = [
        {"asin": "B1", "title": "T", "description": ["One.", "Two."], "feature": ["f"], "price": "$12.99"}
        | {"category": ["Home", "Kitchen"], "imageURL": ["s"], "imageURLHighRes": ["l"]},
        {"asin": "B2", "price": "$10.00 - $20.00"},
        {"asin": "B3", "price": ".a-box-inner{background-color:#fff}"},
        {"title": "no id"},
    ]
    lines(tmp_path / "m.json", meta)
    manifest, rows, items = read(
        tmp_path, source="amazon", reviews=tmp_path / "r.json", items=tmp_path / "m.json"
    )
    assert rows == [review("A1", "B1", 4.0, "ok", 1500000000, ["http://x/a.jpg"])]
    assert manifest.facts["rejected"] == {"rating is not a number": 1}
    assert items[0]["text"] == "One.\nTwo.\nf" and items[0]["images"] == ["l"]
    assert items[0]["categories"] == ["Home", "Kitchen"]
    assert [i["price"] for i in items] == [pytest.approx(12.99), 15.0, None]
    facts = Manifest.read(tmp_path / "out" / "items").facts
    assert facts["price_unread"] == 1 and facts["rejected"] == {"item is missing": 1}
    assert [r["line"] for r in rejected(tmp_path, "items")] == [4]


def test_amazon_2023_milliseconds_and_picture_objects(tmp_path):
    row = {"user_id": "AE", "parent_asin": "P1", "asin": "C1", "rating": 1.0, "text": "bad", "title": "t"}
    row |= {"timestamp": 1588687728923, "images": [{"small_image_url": "s", "large_image_url": "l"}]}
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as out:
        out.write(json.dumps(row) + "\n\n" + json.dumps(row | {"asin": "C2"}) + "\n")
    meta = {"parent_asin": "P1", "title": "T", "features": ["a"], "description": [], "price": "None"}
    meta |= {
        "categories": [],
        "main_category": "Books",
        "images": [{"thumb": "t", "large": "l", "hi_res": None}],
    }
    items = lines(tmp_path / "meta.jsonl", [meta])
    manifest, rows, items = read(tmp_path, source="amazon", reviews=tmp_path / "r.jsonl.gz", items=items)
    assert rows == [review("AE", "P1", 1.0, "bad", 1588687728, ["l"])]
    assert manifest.facts["blank"] == 1 and manifest.facts["read"] == 2
    assert [(r["line"], r["reason"]) for r in rejected(tmp_path)] == [(3, "duplicate user-item pair")]
    assert items[0]["images"] == ["l"] and items[0]["price"] is None and items[0]["categories"] == ["Books"]


def test_every_reason_with_its_line(tmp_path):
    def row(**changes):
        return {"user_id": "u", "parent_asin": "i", "rating": 3, "text": "t"} | changes

    cases = [
        (row(), None),
        (row(user_id="u2", rating="NaN"), "rating is not finite"),
        (row(user_id="u2", rating=1e39), "rating is not finite"),
        (row(user_id="u2", rating=True), "rating is not a number"),
        (row(user_id="u2", rating="1_0"), "rating is not a number"),
        (row(user_id="u2", rating=None), "rating is missing"),
        (row(user_id="  "), "user is missing"),
        (row(parent_asin=None), "item is missing"),
        (row(user_id=["u"]), "user is of the wrong type"),
        (row(user_id="u2", text=["words"]), "text is of the wrong type"),
        (row(user_id="u2", images="a|b|c", text="\ud83d"), "not valid Unicode"),
        (row(user_id="u2", images=7), "images are of the wrong type"),
        ({"parent_asin": "i", "verified": True}, "empty row"),
        ('{"user_id": "u", ', "not JSON"),
        ("[1]", "not a JSON object"),
        (row(rating=1), "duplicate user-item pair"),
        (row(user_id=12, text=" "), None),
        ('{"user_id": "é", "parent_asin": "i", "rating": 3}'.encode("latin-1"), "not valid Unicode"),
    ]
    raw = [
        c if isinstance(c, bytes) else (c if isinstance(c, str) else json.dumps(c)).encode() for c, _ in cases
    ]
    (tmp_path / "r.jsonl").write_bytes(b"\n".join(raw))
    manifest, rows, _ = read(tmp_path, source="amazon", reviews=tmp_path / "r.jsonl")
    reasons = [(r["line"], r["reason"]) for r in rejected(tmp_path)]
    assert reasons == [(n, reason) for n, (_, reason) in enumerate(cases, 1) if reason]
    assert rows == [review("u", "i", 3.0, "t"), review("12", "i", 3.0)]
    assert manifest.rows == {"reviews": 2, "rejected": 16}
    assert sum(manifest.facts["rejected"].values()) == 16 and manifest.facts["read"] == 18
    assert rejected(tmp_path)[-2]["row"] == row(rating=1)


# Yelp -------------------------------------------------------------------------------------------------------


def test_yelp_with_businesses_and_photos(tmp_path):
    row = {"user_id": "u", "business_id": "b", "stars": 4.0, "text": "nice", "date": "2018-07-07 22:09:11"}
    lines(tmp_path / "yelp_academic_dataset_review.json", [row])
    place = {"business_id": "b", "name": "Cafe", "categories": "Coffee & Tea, Food"}
    place |= {"attributes": {"RestaurantsPriceRange2": "2"}}
    other = {"business_id": "c", "name": "Bar", "categories": None, "attributes": None}
    lines(tmp_path / "yelp_academic_dataset_business.json", [place, other])
    photos = [{"photo_id": f"p{n}", "business_id": "b", "caption": c} for n, c in enumerate(["a cup", ""])]
    lines(tmp_path / "photos.json", photos)
    _, rows, items = read(tmp_path, source="yelp", reviews=tmp_path)
    assert rows == [review("u", "b", 4.0, "nice", 1531001351)]
    pictures = [str(tmp_path / "photos" / f"p{n}.jpg") for n in range(2)]
    assert items[0] == {
        "item_id": "b",
        "title": "Cafe",
        "text": None,
        "categories": ["Coffee & Tea", "Food"],
        "price": 2.0,
        "images": pictures,
        "captions": ["a cup", ""],
    }
    assert items[1]["categories"] is None and items[1]["images"] is None


def test_a_file_of_another_form_is_named(tmp_path):
    path = lines(tmp_path / "r.json", [{"user_id": "u", "business_id": "b", "stars": 4}] * 3)
    with pytest.raises(DataError, match=r"r\.json: column 'asin' or 'parent_asin' is missing .*--source"):
        read(tmp_path, source="amazon", reviews=path)
    lines(path, ['[{"user_id": "u"}]'])
    with pytest.raises(DataError, match="line 1 begins a JSON list"):
        read(tmp_path, source="yelp", reviews=path)


# MovieLens --------------------------------------------------------------------------------------------------


def test_movielens_100k_form(tmp_path):
    (tmp_path / "u1.base").write_text("1\t1\t5\t874965758\n1\t2\tx\t876893171\n2\t1\n0\t1\t3\t1\n")
    (tmp_path / "u1.test").write_text("2\t1\t4\t888550871\n1\t1\t1\t888550872\n")
    flags = ["0"] * 19
    flags[3] = flags[5] = "1"
    films = ["|".join(["1", "Amélie (1995)", "01-Jan-1995", "", "http://x", *flags])]
    films.append("|".join(["2", "unknown", "", "", "", "1", *["0"] * 18]))
    (tmp_path / "u.item").write_bytes("\n".join(films).encode("latin-1"))
    _, rows, items = read(
        tmp_path, source="movielens", reviews=tmp_path / "u1.base", test=tmp_path / "u1.test"
    )
    text = "Amélie (1995). Animation, Comedy"
    assert rows == [
        review("1", "1", 5.0, text, 874965758, split="train"),
        review("2", "1", 4.0, text, 888550871, split="test"),
    ]
    assert [(i["title"], i["categories"]) for i in items] == [
        ("Amélie (1995)", ["Animation", "Comedy"]),
        ("unknown", None),
    ]
    assert [(r["file"], r["line"], r["reason"]) for r in rejected(tmp_path)] == [
        ("u1.base", 2, "rating is not a number"),
        ("u1.base", 3, "wrong number of fields"),
        ("u1.base", 4, "id is not a number from 1"),
        ("u1.test", 2, "duplicate user-item pair"),
    ]


def test_movielens_1m_form(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n")
    (tmp_path / "movies.dat").write_bytes("1193::Café (1975)::Drama|Children's|War\n".encode("latin-1"))
    _, rows, items = read(tmp_path, source="movielens", reviews=tmp_path)
    assert rows == [review("1", "1193", 5.0, "Café (1975). Drama, Children's, War", 978300760)]
    assert items[0]["categories"] == ["Drama", "Children's", "War"]


def test_movielens_with_a_header_is_sent_to_table(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"ratings\.csv: line 1 .*--source table"):
        read(tmp_path, source="movielens", reviews=tmp_path / "ratings.csv")


# real data --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DATA / "zomato").exists(), reason="the Zomato files are not here")
def test_zomato(tmp_path):
    columns = {"user": "Reviewer", "item": "Restaurant", "rating": "Rating", "text": "Review", "time": "Time"}
    item_columns = {"item": "Name", "title": "Name", "categories": "Cuisines", "price": "Cost"}
    folder = DATA / "zomato"
    manifest, rows, items = read(
        tmp_path,
        source="table",
        reviews=folder / "reviews.csv",
        items=folder / "restaurants.csv",
        columns=columns,
        item_columns=item_columns,
        max_rejected=0.05,
    )
    facts = manifest.facts
    assert (facts["read"], facts["accepted"], facts["users"], facts["items"]) == (10_000, 9_842, 7_446, 100)
    reasons = {"duplicate user-item pair": 119, "empty row": 38, "rating is not a number": 1}
    assert facts["rejected"] == reasons and facts["time_unread"] == 0
    like = next(r for r in rejected(tmp_path) if r["reason"] == "rating is not a number")
    assert like["row"]["Rating"] == "Like"
    text = (folder / "reviews.csv").read_text(encoding="utf-8").split("\n")
    assert text[like["line"] - 1].startswith(like["row"]["Restaurant"] + ",")
    assert rows[0]["timestamp"] == 1558799640 and rows[0]["text"].count("\n") == 2
    assert len(items) == 105 and items[2]["price"] == 1300.0
    assert items[2]["categories"] == ["Asian", "Mediterranean", "North Indian", "Desserts"]


@pytest.mark.skipif(not (DATA / "movielens-100k").exists(), reason="MovieLens 100k is not here")
def test_movielens_100k(tmp_path):
    folder = DATA / "movielens-100k"
    manifest, rows, items = read(
        tmp_path, source="movielens", reviews=folder / "u1.base", test=folder / "u1.test"
    )
    facts = manifest.facts
    assert (
        (facts["accepted"], facts["users"], facts["items"])
        == (100_000, 943, 1_682)
        == (len(rows), 943, len(items))
    )
    assert (facts["published_train"], facts["published_test"]) == (80_000, 20_000)
    assert facts["rejected"] == {} and facts["with_text"] == 100_000
    assert rows[0]["text"] == "Toy Story (1995). Animation, Children's, Comedy"
