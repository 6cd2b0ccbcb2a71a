"""Ids, weights and gradients of a benchmark, drawn from its seed only, so every rank has the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK_ROWS = 1 << 20  # rows of a table drawn at once
_IDS, _WEIGHTS, _GRADIENTS = range(3)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Batches generated in advance, and the gradient of the sums of each.

    Attributes:
        ids: i64 [requests, T, B, L], of all ranks.
        gradient: f32 [B, T·D], normal; every value is exact in fp16 and in bf16 too.
        unique: distinct rows of a batch over all tables, mean over the batches.
    """

    ids: Tensor
    gradient: Tensor
    unique: float


def make_requests(case: EmbeddingCase, device: torch.device) -> Requests:
    """The case's batches on `device`."""
    draw = zipf if case.distribution == "zipf" else uniform
    ids = draw(case, case.requests * case.lookups, _generator(case, device, _IDS), device)
    ids = ids.view(case.requests, case.tables, case.batch, case.pooling)
    gradient = torch.randn(
        case.batch, case.tables * case.dim, generator=_generator(case, device, _GRADIENTS), device=device
    )
    unique = sum(table.unique().numel() for batch in ids for table in batch) / case.requests
    return Requests(ids, gradient.bfloat16().float(), unique)


def uniform(case: EmbeddingCase, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`count` ids, i64, every row as likely as any other."""
    return torch.randint(case.rows, (count,), generator=generator, device=device)


def zipf(case: EmbeddingCase, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`count` ids, i64, by Zipf's law cut off at the table's rows: rank k has probability k^-a / sum of j^-a.

    By inversion of the distribution function. Rank k is row `spread(k)`, so that frequent rows are not
    neighbours in memory.
    """
    ranks = torch.arange(1, case.rows + 1, dtype=torch.float64, device=device)
    cumulative = ranks.pow_(-case.exponent).cumsum_(0)
    draws = torch.rand(count, dtype=torch.float64, generator=generator, device=device) * cumulative[-1]
    ranks_drawn = torch.searchsorted(cumulative, draws, right=True)
    return spread(ranks_drawn.clamp_(max=case.rows - 1), case.rows)


def spread(rank: Tensor, rows: int) -> Tensor:
    """A bijection of 0..rows-1 that puts neighbours far apart, by steps near the golden section of `rows`."""
    step = max(round(rows * 0.6180339887498949), 1)
    while math.gcd(step, rows) > 1:
        step += 1
    return rank * step % rows


def weight_blocks(case: EmbeddingCase, table: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first row, values [block, D] in the case's data type) of a table's initial weights, uniform in ±1."""
    for number, top in enumerate(range(0, case.rows, BLOCK_ROWS)):
        size = min(BLOCK_ROWS, case.rows - top)
        generator = _generator(case, device, _WEIGHTS, table, number)
        values = torch.rand(size, case.dim, generator=generator, device=device)
        yield top, values.mul_(2).sub_(1).to(DTYPES[case.dtype])


def _generator(case: EmbeddingCase, device: torch.device, *key: int) -> torch.Generator:
    seed = np.random.SeedSequence([case.seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> 1))
