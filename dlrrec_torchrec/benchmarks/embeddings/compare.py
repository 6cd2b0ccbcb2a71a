"""`dlrrec bench embeddings`: FBGEMM's tables beside torch.nn.EmbeddingBag and a plain memory copy.

Both sides take turns on the same batches within one run, so the ratio of their times is valid on a busy
machine too, and the same copy of memory gives the share of the machine's bandwidth that they use. Before
anything is timed, both must have computed the same as the formulas in float64.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings.fbgemm_side import check_offered, make_fused
from dlrrec_torchrec.benchmarks.embeddings.random_ids import make_requests
from dlrrec_torchrec.benchmarks.embeddings.side import Side
from dlrrec_torchrec.benchmarks.embeddings.torch_side import TorchBags
from dlrrec_torchrec.benchmarks.embeddings.traffic import memory_needed, traffic
from dlrrec_torchrec.benchmarks.embeddings.verify import verify
from dlrrec_torchrec.benchmarks.timing import Copy, Stopwatch, summary
from dlrrec_torchrec.distributed.launcher import rank_on_node
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import Ranks, process_group, resolve_device
from dlrrec_torchrec.sharding.devices import host_memory
from dlrrec_torchrec.store.errors import DataError

PHASES = ("forward", "backward", "step")


def run(
    cases: Sequence[EmbeddingCase], say: Callable[[str], Any] = lambda line: None
) -> list[dict[str, Any]]:
    """Measure every case, in order; those that need several processes start them.

    Under a launcher (torchrun) the ranks are the launcher's, and every rank must call this.

    Args:
        say: called with a line before each case or group of cases.

    Raises:
        DataError: a case that cannot run here (before any is measured), or whose sides differ.
    """
    if launched := int(os.environ.get("WORLD_SIZE", 0)):
        cases = [_of_launcher(case, launched) for case in cases]
    for case in cases:
        check(case)
    results: list[dict[str, Any]] = []
    for world, group in itertools.groupby(cases, key=lambda case: case.world_size):
        if launched or world == 1:
            for case in group:
                say(f"case {len(results) + 1} of {len(cases)}")
                results.append(_measure_here(case))
        else:
            together = list(group)
            last = len(results) + len(together)
            say(f"cases {len(results) + 1} to {last} of {len(cases)}, in {world} processes")
            results += _measure_in_processes(together)
    return results


def check(case: EmbeddingCase) -> None:
    """Raise DataError for a case that cannot run on this machine, naming the flag and what to do."""
    device = resolve_device(case.device).type
    check_offered(case, device)
    bytes_needed = memory_needed(case)
    if device == "cuda":
        if case.kernel == "fused_uvm_caching" and case.reference == "none":
            return  # the tables are in host memory
        bytes_there = torch.cuda.get_device_properties(0).total_memory
    else:
        bytes_there, bytes_needed = host_memory(), bytes_needed * case.world_size
    if bytes_needed > 0.9 * bytes_there:
        beside = "" if case.reference == "none" else ", or --reference none"
        raise DataError(
            f"--tables {case.tables} --rows {case.rows} --dim {case.dim}: need "
            f"{bytes_needed / 2**30:,.1f} GiB and there are {bytes_there / 2**30:,.1f} GiB ({device}); "
            f"take fewer rows{beside}"
        )


def measure(case: EmbeddingCase, ranks: Ranks) -> dict[str, Any]:
    """One case on the ranks of the process group; every rank returns the same.

    Returns:
        case: its settings.
        ranks: `processes`, `threads` of each, `device`.
        requests: `lookups` and `unique` rows of a step.
        bytes: see `traffic`.
        copy: `bytes`, `seconds` and `bandwidth` (bytes/s) of a memory copy, all ranks together.
        sides: "fbgemm" and "torch" -> "forward", "backward" (with the update) and "step" (both) -> `seconds`
            (median, p10, p90) and, of the two passes, by count, `bandwidth` and `share`: the median over the
            rounds of its bandwidth relative to that of the copy just before it.
        ratio: phase -> torch's seconds over fbgemm's of the same round (median, p10, p90); above 1 where
            fbgemm is faster.
        check: see `verify`.
        peak_memory: on a GPU, bytes, the largest over the ranks.

    Seconds of a round are those of the slowest rank.
    """
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    requests = make_requests(case, ranks.device)
    sides: dict[str, Side] = {"fbgemm": make_fused(case, ranks)}
    if case.reference != "none":
        sides["torch"] = TorchBags(case, ranks.device)
    try:
        checked = verify(case, ranks, sides, requests)
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        kind = f"--kernel {case.kernel} --dtype {case.dtype} --output {case.output}"
        raise DataError(f"{kind}: FBGEMM has no such kernel on {ranks.device.type} ({error})") from error

    own_bags = slice(ranks.rank * case.local_batch, (ranks.rank + 1) * case.local_batch)
    watch, copy, gradient = (
        Stopwatch(ranks.device),
        Copy(case.copy_mib, ranks.device),
        requests.gradient[own_bags],
    )
    phases = ("copy", "forward", "backward")  # the copy before each side's turn
    times: dict[str, dict[str, list[float]]] = {name: {p: [] for p in phases} for name in sides}
    for number in range(-case.warmup, case.rounds):
        ids = requests.ids[number % case.requests][:, own_bags].contiguous()
        for name in list(sides)[:: 1 if number % 2 else -1]:
            side, inputs = sides[name], sides[name].ready(ids)
            _, copied = watch(copy)
            sums, forward = watch(lambda side=side, inputs=inputs: side.forward(inputs))
            gradients = side.apart(gradient, sums)
            _, backward = watch(lambda side=side, s=sums, g=gradients: side.backward(s, g))
            if name == "fbgemm":
                output_bytes = sums[0].element_size()
            if number >= 0:
                for phase, seconds in zip(phases, (copied, forward, backward), strict=True):
                    times[name][phase].append(seconds)

    times = _slowest(times, ranks)
    for seconds in times.values():
        seconds["step"] = [f + b for f, b in zip(seconds["forward"], seconds["backward"], strict=True)]
    copies = [second for seconds in times.values() for second in seconds["copy"]]
    copied_bytes = copy.bytes * ranks.world_size
    moved = traffic(case, requests.unique, output_bytes)
    result = {
        "case": dataclasses.asdict(case),
        "ranks": {
            "processes": ranks.world_size,
            "threads": torch.get_num_threads(),
            "device": _device_name(ranks.device),
        },
        "requests": {"lookups": case.lookups, "unique": requests.unique},
        "bytes": moved,
        "copy": {
            "bytes": copied_bytes,
            "seconds": summary(copies),
            "bandwidth": copied_bytes / summary(copies)["median"],
        },
        "sides": {
            name: {p: _phase(seconds, p, moved.get(p, {}), copied_bytes) for p in PHASES}
            for name, seconds in times.items()
        },
        "check": checked,
    }
    if case.reference != "none":
        pairs = {p: zip(times["torch"][p], times["fbgemm"][p], strict=True) for p in PHASES}
        result["ratio"] = {phase: summary([a / b for a, b in pair]) for phase, pair in pairs.items()}
    if ranks.device.type == "cuda":
        result["peak_memory"] = max(_gather(torch.cuda.max_memory_allocated(ranks.device), ranks))
    return result


def _phase(
    seconds: dict[str, list[float]], phase: str, moved: dict[str, float], copied: int
) -> dict[str, dict[str, float]]:
    """A side's seconds, bandwidth and share of the bandwidth of the copy just before its turn."""
    timing = {"seconds": summary(seconds[phase])}
    if moved:
        timing["bandwidth"] = {count: b / timing["seconds"]["median"] for count, b in moved.items()}
        pairs = zip(seconds["copy"], seconds[phase], strict=True)
        relative = summary([copy / side_seconds for copy, side_seconds in pairs])["median"]
        timing["share"] = {count: b / copied * relative for count, b in moved.items()}
    return timing


