"""Content vectors in frozen tables, looked up by the codes of users and items.

A batch's codes are drawn and deduplicated on the host, before the step: all lookups are one part of the
batch, so TorchRec's pipelined trainer fetches the vectors of the next batch while it computes this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.store.modality import Modality


class ContentTables(nn.Module):
    """One frozen table `t_MODALITY` for each modality; row i is the vector of code i.

    TorchRec's EmbeddingCollection holds tables of one dimension, so there is one for each dimension.

    Args:
        modalities: of the tables.
        rows: modality -> rows of its table.
        entities: "user", "item" -> their number; further rows are zeros.
        data_types: modality -> type of the table's numbers.
        device: of the tables.

    Example::

        >>> text = Modality("item_text", "item", "text", source="reviews", dim=384, encoder="MiniLM")
        >>> content = ContentTables([text], {"item_text": 3}, {"item": 3}, {"item_text": DataType.FP32})
        >>> ids = KeyedJaggedTensor(["item_text"], torch.tensor([2, 0]), lengths=torch.tensor([1, 1]))
        >>> content(ids)["item_text"].shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        rows: Mapping[str, int],
        entities: Mapping[str, int],
        data_types: Mapping[str, DataType],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.modalities = {modality.name: modality for modality in modalities}
        self.entities = dict(entities)
        self.tables = nn.ModuleDict()
        for dim in dict.fromkeys(modality.dim for modality in modalities):
            configs = [
                EmbeddingConfig(
                    name=f"t_{modality.name}",
                    embedding_dim=dim,
                    num_embeddings=rows[modality.name],
                    feature_names=[modality.name],
                    data_type=data_types[modality.name],
                )
                for modality in modalities
                if modality.dim == dim
            ]
            self.tables[f"dim_{dim}"] = EmbeddingCollection(tables=configs, device=device)
        self.tables.requires_grad_(False)

    def forward(self, ids: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The vectors of the ids, modality -> [U, V], in their order; no gradient passes."""
        looked_up = {dim: tables(ids) for dim, tables in self.tables.items()}
        return {
            name: looked_up[f"dim_{modality.dim}"][name].values().detach()
            for name, modality in self.modalities.items()
        }
