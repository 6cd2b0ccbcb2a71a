"""The table of experiments: name -> what defines it. A new experiment is one line."""

from __future__ import annotations

from dlrrec_torchrec.experiments import papers
from dlrrec_torchrec.experiments.definitions import Definition
from dlrrec_torchrec.experiments.leakage_experiment import leakage

EXPERIMENTS: dict[str, Definition] = {
    "table1": papers.table1,
    "leakage": leakage,
}
