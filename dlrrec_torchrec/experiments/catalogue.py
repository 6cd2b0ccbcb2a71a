"""The table of experiments: name -> what defines it. A new experiment is one line."""

from __future__ import annotations

from dlrrec_torchrec.experiments import ablations, papers
from dlrrec_torchrec.experiments.definitions import Definition
from dlrrec_torchrec.experiments.leakage_experiment import leakage

EXPERIMENTS: dict[str, Definition] = {
    "table1": papers.table1,
    "mmrec": papers.mmrec,
    "ablation": ablations.ablation,
    "dimension": ablations.dimension,
    "fair": ablations.fair,
    "similarity": ablations.similarity,
    "negatives": ablations.negatives,
    "domains": ablations.domains,
    "leakage": leakage,
}
