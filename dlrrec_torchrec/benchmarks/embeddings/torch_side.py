"""The plain side: one torch.nn.EmbeddingBag for each table, replicated where there are several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase
from dlrrec_torchrec.benchmarks.embeddings.random_ids import DTYPES
from dlrrec_torchrec.benchmarks.embeddings.side import Part, bag_offsets, fill, stepper


class TorchBags:
    """nn.EmbeddingBag with sparse or dense gradients and torch's optimizer.

    With several ranks each has all tables and looks up its own bags; the ranks exchange gradients, as in
    plain data-parallel training: dense ones by all-reduce, sparse ones (ids and values) by all-gather.
    """

    def __init__(self, case: EmbeddingCase, device: torch.device) -> None:
        self._case, self._sparse = case, case.reference == "sparse"
        self._bags = [
            nn.EmbeddingBag.from_pretrained(
                torch.empty(case.rows, case.dim, dtype=DTYPES[case.dtype], device=device),
                freeze=False,
                mode="sum",
                sparse=self._sparse,
                include_last_offset=True,
            )
            for _ in range(case.tables)
        ]
        fill(case, self.parts())
        self._step = stepper(case, [bag.weight for bag in self._bags], self._sparse)

    def ready(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(table.reshape(-1), bag_offsets(table)) for table in ids]

    def forward(self, inputs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        output = DTYPES[self._case.output_dtype]
        return [bag(ids, offsets).to(output) for bag, (ids, offsets) in zip(self._bags, inputs, strict=True)]

    def joined(self, sums: list[Tensor]) -> Tensor:
        return torch.cat(sums, dim=1)

    def apart(self, gradient: Tensor, sums: list[Tensor]) -> list[Tensor]:
        pieces = gradient.split(self._case.dim, dim=1)
        return [
            piece.to(s.dtype, memory_format=torch.contiguous_format)
            for piece, s in zip(pieces, sums, strict=True)
        ]

    def backward(self, sums: list[Tensor], gradients: list[Tensor]) -> None:
        torch.autograd.backward(sums, gradients)
        if self._case.world_size > 1:
            for bag in self._bags:
                self._exchange(bag.weight)
        self._step()

    def _exchange(self, table: Tensor) -> None:
        """The mean of all ranks' gradients, on all ranks."""
        world = self._case.world_size
        if not self._sparse:
            dist.all_reduce(table.grad)
            table.grad /= world
            return
        ids, values = table.grad._indices(), table.grad._values() / world  # a row for each lookup
        table.grad = torch.sparse_coo_tensor(
            _of_all_ranks(ids[0], world).unsqueeze(0),
            _of_all_ranks(values, world),
            table.shape,
            check_invariants=False,
        )

    def parts(self) -> list[Part]:
        return [Part(number, 0, 0, bag.weight.detach()) for number, bag in enumerate(self._bags)]


def _of_all_ranks(rows: Tensor, world: int) -> Tensor:
    """The rows of all ranks, the same number on each, in rank order."""
    gathered = [torch.empty_like(rows) for _ in range(world)]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
