"""Who reviewed what: the rows of a split as a sparse matrix."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy import sparse

from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.shard_facts import ShardFacts


def split_pairs(shards_dir: str | os.PathLike, split: str, liked: bool = False) -> sparse.csr_matrix:
    """The (user, item) pairs of a split's rows, f32 CSR [users, items]: how often each occurs.

    `liked`: only rows with label 1.
    """
    facts = ShardFacts.read(shards_dir)
    table = read_table(Path(shards_dir) / split, facts.row_schema(()), ["user", "item", "label"])
    user, item, label = (table[name].to_numpy() for name in ("user", "item", "label"))
    rows = label > 0.5 if liked else np.ones(len(label), bool)
    ones = np.ones(int(rows.sum()), np.float32)
    return sparse.csr_matrix((ones, (user[rows], item[rows])), shape=(facts.users, facts.items))
