"""The benchmark measures what it says, on both sides."""

import json

import numpy as np
import polars as pl
import pytest

import swing
from swing.benchmark import graphs, measure
from swing.benchmark.__main__ import main, on_paper


def test_every_section_on_small_graphs(tmp_path, capsys):
    pytest.importorskip("recfarm")
    draw = np.random.default_rng(0)
    lines = (" ".join(map(str, (user, *draw.choice(60, 8, replace=False)))) for user in range(90))
    (tmp_path / "small.txt").write_text("\n".join(lines))
    sizes = ["--edges", "0.02", "0.04", "--repeats", "1", "--threads", "2", "--folder", str(tmp_path)]
    sections = ["recfarm", "powerlaw", "threads", "passes"]
    flags = ["--graph", str(tmp_path / "small.txt"), "--json", str(tmp_path / "all.json")]
    assert main([*sections, *sizes, *flags]) == 0
    report = json.loads((tmp_path / "all.json").read_text())
    (versus,) = report["recfarm"]
    assert versus["same"] and versus["largest_difference"] < 1e-5
    assert versus["ours"][0]["pairs"] == versus["theirs"][0]["pairs"] > 1000
    assert versus["times"] == pytest.approx(versus["theirs"][0]["seconds"] / versus["ours"][0]["seconds"])
    runs = report["powerlaw"]["runs"]
    assert [run["manifest"]["input"]["rows"] for run in runs] == [20_000, 40_000]
    slope = np.log(runs[1]["seconds"] / runs[0]["seconds"]) / np.log(2)
    assert runs[1]["slope"] == pytest.approx(slope) and runs[0]["peak_mib"] > 50
    threads = report["threads"]
    table = pl.read_parquet(tmp_path / "powerlaw-0.02---integers.parquet")
    graph = swing.interactions.build(swing.read(table), swing.SwingConfig())
    assert threads["edges"] == len(graph.anchor_idx) and set(threads["seconds"]) == {"1", "2"}
    assert sum(row["share"] for row in report["passes"]["passes"].values()) == pytest.approx(1)
    assert report["passes"]["passes"]["pair"]["of"] == f"{threads['updates']:,} pair updates"
    printed = capsys.readouterr().out
    for title in ("recfarm s", "score and write s", "times 1 thread", "where the time goes", "on paper"):
        assert title in printed


def test_the_power_law_has_its_law(tmp_path):
    path = graphs.power_law(tmp_path / "a.parquet", 200_000, users=1000, items=500)
    table = pl.read_parquet(path)
    users, items = (np.sort(table[name].to_numpy()) for name in ("user_id", "item_id"))
    for values, count, skew in ((users, 1000, 1.3), (items, 500, 2.0)):
        assert 0 <= values[0] and values[-1] < count
        for share in (0.1, 0.5, 0.9):  # the share of rows below N·x^skew is x
            assert np.mean(values < count * share**skew) == pytest.approx(share, abs=0.01)
    text = pl.read_parquet(graphs.power_law(tmp_path / "b.parquet", 200_000, 1000, 500, strings=True))
    assert text["item_id"].str.slice(5).cast(int).equals(table["item_id"])


def test_results_that_differ_are_told(tmp_path):
    counts, codes, scores = np.array([2, 1]), np.array([1, 0, 0]), np.array([2.0, 1.0, 3.0], np.float32)
    measure.save(tmp_path / "a.npz", counts, codes, scores)
    measure.save(tmp_path / "b.npz", counts, np.array([0, 1, 0]), np.array([1.0, 2.0, 3.0], np.float32))
    measure.save(tmp_path / "c.npz", counts, codes, np.array([2.0, 1.0, 3.1], np.float32))
    measure.save(tmp_path / "d.npz", np.array([1, 2]), codes, scores)
    comparison = measure.compare(tmp_path / "a.npz", tmp_path / "b.npz")
    assert comparison == {"same_pairs": True, "largest_difference": 0.0}
    assert measure.compare(tmp_path / "a.npz", tmp_path / "c.npz")["largest_difference"] > 0.03
    assert not measure.compare(tmp_path / "a.npz", tmp_path / "d.npz")["same_pairs"]


def test_ten_billion_edges_on_paper():
    """Everything in proportion: 1,000 times the edges of the last run."""

    def run(edges, scale):
        seconds = {"read": 1.0 * scale, "build": 2.0 * scale, "score_and_write": 4.0 * scale}
        facts = {"users": edges // 10, "items": edges // 40}
        manifest = {"seconds": seconds, "input": facts}
        return {"edges": edges, "peak_mib": 500 + 100 * scale, "manifest": manifest}

    paper = on_paper([run(5_000_000, 1), run(10_000_000, 2)], threads=2, nodes=4, cores=8)
    assert paper["driver reads and builds in"] == "1.7 h"  # (2 + 4) s * 1,000
    assert paper["all score in"] == "8.3 min"  # 8 s * 2 threads * 1,000 over 32 cores
    assert paper["with memory"] == "200 GB"  # 100 MiB more for 5 million edges more
    assert paper["graph"] == "100 GB once a node" and paper["moved"] == "0.3 TB"


def test_what_cannot_be_measured_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["recfram"])
    assert "unknown section recfram" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("1 2 three\n")
    assert main(["recfarm", "--graph", str(tmp_path / "words.txt")]) == 2
    assert "words.txt: not a graph of lines" in capsys.readouterr().err
