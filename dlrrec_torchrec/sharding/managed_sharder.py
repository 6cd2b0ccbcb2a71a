"""Sharding of managed tables, with optimizer state that is reset together with its row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """TorchRec's sharder for managed tables where a row is zeroed when it is given to a new id.

    TorchRec resets only the state of row-wise Adagrad, by an operator that FBGEMM does not have for CPUs.
    """

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionEmbeddingBagCollection:
        """The module, its tables and the ids in them sharded by `params`."""
        return _Sharded(
            module,
            params,
            ebc_sharder=self._e_sharder,
            mc_sharder=self._mc_sharder,
            env=env,
            device=device or torch.device("cuda"),
        )


class _Sharded(ShardedManagedCollisionEmbeddingBagCollection):
    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Zero the rows (of this rank's part) that have just been given to other ids, and their state."""
        for table, rows in evictions_per_table.items():
            if rows is not None:
                for tensor in self._held(table):
                    tensor.index_fill_(0, rows, 0)

    def _held(self, table: str) -> list[Tensor]:
        """The table's weights and state on this rank: views [rows, ...]."""
        for lookup in self._embedding_module._lookups:
            for group in lookup._emb_modules:
                names = [config.name for config in group._config.embedding_tables]
                if table in names:
                    kernel: Any = group._emb_module
                    weights = kernel.split_embedding_weights()
                    state = kernel.split_optimizer_states()
                    number = names.index(table)
                    table_state = state[number] if number < len(state) else ()
                    return [weights[number], *(s for s in table_state if len(s) == len(weights[number]))]
        return []
