"""The stage that turns training rows into SWING neighbours."""

import random

import polars as pl
import pyarrow as pa
import pytest

from dlrrec_torchrec.config import SwingStageConfig
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import NEIGHBORS, SPLIT
from dlrrec_torchrec.swing_stage import neighbors
from swing import preset, reference
from swing.config import SIMILARITIES


def write_split(folder, pairs, ratings=None, **names):
    """A split folder whose train part holds `pairs`, in two files, and its test part one pair more."""
    ratings = ratings or [4.0] * len(pairs)
    table = pa.Table.from_pylist(
        [
            {"user_id": u, "item_id": i, "rating": r, "label": float(r >= 4)}
            for (u, i), r in zip(pairs, ratings, strict=True)
        ],
        schema=SPLIT,
    )
    write_table(table, folder / "train", rows_per_part=-(-len(pairs) // 2))
    write_table(table.slice(0, 1), folder / "test")
    Manifest("split", {"pairs": repr(pairs), **names}, {}).write(folder)
    return folder


@pytest.fixture
def pairs():
    draw = random.Random(6)
    return sorted(
        {(f"u{draw.randrange(30)}", f"i{draw.randrange(12)}") for _ in range(120)} | {("alone", "i1")}
    )


def rows(folder):
    return read_table(folder, NEIGHBORS).to_pylist()


def test_both_sides_follow_the_formula(tmp_path, pairs):
    config = SwingStageConfig(top_k=4, threads=2)
    manifest = neighbors(config, write_split(tmp_path / "split", pairs), tmp_path / "swing")
    for side in ("users", "items"):
        scores = reference.scores(pairs, preset("dlrrec"), side)
        lists = rows(tmp_path / "swing" / side)
        assert [row["id"] for row in lists] == sorted(scores)
        for row in lists:
            best = sorted(scores[row["id"]].items(), key=lambda pair: (-round(pair[1], 6), pair[0]))[:4]
            assert row["neighbors"] == [other for other, _ in best]
            assert row["scores"] == pytest.approx([score for _, score in best], rel=1e-6)
        facts = manifest.facts[side]
        assert facts["ids"] == manifest.rows[side] == len(scores)
        assert facts["coverage"] == pytest.approx(sum(map(bool, scores.values())) / len(scores), abs=1e-6)
        assert facts["edges"] <= len(pairs) and facts["seconds"] >= 0
    alone = next(row for row in rows(tmp_path / "swing" / "users") if row["id"] == "alone")
    assert alone["neighbors"] == [] and alone["scores"] == []
    assert manifest.facts["items"]["dropped"]["edges_below_min_user_items"] >= 1


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_another_similarity_can_be_asked_for(tmp_path, pairs, similarity):
    split = write_split(tmp_path / "split", pairs)
    neighbors(SwingStageConfig(similarity=similarity, top_k=3), split, tmp_path / "swing")
    scores = reference.scores(pairs, preset(similarity=similarity), "items")
    for row in rows(tmp_path / "swing" / "items"):
        best = sorted(scores[row["id"]].values(), reverse=True)[:3]
        assert row["scores"] == pytest.approx(best, rel=1e-6) and len(best) == 3


def test_no_rating_changes_a_positive(tmp_path, pairs):
    draw = random.Random(1)
    for name in ("one", "two"):
        ratings = [float(draw.randint(1, 5)) for _ in pairs]
        neighbors(
            SwingStageConfig(), write_split(tmp_path / f"{name}-split", pairs, ratings), tmp_path / name
        )
    for side in ("users", "items"):
        assert rows(tmp_path / "one" / side) == rows(tmp_path / "two" / side)


def test_liked_pairs_alone_make_neighbours(tmp_path, pairs):
    draw = random.Random(2)
    ratings = [float(draw.randint(2, 5)) for _ in pairs]
    liked = [pair for pair, rating in zip(pairs, ratings, strict=True) if rating >= 4]
    split = write_split(tmp_path / "split", pairs, ratings)
    neighbors(SwingStageConfig(pairs="liked"), split, tmp_path / "swing")
    neighbors(SwingStageConfig(), split, tmp_path / "all")
    neighbors(SwingStageConfig(), write_split(tmp_path / "liked", liked), tmp_path / "expected")
    for side in ("users", "items"):
        assert rows(tmp_path / "swing" / side) == rows(tmp_path / "expected" / side)
        assert rows(tmp_path / "swing" / side) != rows(tmp_path / "all" / side)
    none = write_split(tmp_path / "none", pairs, [1.0] * len(pairs))
    with pytest.raises(DataError, match="column 'label': no row is liked; run `dlrrec swing --pairs all`"):
        neighbors(SwingStageConfig(pairs="liked"), none, tmp_path / "nobody")


def test_the_cap_bounds_both_roles(tmp_path):
    """A user of 9 items and an item of 9 users keep 3 of them, whichever side is compared."""
    pairs = [("u0", f"i{n}") for n in range(9)] + [(f"u{n}", "i0") for n in range(1, 9)]
    pairs += [(f"u{n}", f"i{n}") for n in range(1, 9)]
    config = SwingStageConfig(max_item_users=3, min_user_items=1)
    manifest = neighbors(config, write_split(tmp_path / "split", pairs), tmp_path / "swing")
    for side in ("users", "items"):
        dropped = manifest.facts[side]["dropped"]
        # Both halves lose 6 edges, or 5 where the one edge (u0, i0) that they share falls to both.
        assert dropped["edges_not_in_sample_user_items"] == 6
        assert dropped["edges_not_in_sample_item_users"] in (5, 6)


def test_a_finished_stage_is_not_repeated(tmp_path, pairs):
    split = write_split(tmp_path / "split", pairs)
    first = neighbors(SwingStageConfig(), split, tmp_path / "swing")
    again = neighbors(SwingStageConfig(threads=1), split, tmp_path / "swing")
    assert again.reused and again.fingerprint == first.fingerprint and again.facts == first.facts
    other = neighbors(SwingStageConfig(alpha=2.0), split, tmp_path / "swing")
    assert not other.reused and other.fingerprint != first.fingerprint
    assert rows(tmp_path / "swing" / "items")[0]["scores"] != []


@pytest.mark.parametrize(
    ("config", "pairs", "words"),
    [
        (SwingStageConfig(preset="flinc"), [("a", "x"), ("b", "y")], "unknown preset 'flinc'.*'flink'"),
        (SwingStageConfig(), [("a", "x"), ("a", "y")], "only one of the users"),
        (SwingStageConfig(), [("a", "x"), ("b", "y")], "limits dropped all 2.*lower min_user_items"),
        (SwingStageConfig(top_k=0), [("a", "x"), ("b", "y")], "swing.top_k .*must be at least 1"),
    ],
)
def test_unusable_rows_and_settings(tmp_path, config, pairs, words):
    with pytest.raises(DataError, match=words):
        neighbors(config, write_split(tmp_path / "split", pairs), tmp_path / "swing")
    assert not (tmp_path / "swing").exists()


def test_missing_split_and_missing_column(tmp_path, pairs):
    with pytest.raises(DataError, match="run the stage that writes 'split' first"):
        neighbors(SwingStageConfig(), tmp_path / "split", tmp_path / "swing")
    split = write_split(tmp_path / "split", pairs)
    for part in (split / "train").glob("*.parquet"):
        pl.read_parquet(part).rename({"item_id": "sku"}).write_parquet(part)
    with pytest.raises(DataError, match="'item_id' is missing"):
        neighbors(SwingStageConfig(), split, tmp_path / "swing")
