"""Content vectors in frozen tables, looked up by the codes of users and items.

A batch's codes are drawn and deduplicated on the host, before the step: all lookups are one part of the
batch, so TorchRec's pipelined trainer fetches the vectors of the next batch while it computes this one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.store.schema import VECTOR_DIM


class ContentTables(nn.Module):
    """One frozen table `t_MODALITY` for each modality; row i is the vector of code i.

    Args:
        rows: modality -> rows.
        entities: "user", "item" -> their number; further rows are zeros.
        data_types: modality -> type of the table's numbers.
        device: of the tables.

    Example::

        >>> content = ContentTables({"item_text": 3}, {"item": 3}, {"item_text": DataType.FP32})
        >>> ids = KeyedJaggedTensor(["item_text"], torch.tensor([2, 0]), lengths=torch.tensor([1, 1]))
        >>> content(ids)["item_text"].shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        entities: Mapping[str, int],
        data_types: Mapping[str, DataType],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.modalities = list(rows)
        self.entities = dict(entities)
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"t_{name}",
                    embedding_dim=VECTOR_DIM,
                    num_embeddings=number,
                    feature_names=[name],
                    data_type=data_types[name],
                )
                for name, number in rows.items()
            ],
            device=device,
        )
        self.tables.requires_grad_(False)

    def forward(self, ids: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The vectors of the ids, modality -> [U, 384], in their order; no gradient passes."""
        vectors = self.tables(ids)
        return {name: vectors[name].values().detach() for name in self.modalities}
