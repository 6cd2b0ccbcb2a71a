"""SWING beside an independent implementation: LibRecommender's recfarm."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import swing
from swing import interactions, local
from tests.helpers.graphs import frame, gathered, random_pairs

pytest.importorskip("recfarm")
from swing.benchmark import recfarm_adapter  # noqa: E402

GOWALLA = Path(__file__).parents[2].parent / "shared" / "data" / "graphs" / "gowalla.txt"


def assert_agrees(table: pl.DataFrame, alpha: float) -> int:
    """The same pairs, scores within 1e-5 (recfarm adds up in f32); returns how many."""
    read = swing.read(table)
    items = len(read.item_ids)
    config = swing.preset("recfarm", alpha=alpha, top_k=items)
    graph = interactions.build(read, config)
    counts, codes, scores = gathered(local.Scorer(graph, config).score(0, items))
    users = np.repeat(np.arange(len(read.user_ids)), np.diff(read.user_ptr))
    ptr, their_codes, their_scores, seconds = recfarm_adapter.neighbors(
        users, read.item_idx, len(read.user_ids), items, alpha, 2
    )
    assert seconds > 0 and np.array_equal(counts, np.diff(ptr))
    anchor = np.repeat(np.arange(items), counts)
    ours, theirs = np.lexsort((codes, anchor)), np.lexsort((their_codes, anchor))
    assert np.array_equal(codes[ours], their_codes[theirs])
    np.testing.assert_allclose(scores[ours], their_scores[theirs], rtol=1e-5)
    return len(codes)


def test_the_adapter_reads_what_recfarm_saved():
    """The graph worked by hand in `swing.config`: x, y, z, w of users a, b, c, d."""
    users, items = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3], [0, 1, 2, 0, 1, 0, 1, 3, 0, 2]
    ptr, codes, scores, _ = recfarm_adapter.neighbors(np.array(users), np.array(items), 4, 4, 1.0, 1)
    assert ptr.tolist() == [0, 2, 3, 4, 4] and codes.tolist() == [1, 2, 0, 0]
    assert scores == pytest.approx([0.5749149, 0.2041241, 0.5749149, 0.2041241], abs=1e-6)


def test_the_adapter_leaves_standard_output_alone(capfd):
    recfarm_adapter.neighbors(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 2, 2, 1.0, 1)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("alpha", [0.5, 1.0, 7.0])
def test_random_graphs_agree(alpha):
    for seed in range(5):
        assert assert_agrees(frame(random_pairs(seed, 60, 40, 600, skew=1.5)), alpha) > 100


@pytest.mark.skipif(not GOWALLA.exists(), reason="the public graph is not beside the project")
def test_a_public_graph_agrees():
    """The first 5,000 users of Gowalla."""
    lines = GOWALLA.read_text().splitlines()[:5_000]
    rows = [[int(word) for word in line.split()] for line in lines]
    table = pl.DataFrame({"user_id": [r[0] for r in rows], "item_id": [r[1:] for r in rows]})
    assert assert_agrees(table.explode("item_id").drop_nulls(), 1.0) > 50_000
