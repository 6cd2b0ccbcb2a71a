"""Where embedding tables go: settings of tables, devices, TorchRec's planner, and what its plan costs.

`make_plan(Request(tables, device, ...))` is all that is needed; it runs in one process, on any machine.
"""

from dlrrec_torchrec.planning.advice import Impossible, make_plan
from dlrrec_torchrec.planning.devices import DEVICES, Device, cpu_device, cuda_device, named_device
from dlrrec_torchrec.planning.planner import Plan, Request, imbalance
from dlrrec_torchrec.planning.report import to_json, to_text
from dlrrec_torchrec.planning.run import run_request
from dlrrec_torchrec.planning.tables import Table, configured, dense_bytes, sharders, table_key, tables_in

__all__ = [
    "DEVICES",
    "Device",
    "Impossible",
    "Plan",
    "Request",
    "Table",
    "configured",
    "cpu_device",
    "cuda_device",
    "dense_bytes",
    "imbalance",
    "make_plan",
    "named_device",
    "run_request",
    "sharders",
    "table_key",
    "tables_in",
    "to_json",
    "to_text",
]
