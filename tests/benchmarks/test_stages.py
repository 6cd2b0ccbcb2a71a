"""`dlrrec bench stages` on few reviews."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from dlrrec_torchrec.benchmarks.cases import StagesCase
from dlrrec_torchrec.benchmarks.stages import STAGES, HashEncoder, format_stages, growth, in_process
from dlrrec_torchrec.cli import main
from dlrrec_torchrec.store.errors import DataError


def test_each_stage_is_measured(tmp_path, capsys):
    words = ["--rows", "1000", "--folder", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["bench", "stages", *words]) == 0
    report = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert [(r["rows"], r["stage"]) for r in report["results"]] == [(1000, stage) for stage in STAGES]
    for r in report["results"]:
        assert r["rows_per_second"] == pytest.approx(1000 / r["seconds"]) and r["peak_mib"] > 20
        assert r["cpu_seconds"] > 0
    assert report["slopes"] is None and "1,000" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the world is gone


def test_growth_is_told_beside_the_largest_size():
    results = [
        {"rows": rows, "stage": stage, "seconds": 1, "cpu_seconds": rows / 100, "peak_mib": rows**0.5}
        | {"rows_per_second": rows}
        for rows in (1000, 100_000)
        for stage in STAGES
    ]
    slopes = growth(results)
    assert slopes["prepare"] == {"seconds": pytest.approx(1), "memory": pytest.approx(0.5)}
    lines = format_stages({"results": results, "slopes": slopes})
    assert lines[1][-2:] == ["", ""] and lines[-1][-2:] == ["1.00", "0.50"]


def test_vectors_of_a_hash_are_units_and_depend_on_the_text_alone():
    ((rows, vectors),) = HashEncoder().encode_batches(["a", "b", "a"])
    assert rows.tolist() == [0, 1, 2] and np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors[0] == vectors[2]).all() and abs(vectors[0] @ vectors[1]) < 0.3


def test_a_process_that_is_ended_is_named():
    with pytest.raises(DataError, match="the process of .*9.* was ended from outside"):
        in_process(signal.raise_signal, signal.SIGKILL)


@pytest.mark.parametrize("flags", [{"rows": [10]}, {"rows": []}, {"folder": "/not/there"}])
def test_what_cannot_be_measured(flags):
    with pytest.raises(DataError, match="--" + next(iter(flags))):
        StagesCase(**flags)
