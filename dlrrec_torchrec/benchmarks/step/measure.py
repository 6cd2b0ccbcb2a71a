"""`dlrrec bench train`: the whole training step, against the same model in plain torch.

Every round takes each side in turn, with and without the contrastive terms: this project's own Trainer,
pipeline, optimizers and sharded tables, and the plain reference (`plain`), on the same batches. Before
anything is timed, both must have computed the same losses from equal weights, before and after an update.
Next to this project's time is the least that a step's operations could take on the device (`roofline`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dlrrec_torchrec.benchmarks.cases import TrainCase
from dlrrec_torchrec.benchmarks.embeddings.compare import free_memory
from dlrrec_torchrec.benchmarks.format import spread
from dlrrec_torchrec.benchmarks.random_shards import write_random_shards
from dlrrec_torchrec.benchmarks.step import roofline
from dlrrec_torchrec.benchmarks.step.batches import Data, random_data, shards_data
from dlrrec_torchrec.benchmarks.step.parts import PARTS, profiled
from dlrrec_torchrec.benchmarks.step.trainings import (
    LOSSES,
    Plain,
    Project,
    Rows,
    Side,
    case_spec,
    check,
    random_spec,
)
from dlrrec_torchrec.benchmarks.timing import summary
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import Ranks, process_group
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.shard_facts import ShardFacts


def run(
    case: TrainCase, say: Callable[[str], Any] = lambda line: None, reached: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Measure. Under a launcher, call it on every rank; every rank returns the same form.

    Args:
        say: called with a line before each part.
        reached: what the device reaches (`roofline.peaks`), if it was measured before.

    Returns:
        case: its settings. ranks: `processes`, `threads` of each, `device`. steps: of a round.
        sides: "dlrrec", "bce" (with and without the contrastive terms), "plain dlrrec", "plain bce" ->
            `seconds` of a step, `samples_per_second` (over all ranks), `data_wait` as a share of the step
            (each median, p10, p90 of the rounds). Of "dlrrec" and "bce" also:
            `roofline`: `flops` and `bytes` of a step's operations (`roofline.Counter`), `seconds` that they
            take at the device's peaks, one after the other, and `share` of it in the step's median;
            `floor`: the same if all operations were one: `bytes` that must move at least;
            on a GPU `peak_memory`: bytes that building it and two steps took at most.
        ratio: `dlrrec`, `bce`: plain torch's seconds over this project's of the same round; `contrastive`,
            `plain contrastive`: seconds with the contrastive terms over those without.
        parts: of a profiled round of "dlrrec", name (PARTS) -> `seconds` of a step and `share` of it.
        check: the largest relative differences of the sides' losses, `before` and `after` an update.
        peaks: what the device reaches (`roofline.peaks`).

    Raises:
        DataError: shards that cannot be read, or sides whose losses differ.
    """
    before = torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(case.threads or max(len(os.sched_getaffinity(0)) // local, 1))
    try:
        with quiet(), process_group(case.device) as ranks, _rows(case, ranks, say) as (rows, data):
            if case.batch % ranks.world_size:
                raise DataError(f"--batch {case.batch}: must be a multiple of the {ranks.world_size} ranks")
            reference = case.reference == "plain" and ranks.world_size == 1
            checked = check(case, ranks) if reference else None
            peaks = dict(reached) if reached is not None else _peaks(ranks.device, say)
            report = _measure(case, ranks, rows, data, reference, peaks, say)
            free_memory(ranks.device)
        return report | {"check": checked, "peaks": peaks}
    finally:
        torch.set_num_threads(before)


def _peaks(device: torch.device, say: Callable[[str], Any]) -> dict[str, float]:
    say("what the device reaches")
    on_gpu = device.type == "cuda"
    return roofline.peaks(device, copy_mib=1024 if on_gpu else 64, matrix=8192 if on_gpu else 512)


def _measure(
    case: TrainCase,
    ranks: Ranks,
    rows: Rows,
    data: Data,
    reference: bool,
    peaks: Mapping[str, float],
    say: Callable[[str], Any],
) -> dict[str, Any]:
    sides: dict[str, Side] = {}
    counted: dict[str, dict[str, Any]] = {}
    for name, weight in LOSSES.items():
        sides[name], counted[name] = _counted(case, data, weight, ranks)
    if reference:
        sides |= {f"plain {name}": Plain(case, data, weight, ranks) for name, weight in LOSSES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    waits: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(case.warmup + case.rounds):
        say(f"round {number + 1} of {case.warmup + case.rounds}")
        for name, side in sides.items():
            rows.waited = 0.0
            _wait(ranks)
            start = time.perf_counter()
            side.epoch(rows, number + 1)
            _wait(ranks)
            took = time.perf_counter() - start
            if number >= case.warmup:
                seconds[name].append(took / len(rows))
                waits[name].append(rows.waited / took)
    say("profile")
    parts = profiled(
        sides["dlrrec"].assembly.wrapper, ranks.device, len(rows), lambda: sides["dlrrec"].once_more(rows)
    )

    def ratio(above: str, below: str) -> dict[str, float]:
        return summary([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])

    ratios = {"contrastive": ratio("dlrrec", "bce")}
    if reference:
        ratios |= {name: ratio(f"plain {name}", name) for name in LOSSES}
        ratios["plain contrastive"] = ratio("plain dlrrec", "plain bce")
    return {
        "case": dataclasses.asdict(case),
        "ranks": {
            "processes": ranks.world_size,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        },
        "steps": len(rows),
        "sides": {
            name: {
                "seconds": summary(seconds[name]),
                "samples_per_second": summary([case.batch / s for s in seconds[name]]),
                "data_wait": summary(waits[name]),
            }
            | (_bounds(counted[name], peaks, statistics.median(seconds[name])) if name in counted else {})
            for name in sides
        },
        "ratio": ratios,
        "parts": parts,
    }


def _counted(case: TrainCase, data: Data, weight: float, ranks: Ranks) -> tuple[Project, dict[str, Any]]:
    """This project's side, the operations and bytes of its step, and the memory that it took."""
    on_gpu = ranks.device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
        before = torch.cuda.memory_allocated(ranks.device)
    project, batch = Project(case, data, weight, ranks), data.batches[0].to(ranks.device)
    counts: dict[str, Any] = {"counter": project.counted_step(batch), "floor": project.floor(batch)}
    if on_gpu:
        counts["peak_memory"] = torch.cuda.max_memory_allocated(ranks.device) - before
    return project, counts


def _bounds(counts: dict[str, Any], peaks: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """What a step of `seconds` could take at least: its operations one by one, and all of them at once."""
    counter, least = counts["counter"], counts["floor"]
    at_peak = counter.seconds(**peaks)
    at_once = max(counter.flops / peaks["flops_per_second"], least / peaks["bytes_per_second"])
    bounds: dict[str, Any] = {
        "roofline": {
            "flops": counter.flops,
            "bytes": counter.bytes,
            "seconds": at_peak,
            "share": at_peak / seconds,
        },
        "floor": {"bytes": least, "seconds": at_once, "share": at_once / seconds},
    }
    return bounds | {name: counts[name] for name in ("peak_memory",) if name in counts}


@contextlib.contextmanager
def _rows(case: TrainCase, ranks: Ranks, say: Callable[[str], Any]) -> Iterator[tuple[Rows, Data]]:
    """The rows of a round, and what the model is built from."""
    share = case.batch // ranks.world_size
    if not case.loader:
        data = random_data(random_spec(case), share, min(case.steps, 8), case.seed)
        if ranks.device.type == "cuda":
            data = dataclasses.replace(data, batches=[batch.pin_memory() for batch in data.batches])
        yield Rows(data.batches, case.steps, ranks.world_size), data
        return
    with contextlib.ExitStack() as stack:
        folder = Path(case.shards or case.keep)
        if not case.shards:
            if ranks.world_size > 1 and not case.keep:
                raise DataError(
                    "--loader on several ranks: name a folder that all of them see, --keep or --shards"
                )
            folder = Path(
                case.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrrec-train-"))
            )
            say(f"{case.rows:,} random rows in {folder}")
            if ranks.first:
                write_random_shards(folder, case.rows, random_spec(case).facts, case.seed)
            torch.distributed.barrier()
        spec = case_spec(case, ShardFacts.read(folder))
        loader = make_loader(
            folder,
            "train",
            share,
            spec,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=case.seed,
            shuffle=True,
            workers=case.workers,
            drop_last=True,
            pin_memory=ranks.device.type == "cuda",
        )
        if not len(loader):
            raise DataError(f"{folder}: has fewer than {case.batch} training rows; take a smaller --batch")
        yield Rows(loader, len(loader), ranks.world_size), shards_data(folder, spec, share, 1)


def _wait(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        torch.distributed.barrier()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def format_training(report: dict[str, Any]) -> list[list[list[str]]]:
    """Rows of three tables: sides, ratios, parts; medians, with p10 to p90 in brackets."""

    sides = [["", "samples/s", "step, ms", "waiting for data", "of the roofline"]]
    for name, side in report["sides"].items():
        wait = f"{side['data_wait']['median']:.1%}"
        bound = f"{side['roofline']['share']:.1%}" if "roofline" in side else "-"
        speed, seconds = side["samples_per_second"], side["seconds"]
        sides.append([name, spread(speed, "{:,.0f}"), spread(seconds, "{:.1f}", 1e3), wait, bound])
    names = {
        "dlrrec": "plain torch's time / this project's, dlrrec",
        "bce": "the same, bce",
        "contrastive": "with / without the contrastive terms",
        "plain contrastive": "the same, plain torch",
    }
    ratios = [["", "ratio"]]
    ratios += [
        [text, spread(report["ratio"][n], "{:.2f}")] for n, text in names.items() if n in report["ratio"]
    ]
    parts = [["of a step of dlrrec, profiled", "ms", "share"]]
    for name in PARTS:
        part = report["parts"][name]
        parts.append([name, f"{1e3 * part['seconds']:.2f}", f"{part['share']:.1%}"])
    return [sides, ratios, parts]
