"""What a training writes down: metrics.jsonl (a line an epoch), steps.jsonl (a line every N steps)
and TensorBoard events.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dlrrec_torchrec.store.folders import write_text_atomic
from dlrrec_torchrec.store.manifest import jsonable


class History:
    """The record of one training, on rank 0; on other ranks nothing is written.

    Args:
        folder: gets `metrics.jsonl`, `steps.jsonl` and `tensorboard/`.
        epoch, step: where the training goes on; later records, of a run that was killed, are removed.
        active: whether this is the rank that writes.
    """

    def __init__(self, folder: Path, epoch: int, step: int, active: bool) -> None:
        self._epochs, self._steps, self._active = folder / "metrics.jsonl", folder / "steps.jsonl", active
        if not active:
            return
        for path, key, last in ((self._epochs, "epoch", epoch), (self._steps, "step", step)):
            lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
            # A line without its end was cut short by a kill: it is later than the last checkpoint.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)[key] <= last]
            write_text_atomic(path, "".join(kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, record: Mapping[str, Any], steps: Mapping[str, np.ndarray]) -> None:
        """Write an epoch: its record (with "epoch" and "step", the last step) and each step's values.

        Args:
            record: plain values; NaN becomes null.
            steps: name -> f32 [steps of the epoch].
        """
        if not self._active:
            return
        _append(self._epochs, record)
        for name, values in steps.items():
            first = record["step"] - len(values) + 1
            for number, value in enumerate(values):
                self._board.add_scalar(f"step/{name}", value, first + number)
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"epoch/{name}", value, record["step"])
        self._board.flush()

    def interval(self, record: Mapping[str, Any]) -> None:
        """Write what was measured up to step `record["step"]`: plain values; NaN becomes null."""
        if not self._active:
            return
        _append(self._steps, record)
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"interval/{name}", value, record["step"])

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._board.close()


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(jsonable(dict(record))) + "\n")
