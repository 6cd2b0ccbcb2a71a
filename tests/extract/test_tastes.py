"""What is said of a place, of the writer's taste, and by an item's own title."""

from __future__ import annotations

from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.files import read_table
from tests.extract.test_extract import run, tables


def test_tastes_are_the_users_and_the_rest_the_places(tmp_path):
    rows = [
        ("u", "i", "I could eat donuts every day. The pizza was fine. Normally I avoid buffets.", None),
        ("u", "j", "I am a fan of donuts and of pizza.", None),
        ("v", "i", "Great pizza", None),
    ]
    run(rows, tmp_path)
    content, _ = tables(tmp_path)
    assert content["users", "u", -1]["likes"][:1] == ["Donuts"]  # said twice
    assert content["users", "u", -1]["avoids"] == ["Buffet"]
    assert content["users", "v", -1]["likes"] == [] == content["users", "v", -1]["avoids"]
    assert content["items", "i", -1]["categories"][0] == "Pizza"
    assert not {"Donuts", "Buffet"} & set(content["items", "i", -1]["categories"])
    assert content["items", "j", -1]["categories"] == []
    fold = next(f for side, name, f in content if (side, name) == ("users", "u") and f >= 0)
    seen = content["users", "u", fold]
    assert ("Pizza" in seen["likes"]) != ("Buffet" in seen["avoids"])  # one of the two reviews is left out


def test_a_title_speaks_for_the_item_as_two_reviews_would(tmp_path):
    rows = [(f"u{n}", "i", text, None) for n, text in enumerate(["Good ramen", "Nice tacos", "Nice tacos"])]
    run(rows, tmp_path / "none")
    assert tables(tmp_path / "none")[0]["items", "i", -1]["categories"][0] == "Tacos"
    items = [{"item_id": "i", "title": "Ramen House"}]
    run(rows, tmp_path / "title", items)
    assert tables(tmp_path / "title")[0]["items", "i", -1]["categories"][0] == "Ramen"
    described = read_table(
        tmp_path / "title/content/metadata",
        schema.with_vectors(schema.METADATA_CONTENT, {"text_vector": 384, "image_vector": 384}),
    )
    assert described["id"].to_pylist() == ["i"] and described["text_vector"].null_count == 0
