"""A plan as a table for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from dlrrec_torchrec.sharding.planner import RESERVED, PlacedTable, Plan, imbalance

_NOTE = "times are predictions of TorchRec's model for the tables only, not measured"
_LOADS = ("weight_bytes", "optimizer_bytes", "hbm", "ddr", "ssd")
_TIMES = ("forward_ms", "backward_ms", "communication_ms", "ms")


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything of the plan as plain values: bytes, milliseconds, ratios."""
    request = plan.request
    loads = {field: plan.ranks(field) for field in (*_LOADS, *_TIMES)}
    return {
        "device": dataclasses.asdict(request.device),
        "world_size": request.world_size,
        "local_world_size": request.local_world_size,
        "batch_size": request.batch_size,
        "optimizer": request.optimizer,
        "dense_bytes": request.dense_bytes,
        "reserved": RESERVED,
        "available": dataclasses.asdict(plan.available),
        "step_ms": plan.step_ms,
        "imbalance": {field: imbalance(loads[field]) for field in (_place(plan), "ms")},
        "tables": [_table(placed) for placed in plan.tables],
        "ranks": [
            {"rank": rank} | {field: values[rank] for field, values in loads.items()}
            for rank in range(request.world_size)
        ],
        "note": _NOTE,
    }


def _table(placed: PlacedTable) -> dict[str, Any]:
    sums = {f: sum(getattr(s, f) for s in placed.parts) for f in ("weight_bytes", "optimizer_bytes")}
    placement = {"sharding": placed.sharding, "kernel": placed.kernel}
    parts = [dataclasses.asdict(part) for part in placed.parts]
    allowed = {"allowed_sharding": placed.table.sharding, "allowed_kernels": placed.table.kernels}
    table = dataclasses.asdict(placed.table)
    del table["sharding"], table["kernels"]
    return table | placement | allowed | sums | {"parts": parts}


def to_text(plan: Plan, brief: bool = False) -> str:
    """The plan as a table. `brief`: tables and totals without the ranks."""
    request, place = plan.request, _place(plan)
    nodes = request.world_size // request.local_world_size
    lines = [
        f"plan: {request.world_size} x {request.device.name} on {nodes} {'node' if nodes == 1 else 'nodes'}, "
        f"{request.batch_size:,} rows a step on each, {request.optimizer}"
    ]
    head = ("table", "rows x columns", "type", "sharding", "kernel", "ranks", "weights", "optimizer")
    body = [
        (
            p.table.name,
            f"{p.table.rows:,} x {p.table.dim}",
            p.table.dtype,
            p.sharding,
            p.kernel,
            _ranges([s.rank for s in p.parts if s.rows]),
            amount(sum(s.weight_bytes for s in p.parts)),
            amount(sum(s.optimizer_bytes for s in p.parts)),
        )
        for p in plan.tables
    ]
    lines += _columns([head, *body], left=6)
    words = {"hbm": "device memory", "ddr": "host memory"}[place]
    if not brief:
        lines += ["", *_rank_lines(plan, place)]
    loads, times = plan.ranks(place), plan.ranks("ms")
    total = f"most on a rank: {amount(max(loads))} of {amount(getattr(plan.available, place))} {words}, "
    total += f"{plan.step_ms:.3g} ms a step"
    if request.world_size > 1:
        total += f"; most / mean: bytes {imbalance(loads):.2f}, time {imbalance(times):.2f}"
    lines.append(total)
    return "\n".join(lines if brief else [*lines, _NOTE])


def _rank_lines(plan: Plan, place: str) -> list[str]:
    """One line for each run of ranks with equal loads."""
    extra = [p for p in ("hbm", "ddr", "ssd") if p == place or any(plan.ranks(p))]
    names = {"hbm": "device", "ddr": "host", "ssd": "SSD"}
    head = ("rank", "weights", "optimizer", *(names[p] for p in extra), "of mean")
    head += ("forward ms", "backward ms", "communication ms", "all ms", "of mean")
    loads = {field: plan.ranks(field) for field in (*_LOADS, *_TIMES)}
    means = {field: sum(loads[field]) / plan.request.world_size for field in (place, "ms")}

    def cells(rank: int) -> tuple[str, ...]:
        row = [amount(loads[f][rank]) for f in ("weight_bytes", "optimizer_bytes", *extra)]
        row += [_ratio(loads[place][rank], means[place])]
        row += [f"{loads[f][rank]:.3g}" for f in _TIMES]
        return (*row, _ratio(loads["ms"][rank], means["ms"]))

    groups = itertools.groupby(range(plan.request.world_size), key=cells)
    return _columns([head, *((_ranges(list(ranks)), *row) for row, ranks in groups)], left=1)


def amount(size: float) -> str:
    """Bytes as text: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _place(plan: Plan) -> str:
    return "hbm" if plan.request.device.hbm else "ddr"


def _ratio(value: float, mean: float) -> str:
    return f"{value / mean:.2f}" if mean else "1.00"


def _ranges(ranks: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"; the rest is left out after three ranges."""
    ranks = sorted(set(ranks))
    runs = [list(run) for _, run in itertools.groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0])]
    texts = [str(run[0][1]) if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs]
    return ", ".join(texts if len(texts) <= 3 else [*texts[:2], f"... ({len(ranks)})"])


def _columns(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """Aligned lines; the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in rows
    ]
