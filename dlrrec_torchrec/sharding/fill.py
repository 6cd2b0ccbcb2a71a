"""Content tables filled from the shards' entity tables: each rank reads its own parts, once."""

from __future__ import annotations

import contextlib
import math
import os
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrrec_torchrec.data.entities import read_vectors
from dlrrec_torchrec.data.listing import LIST_KEYS
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.content import ContentTables
from dlrrec_torchrec.models.list_head import LIST_INIT
from dlrrec_torchrec.sharding.tables import table_key
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality


def fill_content(model: nn.Module, shards_dir: str | os.PathLike, ranks: Ranks | None = None) -> None:
    """Give every content table in `model` the vectors in `shards_dir`/entities; the rest of it is zeros.

    Memory: a group of rows of one Parquet file, besides the tables themselves.

    Args:
        model: sharded or not; without content tables nothing is done.
        ranks: where it is sharded, to fail on all ranks together.

    Raises:
        DataError: entity tables that cannot be read, or with too few rows (see `read_vectors`).
    """
    with contextlib.nullcontext() if ranks is None else ranks.together():
        for content in [module for module in model.modules() if isinstance(module, ContentTables)]:
            for name, parts in _local_parts(content).items():
                modality = content.modalities[name]
                for part, top, left in parts:
                    _fill(part, top, left, shards_dir, modality, content.entities[modality.side])


def _local_parts(content: ContentTables) -> dict[str, list[tuple[Tensor, int, int]]]:
    """modality -> (part on this rank, its first row, its first column)."""
    parts = {}
    for path, tensor in content.state_dict().items():
        name = path.split(".")[-2].removeprefix("t_")
        if isinstance(tensor, ShardedTensor):
            parts[name] = [(s.tensor, *s.metadata.shard_offsets) for s in tensor.local_shards()]
        else:
            parts[name] = [(tensor, 0, 0)]
    return parts


@torch.no_grad()
def _fill(
    part: Tensor, top: int, left: int, shards_dir: str | os.PathLike, modality: Modality, entities: int
) -> None:
    part.zero_()
    last, filled = min(top + part.shape[0], entities), top
    for first, vectors in read_vectors(shards_dir, modality, top, last):
        filled = first + len(vectors)
        part[first - top : filled - top].copy_(torch.from_numpy(vectors[:, left : left + part.shape[1]]))
    if filled < last:
        raise DataError(
            f"{shards_dir}/entities: {filled} rows of {modality.name}, but there are {entities} ids; "
            "run prepare again"
        )


_INIT_ROWS = 1 << 16  # rows of a table drawn at once


@torch.no_grad()
def fill_tables(model: DistributedModelParallel, seed: int, left_out: Sequence[str]) -> None:
    """Uniform values in ±1/sqrt(rows), TorchRec's default, drawn so that they do not depend on the plan.

    Those of a list head have a standard deviation of LIST_INIT.
    """
    for name, tensor in model.state_dict().items():
        table = re.search(r"\.(?:embedding_bags|embeddings)\.(\w+)\.weight$", name)
        if not table or table_key(table[1]) in left_out:
            continue
        if isinstance(tensor, ShardedTensor):
            parts = [(s.tensor, s.metadata.shard_offsets) for s in tensor.local_shards()]
        else:
            parts = [(tensor, [0, 0])]
        rows, columns = tensor.size()
        bound = math.sqrt(3) * LIST_INIT if table_key(table[1]) in LIST_KEYS else 1 / math.sqrt(rows)
        for part, (top, left) in parts:
            for block in range(top // _INIT_ROWS, -(-(top + part.shape[0]) // _INIT_ROWS)):
                start, end = block * _INIT_ROWS, min((block + 1) * _INIT_ROWS, rows)
                key = np.random.SeedSequence([seed, zlib.crc32(name.encode()), block])
                generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
                values = (torch.rand(end - start, columns, generator=generator) * 2 - 1) * bound
                first, last = max(start, top), min(end, top + part.shape[0])
                part[first - top : last - top].copy_(
                    values[first - start : last - start, left : left + part.shape[1]]
                )
