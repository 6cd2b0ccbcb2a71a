"""Watching a training: measurements every N steps, alarms, and a trace of some steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.training.alarms import SETTLED, Alarms
from dlrrec_torchrec.training.history import History
from dlrrec_torchrec.training.probe import Probe
from dlrrec_torchrec.training.trainer import LOSSES, Trainer

_PARTS = {"towers": ".towers.", "dense_arch": ".dense_arch.model.", "over_arch": ".over_arch."}
_WARM_UP = 2  # steps before a trace


class Observer:
    """Looks at a training on rank 0; on other ranks it does nothing.

    Args:
        trainer: to look at; its pipeline calls `before_update`.
        optimizer: whose dense part's gradients are measured.
        history: gets the records.
        probe: of the towers; None without any.
        log_steps: steps between two records, 0 for none.
        traced: steps to trace, 0 for none; they begin after two others.
        folder: gets `profile/`.
        total: steps of the whole training.
        active: whether this is rank 0.
        alarms: are told what the towers lose.
        say: prints a line.
    """

    def __init__(
        self,
        trainer: Trainer,
        optimizer: CombinedOptimizer,
        history: History,
        probe: Probe | None,
        *,
        log_steps: int,
        traced: int,
        folder: Path,
        total: int,
        active: bool,
        alarms: Alarms,
        say: Callable[[str], Any],
    ) -> None:
        self._trainer, self._history, self._probe = trainer, history, probe
        self._log_steps, self._total, self._active, self._say = log_steps if active else 0, total, active, say
        self._model = get_unwrapped_module(trainer.model).model
        self._dense = {
            name: parameter
            for part, part_optimizer in optimizer.optimizers
            if part == "dense"
            for name, parameter in part_optimizer.params.items()
        }
        self._norms: dict[str, float] = {}
        self._mark = (trainer.step, trainer.clock)
        self._alarms = alarms
        self._trace = _Trace(folder / "profile", traced) if traced and active else None

    def before_update(self) -> None:
        """Measure the gradients, before they are clipped, in a step that gets a record."""
        if self._log_steps and (self._trainer.step + 1) % self._log_steps == 0:
            self._norms = gradient_norms(self._dense)

    def after_step(self, epoch: int) -> None:
        """Write a record, if this step gets one; trace it, if it should be."""
        if self._trace is not None:
            self._trace.after_step()
        step = self._trainer.step
        if not self._log_steps or step % self._log_steps:
            return
        steps, spent = step - self._mark[0], self._trainer.clock - self._mark[1]
        self._mark = (step, self._trainer.clock)
        record = {"step": step, "epoch": epoch, "steps": steps, "seconds": spent.seconds}
        record |= {
            "rows_per_second": spent.rows / spent.seconds,
            "data_wait": spent.waited / spent.seconds,
        }
        record |= self._trainer.rates | self._trainer.recent_losses(steps) | self._norms | self.probed()
        self._history.interval(record)
        losses = " ".join(f"{name.removeprefix('loss_')} {record[name]:.4f}" for name in LOSSES)
        self._say(
            f"step {step:,} of {self._total:,} · epoch {epoch} · loss {losses} · {record['lr']:.2g} lr · "
            f"gradient {record['grad_norm']:.3g} · {record['rows_per_second']:,.0f} rows/s · "
            f"{record['data_wait']:.0%} waiting for data"
        )

    def probed(self) -> dict[str, float]:
        """What the towers do (`Probe.measure`); no alarm in the first SETTLED steps."""
        if self._probe is None or not self._active:
            return {}
        measures = self._probe.measure(self._model)
        if self._trainer.step < SETTLED:
            return measures
        found = self._probe.alarms(self._model, measures)
        self._alarms.measured(self._trainer.step, self._probe.watched(), found)
        return measures

    def close(self) -> None:
        """Write a trace that is not complete."""
        if self._trace is not None:
            self._trace.close()


def gradient_norms(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean norms of the gradients: `grad_norm` of all, and of `towers`, `dense_arch` and `over_arch`."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norms = torch.stack(torch._foreach_norm(list(gradients.values()))) if gradients else torch.zeros(0)
    squares = dict(zip(gradients, norms.double().square().tolist(), strict=True))
    by_part = {"grad_norm": math.sqrt(sum(squares.values()))}
    for part, mark in _PARTS.items():
        by_part[f"grad_norm_{part}"] = math.sqrt(sum(v for name, v in squares.items() if mark in f".{name}"))
    return by_part


class _Trace:
    """One trace of `steps` steps: trace.json for chrome://tracing or Perfetto, operations.txt to read."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._steps, self._seen = folder, steps, 0
        self._profile: profile | None = None

    def after_step(self) -> None:
        self._seen += 1
        if self._seen == _WARM_UP:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=activities)
            self._profile.start()
        elif self._seen == _WARM_UP + self._steps:
            self.close()

    def close(self) -> None:
        finished, self._profile = self._profile, None
        if finished is None:
            return
        finished.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(self._folder / "trace.json"))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=by, row_limit=50, max_name_column_width=60)
        (self._folder / "operations.txt").write_text(table + "\n", encoding="utf-8")
