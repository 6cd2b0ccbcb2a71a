"""Small requests for plans of embedding tables."""

from __future__ import annotations

import pytest

from dlrrec_torchrec.planning import (
    Request,
    Table,
    make_plan,
    named_device,
)
from dlrrec_torchrec.quiet import quiet

GIB = 1 << 30
BATCH = 10
ROWS, DIM = 1000, 8


@pytest.fixture(autouse=True)
def without_known_warnings():
    with quiet():
        yield


def request(*tables: Table, device="h200", ranks=1, node=None, optimizer="sgd", **options) -> Request:
    device = named_device(device) if isinstance(device, str) else device
    return Request(tables, device, ranks, node or ranks, BATCH, optimizer, **options)


def only(*tables: Table, **options):
    """The plan of a request, its first table, and that table's shards."""
    plan = make_plan(request(*tables, **options))
    return plan, plan.tables[0], plan.tables[0].shards
