"""Whether this machine can train as the settings say, checked before anything else is done."""

from __future__ import annotations

import os

from dlrrec_torchrec.distributed.ranks import resolve_device
from dlrrec_torchrec.models.compiled import check_compiler
from dlrrec_torchrec.sharding.apply import check_comms


def check_machine(device: str, comms: str, compiled: bool) -> None:
    """Raise DataError, naming the setting, for what this machine lacks.

    Args:
        device: "auto", "cpu" or "cuda".
        comms: numbers that ranks exchange: "fp32", "fp16" or "bf16".
        compiled: whether the dense part is compiled.
    """
    resolved = resolve_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    check_comms(comms, resolved)
    if compiled:
        check_compiler(resolved)
