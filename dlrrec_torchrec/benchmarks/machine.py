"""The machine that a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    """Versions, processor, cores, load (of the last minute, before the run) and GPUs."""
    names = ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec")
    machine = {"python": platform.python_version()} | {n: v for n in names if (v := _version(n))}
    machine |= {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        machine["cuda"] = torch.version.cuda
        machine["gpus"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return machine


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model_names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(model_names, platform.machine())
