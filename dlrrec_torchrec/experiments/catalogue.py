"""The table of experiments: name -> what defines it. A new experiment is one line."""

from __future__ import annotations

from dlrrec_torchrec.experiments import papers
from dlrrec_torchrec.experiments.definitions import Definition

EXPERIMENTS: dict[str, Definition] = {
    "table1": papers.table1,
}
