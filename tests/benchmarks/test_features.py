"""`dlrrec bench features` on few rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlrrec_torchrec.benchmarks.features import random_history
from dlrrec_torchrec.cli import main
from dlrrec_torchrec.features.affinity import fit_affinity


def test_each_size_is_measured(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["bench", "features", "--rows", "3000", "400", "--items", "60", "--out", str(out)]) == 0
    report = json.loads((out / "features.json").read_text())
    few, many = report["results"]
    assert few["rows"] <= 400 < many["rows"] <= 3000 and many["items"] == 60
    assert many["columns"] == len(fit_affinity(random_history(400, 20, 60, 0)).names)
    assert many["prepare_seconds"] == pytest.approx(6 * many["fit_seconds"] + many["column_seconds"])
    shown = capsys.readouterr().out
    assert "slope of log seconds" in shown and f"{many['rows']:,}" in shown


def test_random_reviews_are_of_distinct_pairs():
    history = random_history(5000, 20, 100, 3)
    assert len(np.unique(history.user * history.items + history.item)) == len(history.user)
    assert history.user.max() < history.users == 250 and set(history.rating) <= {1, 2, 3, 4, 5}
    sizes = np.sort(np.bincount(history.item))
    assert sizes[-1] > 5 * np.median(sizes)


def test_no_sizes_are_named(tmp_path, capsys):
    assert main(["bench", "features", "--rows", "5", "--out", str(tmp_path)]) == 2
    assert "--rows" in capsys.readouterr().err