def _gather(value: Any, ranks: Ranks) -> list[Any]:
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def _slowest(times: dict[str, dict[str, list[float]]], ranks: Ranks) -> dict[str, dict[str, list[float]]]:
    """Of each side, phase and round the seconds of the slowest rank."""
    rank_times = _gather(times, ranks)
    return {
        name: {
            phase: [max(seconds) for seconds in zip(*(rank[name][phase] for rank in rank_times), strict=True)]
            for phase in phases
        }
        for name, phases in times.items()
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _of_launcher(case: EmbeddingCase, ranks: int) -> EmbeddingCase:
    if case.world_size not in (1, ranks):
        raise DataError(f"--world-size {case.world_size}: the launcher's ranks are {ranks}; leave it out")
    return dataclasses.replace(case, world_size=ranks)


def _measure_here(case: EmbeddingCase) -> dict[str, Any]:
    before = torch.get_num_threads()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(case.threads or max(len(os.sched_getaffinity(0)) // local, 1))
    try:
        with quiet(), process_group(case.device) as ranks:
            return measure(case, ranks)
    finally:
        torch.set_num_threads(before)
        free_memory(resolve_device(case.device, rank_on_node()))


def free_memory(device: torch.device) -> None:
    """Free a GPU's unused memory: modules refer to themselves in cycles, so they must be collected."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _measure_in_processes(cases: list[EmbeddingCase]) -> list[dict[str, Any]]:
    """The cases, one after the other, in `world_size` new processes on this machine."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=cases[0].world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    results, error = elastic_launch(config, _entry)(cases)[0]
    if error:
        raise DataError(error)
    return results


def _entry(cases: list[EmbeddingCase]) -> tuple[list[dict[str, Any]], str | None]:
    """In a started process: (the results, None), or ([], the message of a DataError)."""
    try:
        return [_measure_here(case) for case in cases], None
    except DataError as error:
        return [], str(error)
