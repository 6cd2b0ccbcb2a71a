"""Managed-collision (zero-collision) tables: a bounded number of rows for an unbounded number of ids.

Each admitted id has its own row; which ids are admitted changes during training. The others share the last
row (of each part of a sharded table).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrrec_torchrec.data.hashing import hash63
from dlrrec_torchrec.store.errors import DataError

POLICIES = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


class ManagedTables(nn.Module):
    """Tables that give rows to the ids they see, and take them from other ids when none is free.

    An id is represented by its `hash63`, which spreads the ids evenly over the ranks. A row starts at zero,
    also when it is given to another id, and so does the last row, which the ids without a row share. Only
    training gives rows.

    Args:
        tables: of one dimension E, each of one feature. Their `init_fn` must set zeros.
        policies: for each, a key of POLICIES: which id loses its row.
        intervals: for each, after how many steps new ids get rows.

    Example::

        >>> users = EmbeddingBagConfig(
        ...     name="t_user",
        ...     embedding_dim=4,
        ...     num_embeddings=100,
        ...     feature_names=["user"],
        ...     init_fn=torch.nn.init.zeros_,
        ... )
        >>> tables = ManagedTables([users], ["lru"], [1], torch.device("cpu"))
        >>> ids = KeyedJaggedTensor(["user"], torch.tensor([10**12, 7]), lengths=torch.tensor([1, 1]))
        >>> tables(ids).shape
        torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        policies: Sequence[str],
        intervals: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.features = [table.feature_names[0] for table in tables]
        modules = {
            table.name: _Rows(
                zch_size=table.num_embeddings,
                device=device,
                eviction_policy=POLICIES[policy](),
                eviction_interval=interval,
                input_hash_func=hashed_ids,
            )
            for table, policy, interval in zip(tables, policies, intervals, strict=True)
        }
        self.tables = ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=list(tables), device=device),
            ManagedCollisionCollection(modules, list(tables)),
            # The rows of new ids are zeroed in the forward pass, after autograd may have recorded them.
            allow_in_place_embed_weight_update=True,
        )

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        """The rows of B examples, [B, tables, E]."""
        pooled = self.tables(ids)[0].to_dict()
        return torch.stack([pooled[name] for name in self.features], dim=1)


class _Rows(MCHManagedCollisionModule):
    """TorchRec's module, which also admits the new ids of batches larger than the first.

    TorchRec has room for the ids of 1.25 batches of the first one's size, and drops the others.
    """

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        arrived = sum(feature.values().numel() for feature in features.values())
        missing = self._current_history_buffer_offset + arrived - self._input_history_buffer_size
        if self.training and self._input_history_buffer_size >= 0 and missing > 0:
            self._history_accumulator = _longer(self._history_accumulator, missing)
            for name, values in self._history_metadata.items():
                self._history_metadata[name] = _longer(values, missing)
                setattr(self, f"_history_{name}", self._history_metadata[name])
            self._input_history_buffer_size += missing
        return super().profile(features)


def _longer(values: Tensor, extra: int) -> Tensor:
    return torch.cat([values, values.new_zeros(extra)])


def hashed_ids(ids: Tensor, size: int) -> Tensor:
    """TorchRec's hash function of ids: values below `size`, 2^63 - 1."""
    return hash63(ids)


@contextlib.contextmanager
def loading_managed(model: nn.Module) -> Iterator[None]:
    """A context in which a state is loaded into the model's managed tables, sharded or not.

    Raises:
        DataError: the saved parts cannot be combined into the present ones.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MCHManagedCollisionModule)
    }
    # TorchRec compares the present parts with the saved ones, which replace them until the end of the load.
    segments = {name: module._output_segments_tensor.clone() for name, module in modules.items()}
    try:
        yield
    except AssertionError as error:
        if not modules or "segements" not in str(error):
            raise
        tables = ", ".join(sorted({name.split(".")[-1].removeprefix("t_") for name in modules}))
        raise DataError(
            f"model.tables.{tables}.ids=managed: ranks share ids by hash, so a checkpoint loads on as many "
            "ranks as saved it, or on fewer that divide that number; use such a number of ranks, or "
            "start over with train.resume=false"
        ) from None
    for name, module in modules.items():
        module._output_segments_tensor.copy_(segments[name])
