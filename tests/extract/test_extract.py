"""The extraction stage: what its tables hold, and what a training row's content must not know."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.extract.agreement import agreement
from dlrrec_torchrec.extract.crossfit import random_folds, row_hashes, time_folds, versions
from dlrrec_torchrec.extract.rules.summarize import CANDIDATES, RELEVANCE, mmr, summary_pieces
from dlrrec_torchrec.extract.sentences import split_sentences
from dlrrec_torchrec.extract.stage import extract
from dlrrec_torchrec.store import schema
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest

PHRASES = [
    "The biryani was great.",
    "Very expensive!",
    "Pocket friendly place.",
    "We had pasta and pizza.",
    "Service was slow.",
    "Sushi rolls were fresh.",
    "Worth every penny.",
    "Idli and dosa for breakfast.",
    "\U0001f60b",
    "",
]


class FakeEncoder:
    """Random unit vectors that depend on the text alone."""

    identity, dim = "fake", 384

    def __init__(self, limit=10**9):
        self.limit, self.made = limit, 0

    def encode_batches(self, texts):
        for i, text in enumerate(texts):
            if self.made >= self.limit:
                raise KeyboardInterrupt
            self.made += 1
            yield np.asarray([i]), vector(text)[None]


def vector(text):
    numbers = np.random.default_rng(list(text.encode())).normal(size=384)
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def write_split(rows, folder):
    """rows: (user, item, text, captions)."""
    users, items, texts, captions = zip(*rows, strict=True)
    n = len(rows)
    table = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "rating": np.full(n, 4, np.float32),
            "text": pa.array(texts, pa.string()),
            "timestamp": pa.nulls(n, pa.int64()),
            "images": pa.nulls(n, pa.list_(pa.string())),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "split": pa.nulls(n, pa.string()),
            "label": np.ones(n, np.float32),
        }
    ).cast(schema.SPLIT)
    write_table(table, folder / "train")
    Manifest("split", {"rows": repr(rows)}, {}).write(folder)
    return folder


def write_items(rows, folder):
    """rows: dicts of ITEMS columns."""
    write_table(pa.Table.from_pylist(rows, schema.ITEMS), folder)
    Manifest("ingest", {"rows": repr(rows)}, {}).write(folder)
    return folder


def run(rows, root, items=None, encoder=None, **settings):
    split = write_split(rows, root / "split")
    metadata = write_items(items, root / "items") if items else root / "no-items"
    options = ExtractConfig(**({"folds": 3, "summary_sentences": 2} | settings))
    return extract(options, split, metadata, root / "content", root / "cache", encoder or FakeEncoder())


def tables(root):
    """The content as {("users", id, fold): row, ...} and its reviews in order."""
    content_rows = {}
    dims = {"text_vector": 384, "image_vector": 384}
    for side, kind in (
        ("users", schema.with_vectors(schema.USER_CONTENT, {"text_vector": 384})),
        ("items", schema.with_vectors(schema.ITEM_CONTENT, dims)),
    ):
        for row in read_table(root / "content" / side, kind).to_pylist():
            content_rows[side, row["id"], row["fold"]] = row
    return content_rows, read_table(
        root / "content" / "reviews", schema.with_vectors(schema.REVIEW_CONTENT, dims)
    ).to_pylist()


def test_slots_cut_the_categories_and_dims_are_the_encoders(tmp_path):
    text = " ".join(PHRASES[:8])
    rows = [("u", "i", text, None), ("v", "i", text, None)]
    every = run(rows, tmp_path / "all")
    assert every.facts["vector_dims"] == {"text": 384, "image": 384} and every.facts["category_slots"] == 11
    whole = tables(tmp_path / "all")[0]["items", "i", -1]["categories"]
    assert len(whole) > 2
    cut = run(rows, tmp_path / "two", category_slots=2)
    assert cut.facts["category_slots"] == 2
    assert tables(tmp_path / "two")[0]["items", "i", -1]["categories"] == whole[:2]
    with pytest.raises(DataError, match="extract.category_slots .*: 0 must be at least 1"):
        run(rows, tmp_path / "none", category_slots=0)


def random_rows(rng, n=40, users=8, items=5):
    pairs = rng.permutation([(u, i) for u in range(users) for i in range(items)])[:n]

    def text():
        return None if rng.random() < 0.1 else " ".join(rng.choice(PHRASES, rng.integers(0, 5)))

    def captions():
        return (
            None if rng.random() < 0.5 else [f"a photo of {c}" for c in rng.choice(["cake", "rice", ""], 2)]
        )

    return [(f"u{u}", f"i{i}", text(), captions()) for u, i in pairs]


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.integers(2, 6), st.data())
def test_a_row_never_sees_its_own_review(tmp_path_factory, seed, folds, data):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, n=int(rng.integers(1, 40)))
    changed = list(rows)
    at = data.draw(st.integers(0, len(rows) - 1))
    user, item, *_ = rows[at]
    changed[at] = (user, item, "Cheap sushi. Tasty falafel! Ripped off.", ["an image of soup"])
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    run(rows, before, folds=folds)
    run(changed, after, folds=folds)
    (old, old_reviews), (new, new_reviews) = tables(before), tables(after)
    review = old_reviews[at]
    for side, entity in (("users", user), ("items", item)):
        assert old[side, entity, review["fold"]] == new[side, entity, review["fold"]]
    assert old.keys() == new.keys()  # no review moved to another fold
    elsewhere = [k for k in old if k[:2] not in (("users", user), ("items", item))]
    assert all(old[k] == new[k] for k in elsewhere)
    old_reviews.pop(at), new_reviews.pop(at)
    assert old_reviews == new_reviews


def test_a_fold_is_the_content_of_the_table_without_its_reviews(tmp_path):
    rows = random_rows(np.random.default_rng(5))
    items = [{"item_id": "i0", "text": "A biryani house. Since 1950.", "captions": ["a photo of a hall"]}]
    run(rows, tmp_path / "all", items=items)
    content, reviews = tables(tmp_path / "all")
    assert {(r["user_id"], r["item_id"]) for r in reviews} == {(u, i) for u, i, *_ in rows}
    for side, column in (("users", "user_id"), ("items", "item_id")):
        for (kind, entity, fold), row in content.items():
            if kind != side or fold == -1:
                continue
            other_reviews = [
                r
                for r, c in zip(rows, reviews, strict=True)
                if not (c[column] == entity and c["fold"] == fold)
            ]
            root = tmp_path / f"{entity}-{fold}"
            run(other_reviews, root, items=items)
            alone = tables(root)[0].get((side, entity, -1))
            if alone is None:  # nothing is left of it
                assert row["summary"] is None and row["text_vector"] is None
            else:
                assert {**alone, "fold": fold} == row


def test_content_by_hand(tmp_path):
    rows = [
        ("ann", "cafe", "The sushi was fresh. Too expensive!", ["a photo of sushi", "", "An image of rice."]),
        ("bob", "cafe", "Sushi again", None),
        ("ann", "bar", None, None),
    ]
    manifest = run(rows, tmp_path, summary_sentences=5, folds=1000)  # so many that no two reviews share one
    content, reviews = tables(tmp_path)
    assert manifest.rows == {"reviews": 3, "metadata": 0, "users": 5, "items": 5}
    first_vector, second_vector = vector("The sushi was fresh."), vector("Too expensive!")
    mean = (first_vector + second_vector) / np.linalg.norm(first_vector + second_vector)
    np.testing.assert_allclose(reviews[0]["text_vector"], mean, atol=1e-3)
    np.testing.assert_allclose(reviews[0]["image_vector"], (vector("sushi") + vector("rice")) / 2, atol=1e-3)
    assert reviews[1]["image_vector"] is None and reviews[2]["text_vector"] is None
    cafe = content["items", "cafe", -1]
    assert sorted(cafe["summary"].replace("!", ".").split(". ")) == [
        "Sushi again.",
        "The sushi was fresh",
        "Too expensive",
    ]
    three = first_vector + second_vector + vector("Sushi again")
    np.testing.assert_allclose(cafe["text_vector"], three / np.linalg.norm(three), atol=1e-3)
    np.testing.assert_allclose(cafe["image_vector"], (vector("sushi") + vector("rice")) / 2, atol=1e-3)
    assert cafe["price_tag"] == "overpriced" and cafe["categories"][0] == "Sushi"
    without_ann = content["items", "cafe", reviews[0]["fold"]]
    assert without_ann["summary"] == "Sushi again." and without_ann["price_tag"] == "none"
    assert without_ann["image_vector"] is None
    empty = content["items", "bar", reviews[2]["fold"]]
    assert (empty["summary"], empty["text_vector"], empty["price_tag"]) == (None, None, "none")
    assert empty["categories"] == []
    assert content["users", "bob", reviews[1]["fold"]]["summary"] is None


def test_price_and_categories_from_the_metadata(tmp_path):
    rows = [(f"u{i}", f"i{i}", "Cheap pizza", None) for i in range(4)]
    kinds = [f"Kind {k}" for k in range(14)]
    items = [{"item_id": f"i{i}", "price": p, "categories": kinds} for i, p in enumerate([10.0, 20.0, 90.0])]
    manifest = run(rows, tmp_path, items=items, price_from="items", categories_from="items")
    content, reviews = tables(tmp_path)
    tags = [content["items", f"i{i}", -1]["price_tag"] for i in range(4)]
    assert tags == ["cheap", "fair", "overpriced", "none"]
    assert content["items", "i0", -1]["categories"] == kinds[:11]
    assert content["items", "i0", reviews[0]["fold"]]["categories"] == kinds[:11]
    assert content["items", "i3", -1]["categories"] == []
    assert "agreement" not in manifest.facts  # nothing extracted to compare


@pytest.mark.parametrize("words", [None, "Cheap pizza"])
def test_reviews_without_words_leave_price_and_categories_to_the_metadata(tmp_path, words):
    rows = [(f"u{i}", f"i{i}", None, None) for i in range(3)] + [("u3", "i3", words, None)]
    items = [
        {"item_id": f"i{i}", "text": "A film", "price": 10.0 * i, "categories": ["Film-Noir"]}
        for i in range(3)
    ]
    manifest = run(rows, tmp_path, items=items)
    content, _ = tables(tmp_path)
    own = words is None
    assert manifest.facts["from_items"] == {"categories": own, "price": own}
    assert [content["items", f"i{i}", -1]["categories"] for i in range(3)] == [
        ["Film-Noir"] if own else []
    ] * 3
    tags = [content["items", f"i{i}", -1]["price_tag"] for i in range(3)]
    assert tags == (["cheap", "fair", "overpriced"] if own else ["none"] * 3)


def test_metadata_counts_as_one_more_review(tmp_path):
    items = [
        {"item_id": "i", "text": "Biryani since 1950.", "captions": ["a photo of a hall"], "price": 5.0},
        {"item_id": "unseen", "text": "No training review.", "categories": ["Pizza"]},
    ]
    manifest = run([("u", "i", None, None)], tmp_path, items=items, price_from="text")
    content, _ = tables(tmp_path)
    for fold in (-1, 0):
        row = content["items", "i", fold]
        assert row["summary"] == "Biryani since 1950." and row["categories"][0] == "Biryani"
        np.testing.assert_allclose(row["image_vector"], vector("a hall"), atol=1e-3)
    (own,) = pq.read_table(tmp_path / "content" / "metadata").to_pylist()
    assert own["id"] == "i" and manifest.rows["metadata"] == 1
    np.testing.assert_allclose(own["text_vector"], vector("Biryani since 1950."), atol=1e-3)
    price = manifest.facts["agreement"].pop("price")
    assert not manifest.facts["agreement"] and (price["items"], price["tagged"]) == (1, 0)


def test_a_finished_stage_is_not_repeated_and_a_killed_one_goes_on(tmp_path):
    rows = random_rows(np.random.default_rng(1))
    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path, encoder=FakeEncoder(limit=3))
    assert not (tmp_path / "content").exists()
    second = FakeEncoder()
    manifest = run(rows, tmp_path, encoder=second)
    assert manifest.facts["embedded"] == second.made > 0 and not manifest.reused
    distinct = {s for _, _, text, _ in rows for s in split_sentences(text)} | {"cake", "rice"}
    assert second.made + 3 == len(distinct) == manifest.facts["texts"]
    assert run(rows, tmp_path, encoder=FakeEncoder(limit=0)).reused
    assert not run(rows, tmp_path, encoder=FakeEncoder(limit=0), summary_sentences=3).reused


@pytest.mark.parametrize("setting", ["folds", "summary_sentences"])
def test_settings_out_of_range_are_named(tmp_path, setting):
    with pytest.raises(DataError, match=f"extract.{setting} .*: 0 must be at least"):
        run([("u", "i", "Good.", None)], tmp_path, **{setting: 0})


@given(st.integers(1, 60), st.integers(2, 7), st.integers(0, 9))
def test_a_rows_fold_is_its_own(rows, folds, seed):
    hashes = row_hashes([f"row{i}" for i in range(rows)], ["i"] * rows, seed)
    fold = random_folds(hashes, folds)
    assert set(fold) <= set(range(folds))
    order = np.random.default_rng(seed).permutation(rows)
    np.testing.assert_array_equal(random_folds(hashes[order], folds), fold[order])


def test_random_folds_are_of_about_one_size():
    sizes = np.bincount(random_folds(row_hashes([str(i) for i in range(5000)], ["i"] * 5000, 0), 5))
    assert len(sizes) == 5 and sizes.min() > 900


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(2, 7))
def test_blocks_of_time_keep_its_order(times, folds):
    times = np.asarray(times)
    fold = time_folds(times, folds)
    assert fold.min() >= 0 and fold.max() < folds
    for a, b in zip(*np.triu_indices(len(times), 1), strict=True):
        assert (times[a] < times[b]) <= (fold[a] <= fold[b])
        assert times[a] != times[b] or fold[a] == fold[b]
    if len(set(times)) == len(times):
        assert np.ptp(np.bincount(fold, minlength=min(folds, len(times)))) <= 1 or len(times) < folds
    for _, k, rows in versions(np.zeros(len(times), int), fold, 1, earlier=True):
        assert k == -1 or (fold[rows] < k).all() and len(rows) == (fold < k).sum()


def test_blocks_of_time_need_times(tmp_path):
    with pytest.raises(DataError, match="'timestamp': 1 of 1 rows have no time.*--fold-by random"):
        run([("u", "i", "Good.", None)], tmp_path, fold_by="time")


def mmr_scores(vectors, relevance, picked, trade_off):
    """The definition: the score of every row that is not yet picked."""
    return {
        i: trade_off * relevance[i]
        - (1 - trade_off) * max((float(vectors[i] @ vectors[j]) for j in picked), default=0.0)
        for i in range(len(vectors))
        if i not in picked
    }


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 8), st.floats(0.0, 1.0))
def test_every_pick_of_mmr_is_the_best_by_its_definition(seed, n, k, trade_off):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = rng.random(n).astype(np.float32)
    picked = mmr(vectors, relevance, k, trade_off)
    assert len(picked) == min(k, n)
    for step, pick in enumerate(picked):
        scores = mmr_scores(vectors, relevance, picked[:step], trade_off)
        assert scores[pick] >= max(scores.values()) - 1e-5


def test_equal_rows_are_picked_in_order():
    assert mmr(np.eye(3, dtype=np.float32), np.ones(3, np.float32), 3) == [0, 1, 2]


def test_summaries_are_central_and_diverse():
    rng = np.random.default_rng(0)
    base = np.eye(3, 8, dtype=np.float32)
    noisy = [base[0], base[0] + 0.01 * rng.normal(size=8), base[1], base[2]]
    vectors = np.stack([v / np.linalg.norm(v) for v in noisy]).astype(np.float16)
    pieces = np.asarray([0, 0, 1, 2, 2, 3])
    assert summary_pieces(pieces, vectors, np.ones(4, np.float32), 1).tolist() in ([0], [1])
    summary = summary_pieces(pieces, vectors, np.ones(4, np.float32), 2).tolist()
    # Not the same thing twice, and the more common of the others.
    assert 2 in summary and not {0, 1} <= set(summary)
    damped = summary_pieces(pieces, vectors, np.asarray([0.1, 0.1, 1, 1], np.float32), 1)
    assert damped.tolist() == [2]


def test_only_the_most_central_of_many_are_candidates():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(CANDIDATES + 300, 16)) + 0.3
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    wide = vectors.astype(np.float32)
    centre = wide.mean(axis=0) / np.linalg.norm(wide.mean(axis=0))
    central = np.sort(np.argsort(-(wide @ centre))[:CANDIDATES])
    summary = summary_pieces(np.arange(len(vectors)), vectors, np.ones(len(vectors), np.float32), 5).tolist()
    positions = [central.tolist().index(piece) for piece in summary]
    for step, pick in enumerate(positions):
        scores = mmr_scores(wide[central], wide[central] @ centre, positions[:step], RELEVANCE)
        assert scores[pick] >= max(scores.values()) - 1e-5


def test_agreement_reads_the_tables(tmp_path):
    rows = [("a", "x", "Expensive sushi", None), ("b", "y", "Affordable pizza", None)]
    items = [
        {"item_id": "x", "price": 9.0, "categories": ["Sushi"]},
        {"item_id": "y", "price": 1.0, "categories": ["Pizza"]},
        {"item_id": "unseen", "price": 100.0, "categories": ["Thai"]},
    ]
    manifest = run(rows, tmp_path, items=items)
    result = agreement(tmp_path / "content", tmp_path / "items", 11)
    assert result == manifest.facts["agreement"]
    assert result["price"]["equal"] == 1.0 and result["price"]["spearman"] == 1.0
    assert result["categories"]["at_1"]["extracted"] == [1.0, 1.0, 1.0]
