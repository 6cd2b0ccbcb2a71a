"""Review tables as `ingest` leaves them, out of plain rows."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import REVIEWS


def write_reviews(rows, folder, **columns):
    """Write (user, item, rating) rows as the review table of a source."""
    users, items, ratings = zip(*rows, strict=True)
    n = len(rows)
    table = {name: columns.get(name, [None] * n) for name in REVIEWS.names}
    table |= {"user_id": users, "item_id": items, "rating": ratings}
    write_table(pa.table(table, schema=REVIEWS), folder)
    Manifest("ingest", {}, {"source": str(sorted(rows)) + str(columns)}).write(folder)
    return folder


def random_rows(seed=0, users=30, items=12, share=0.4):
    """(user, item, rating) of a random share of all pairs."""
    rng = np.random.default_rng(seed)
    return [
        (f"u{u}", f"i{i}", float(rng.integers(1, 11)) / 2)
        for u, i in itertools.product(range(users), range(items))
        if rng.random() < share
    ]
