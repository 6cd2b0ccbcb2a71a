"""Whether the compared sides compute the same: both beside the formulas in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings.random_ids import Requests, weight_blocks
from dlrrec_torchrec.benchmarks.embeddings.side import EPS, LR, Part, Side, first_values
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.store.errors import DataError

STEPS = 2  # the second starts from the first's optimizer state
# Relative errors (Frobenius norms) of sums and of updates. FBGEMM adds in fp32 and rounds once; torch adds
# the gradients of a row in the tables' own type.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
TORCH_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 3e-1}


@dataclasses.dataclass(frozen=True)
class Expected:
    """One table after STEPS steps: its sums f64 [STEPS, B, D], its touched rows, i64 [U] in order, and their
    values f64 [U, D] before and after."""

    sums: Tensor
    rows: Tensor
    before: Tensor
    after: Tensor


def verify(
    case: EmbeddingCase, ranks: Ranks, sides: Mapping[str, Side], requests: Requests
) -> dict[str, dict[str, float]]:
    """Run STEPS steps of every side from its initial weights, and compare.

    Returns:
        {side: {"sums", "updates": relative errors, the largest over the ranks; "tolerance"}}.

    Raises:
        DataError: on all ranks, for a side whose sums or updates are beyond its tolerance, or that changed
            rows that were not looked up.
    """
    own_bags = slice(ranks.rank * case.local_batch, (ranks.rank + 1) * case.local_batch)
    batches = [requests.ids[step % case.requests] for step in range(STEPS)]
    sums = {name: _run(side, batches, requests.gradient, own_bags) for name, side in sides.items()}
    parts = {name: side.parts() for name, side in sides.items()}
    squares = {name: torch.zeros(2, 2, dtype=torch.float64) for name in sides}  # sums, updates: error, size
    stray = dict.fromkeys(sides, 0)
    for table in range(case.tables):
        columns = slice(table * case.dim, (table + 1) * case.dim)
        ids = torch.stack([batch[table] for batch in batches])
        expected = expect(case, table, ids, requests.gradient[:, columns])
        for name in sides:
            expected_sums = expected.sums[:, own_bags]
            squares[name][0] += _squares(sums[name][:, :, columns].double() - expected_sums, expected_sums)
            for part in parts[name]:
                if part.table == table:
                    squares[name][1] += _updates(part, expected)
                    stray[name] += _stray_rows(case, part, expected.rows)
    errors_by_side = {}
    for name in sides:
        errors = [float((error / size.clamp(min=1e-300)).sqrt()) for error, size in squares[name]]
        rank_errors: list = [None] * ranks.world_size
        dist.all_gather_object(rank_errors, (*errors, stray[name]))
        sums_error, update_error, strays = (max(values) for values in zip(*rank_errors, strict=True))
        allowed = TORCH_TOLERANCE if name == "torch" else TOLERANCE
        tolerance = max(allowed[case.dtype], allowed[case.output_dtype])
        if not max(sums_error, update_error) <= tolerance or strays:
            raise DataError(
                f"{name} computes wrong results, so its times would be meaningless: relative error of "
                f"the sums {sums_error:.2g}, of the updates {update_error:.2g} (allowed: {tolerance:g}), "
                f"{strays} rows changed that were not looked up, in {case}"
            )
        errors_by_side[name] = {"sums": sums_error, "updates": update_error, "tolerance": tolerance}
    return errors_by_side


def expect(case: EmbeddingCase, table: int, ids: Tensor, gradient: Tensor) -> Expected:
    """The expected results of a table, by the formulas, for its touched rows only.

    Args:
        ids: i64 [STEPS, B, L] of all ranks.
        gradient: [B, D] of the sums, the same in every step; each rank's share divided by the ranks.
    """
    rows = ids.unique()
    before = torch.empty(len(rows), case.dim, dtype=torch.float64, device=ids.device)
    for top, values in weight_blocks(case, table, ids.device):
        block_rows = slice(
            *torch.searchsorted(rows, torch.tensor([top, top + len(values)], device=ids.device))
        )
        before[block_rows] = values[rows[block_rows] - top].double()
    weights, sums = before.clone(), []
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step, places in enumerate(torch.searchsorted(rows, ids), start=1):
        sums.append(weights[places].sum(1))
        flat = places.flatten()
        per_lookup = (gradient.double() / case.world_size).repeat_interleave(case.pooling, 0)
        total = torch.zeros_like(weights).index_add_(0, flat, per_lookup)
        if case.optimizer == "sgd":
            weights -= LR * total
        elif case.optimizer == "rowwise_adagrad":
            second += total.square().mean(1, keepdim=True)
            weights -= LR * total / (second.sqrt() + EPS)
        else:
            touched = flat.unique()
            g = total[touched]
            first[touched] = 0.9 * first[touched] + 0.1 * g
            second[touched] = 0.999 * second[touched] + 0.001 * g.square()
            scale = (second[touched] / (1 - 0.999**step)).sqrt() + EPS
            weights[touched] -= LR * first[touched] / (1 - 0.9**step) / scale
    return Expected(torch.stack(sums), rows, before, weights)


def _run(side: Side, batches: list[Tensor], gradient: Tensor, own_bags: slice) -> Tensor:
    """The side's sums of every step, [STEPS, b, T·D]; its rows are updated."""
    step_sums = []
    for ids in batches:
        sums = side.forward(side.ready(ids[:, own_bags]))
        step_sums.append(side.joined(sums).detach().clone())
        side.backward(sums, side.apart(gradient[own_bags], sums))
    return torch.stack(step_sums)


def _updates(part: Part, expected: Expected) -> Tensor:
    """Squared norms of the error and of the updates of the touched rows in the part."""
    height, width = part.values.shape
    in_part = (expected.rows >= part.top) & (expected.rows < part.top + height)
    columns = slice(part.left, part.left + width)
    updated = part.values[expected.rows[in_part] - part.top].double()
    before, after = (values[in_part, columns] for values in (expected.before, expected.after))
    return _squares(updated - after, after - before)


def _squares(error: Tensor, size: Tensor) -> Tensor:
    return torch.stack([error.square().sum(), size.square().sum()]).cpu()


def _stray_rows(case: EmbeddingCase, part: Part, touched: Tensor) -> int:
    """How many rows of the part changed although they were not looked up."""
    strays = 0
    for rows, values in first_values(case, part):
        changed = (part.values[rows] != values).any(1)
        positions = touched - part.top - rows.start
        changed[positions[(positions >= 0) & (positions < len(changed))]] = False
        strays += int(changed.sum())
    return strays
