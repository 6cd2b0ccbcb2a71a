"""`python -m dlrrec_torchrec.benchmarks.gpu`: everything measured on one GPU, in one run and one JSON.

Within the budget (8 minutes by default): the bandwidth and the arithmetic that the GPU reaches; FBGEMM's
tables and nn.EmbeddingBag, large and with little reuse first; training steps of the whole model on data of
the papers' size and their roofline. A part that fails or does not fit into the time says so in its place,
and the others are measured anyway.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase, TrainCase
from dlrrec_torchrec.benchmarks.embeddings.compare import free_memory, run
from dlrrec_torchrec.benchmarks.machine import describe_machine
from dlrrec_torchrec.benchmarks.step import measure as train_step
from dlrrec_torchrec.benchmarks.step.batches import PAPER
from dlrrec_torchrec.benchmarks.step.roofline import peaks
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group, resolve_device
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.folders import write_text_atomic

# FBGEMM's own figures on large tables with little reuse: shares of the memory bandwidth.
PUBLISHED = {"forward": 0.647, "backward": 0.265}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is: on a GPU as it should be, on a CPU just large enough to show that it runs."""

    copy_mib: int
    matrix: int
    tables: int
    rows: int
    dim: int
    batch: int
    pooling: int
    rounds: int
    train_batches: tuple[int, ...]
    train_steps: int
    users: int
    items: int


GPU_SIZES = Sizes(1024, 8192, 4, 10_000_000, 128, 8192, 32, 20, (1024, 4096, 16384), 50, **PAPER)
CPU_SIZES = Sizes(16, 256, 2, 5000, 16, 64, 4, 3, (64,), 2, 300, 200)


class OutOfTime(BaseException):
    """The budget is spent. Not an Exception, so that no library handles it."""


def embedding_cases(sizes: Sizes, device: str, memory: int) -> dict[str, EmbeddingCase]:
    """What is measured of the tables, by name, the most important first.

    Args:
        memory: bytes of the device; tables and their reference together take at most half of it.
    """
    rows = min(sizes.rows, memory // (4 * sizes.tables * sizes.dim * 4))
    large = EmbeddingCase(
        tables=sizes.tables,
        rows=rows,
        dim=sizes.dim,
        batch=sizes.batch,
        pooling=sizes.pooling,
        rounds=sizes.rounds,
        copy_mib=sizes.copy_mib,
        device=device,
    )
    cases = {
        "large_low_reuse": large,
        "sgd": dataclasses.replace(large, optimizer="sgd"),
        "fp16": dataclasses.replace(large, dtype="fp16"),
        "pooling_1": dataclasses.replace(large, pooling=1, batch=sizes.batch * 8),
        "pooling_11": dataclasses.replace(large, pooling=11, batch=sizes.batch * 2),
        "zipf": dataclasses.replace(large, distribution="zipf"),
        "torchrec_table_wise": dataclasses.replace(large, sharding="table_wise"),
    }
    if device == "cuda":
        cases["adam"] = dataclasses.replace(large, optimizer="adam", rows=rows // 4)
        cases["bf16_sums"] = dataclasses.replace(large, dtype="fp16", output="bf16")
        cases["uvm_caching_zipf"] = dataclasses.replace(
            large,
            kernel="fused_uvm_caching",
            distribution="zipf",
            rows=rows // 2,
            cache_load=0.1,
            reference="none",
        )
    return cases


def measure(device: str, budget: float, shards: str | None, say: Callable[[str], Any]) -> dict[str, Any]:
    """All parts within `budget` seconds.

    Returns:
        machine: see `describe_machine`.
        peaks: what the device reaches (`roofline.peaks`).
        headline: of large tables with little reuse, shares of the bandwidth by count, and the published ones.
        embeddings: name -> result (`embeddings.measure`).
        training: `batch_N` -> result (`step.measure.run`).

        In place of a result there is {"error": ...} for a part that failed, and {"skipped": ...} for one
        for which no time was left.
    """
    start, sizes = time.monotonic(), GPU_SIZES if device == "cuda" else CPU_SIZES
    torch_device = resolve_device(device)
    memory = torch.cuda.get_device_properties(torch_device).total_memory if device == "cuda" else 1 << 30
    report: dict[str, Any] = {"benchmark": "gpu", "device": device, "machine": describe_machine()}
    report |= {"peaks": {}, "headline": {}, "embeddings": {}, "training": {}}

    def part(section: str, name: str, function: Callable[[], dict[str, Any]]) -> None:
        left = budget - (time.monotonic() - start)
        say(f"{section} {name} ({left:.0f} s left)")
        report[section][name] = _guarded(function, left)
        free_memory(torch_device)

    with quiet(), process_group(device):
        part("peaks", "fp32", lambda: peaks(torch_device, copy_mib=sizes.copy_mib, matrix=sizes.matrix))
        reached = report["peaks"]["fp32"]
        cases = embedding_cases(sizes, device, memory)
        first, *others = cases
        part("embeddings", first, lambda: run([cases[first]])[0])
        if "sides" in report["embeddings"][first]:
            report["headline"] = _headline(report["embeddings"][first])
        for batch in sizes.train_batches:
            train = functools.partial(_train, batch, sizes, shards, device, reached)
            part("training", f"batch_{batch}", train)
        for name in others:
            part("embeddings", name, lambda name=name: run([cases[name]])[0])
    report["seconds"] = time.monotonic() - start
    return report


def _train(
    batch: int, sizes: Sizes, shards: str | None, device: str, reached: dict[str, Any]
) -> dict[str, Any]:
    if "flops_per_second" not in reached:
        raise DataError("the device's peaks could not be measured, so there is no roofline")
    case = TrainCase(
        batch=batch,
        negatives=min(256, sizes.users, sizes.items),
        users=sizes.users,
        items=sizes.items,
        loader=bool(shards),
        shards=shards or "",
        steps=sizes.train_steps,
        warmup=1,
        rounds=5,
        device=device,
    )
    return train_step.run(case, reached=reached)


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """Shares of the bandwidth and the published ones, which are by the count "fbgemm"."""
    return {
        phase: {"share": result["sides"]["fbgemm"][phase]["share"], "published": published}
        for phase, published in PUBLISHED.items()
    }


def _guarded(function: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What the function returns, or why there is nothing: no failure of one part may cost the others."""
    try:
        with _time_limit(seconds):
            return function()
    except OutOfTime:
        return {"skipped": "no time left within the budget"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once `seconds` are over."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    if seconds <= 0:
        raise OutOfTime
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(argv: list[str] | None = None) -> int:
    """Print one JSON; exit status 0 if every part was measured, 1 if some were not, 2 without the device."""
    parser = argparse.ArgumentParser(
        prog="python -m dlrrec_torchrec.benchmarks.gpu", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: tiny sizes, to see that everything runs; its times say nothing (default: cuda)",
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything (default: 480)")
    parser.add_argument(
        "--shards", help="prepared shards to train on (default: random rows of the papers' size)"
    )
    parser.add_argument("--out", type=Path, help="file for the JSON, too")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no GPU here, so there is nothing to measure (`dlrrec doctor` says why);\n"
            "`--device cpu` runs all parts at tiny sizes, to see that they work.",
            file=sys.stderr,
        )
        return 2
    report = measure(
        arguments.device, arguments.budget, arguments.shards, lambda line: print(line, file=sys.stderr)
    )
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        write_text_atomic(arguments.out, text + "\n")
    parts = [part for section in ("peaks", "embeddings", "training") for part in report[section].values()]
    return int(any("error" in part or "skipped" in part for part in parts))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is written; on a busy machine threads of the libraries sometimes hang at the end
