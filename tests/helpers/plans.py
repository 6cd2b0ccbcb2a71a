"""Small requests for plans of embedding tables."""

from __future__ import annotations

import pytest

from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.sharding.advice import make_plan
from dlrrec_torchrec.sharding.devices import named_device
from dlrrec_torchrec.sharding.planner import Request
from dlrrec_torchrec.sharding.tables import Table

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
    """The plan of a request, its first table, and that table's parts."""
    plan = make_plan(request(*tables, **options))
    return plan, plan.tables[0], plan.tables[0].parts
