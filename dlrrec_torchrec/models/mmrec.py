"""V0's first step (MMREC, Tian et al. 2024, section 4.3): towers trained alone on the outcome.

Step two is the DLRM (`models.dlrrec.DLRREC`) whose towers stay as they are, `frozen`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrrec_torchrec.models.scoring import Scoring
from dlrrec_torchrec.models.towers import TowerArch
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality


class Reduction(Scoring, nn.Module):
    """Towers, and a linear layer from all their reduced vectors to the logit of the outcome.

    It knows no dense features, no ids and no interaction: that the reduction is trained without them is what
    makes V0 a model of two steps. It has the interface of DLRREC, so that the same training trains it.

    Args:
        modalities: of the content vectors, at least one; V0 joins those of user and item into one.
        towers: modality -> layer sizes of its tower.
        tower_norm, tower_dropout: as in DLRREC.
        device: where it is built.

    Raises:
        DataError: no modality.

    Example::

        >>> text = Modality("user_text+item_text", "pair", "text", source="summary", dim=768, encoder="e5")
        >>> step_one = Reduction([text], {text.name: [256, 32]})
        >>> reduced = step_one.reduce({text.name: torch.randn(4, 768)})
        >>> reduced[text.name].shape, step_one.predict(None, None, reduced).shape
        (torch.Size([4, 32]), torch.Size([4]))
    """

    content = managed = wide = residual = list_head = None

    def __init__(
        self,
        modalities: Sequence[Modality],
        towers: Mapping[str, Sequence[int]],
        tower_norm: str = "batch",
        tower_dropout: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not modalities:
            raise DataError(
                "model.reduction: there is no content vector to reduce; set it to joint, or name vectors in "
                "model.modalities"
            )
        self.modalities = tuple(modalities)
        dims = {modality.name: modality.dim for modality in modalities}
        self.dense_arch = TowerArch(dims, towers, tower_norm, tower_dropout, device)
        width = sum(towers[modality.name][-1] for modality in modalities)
        self.logit = nn.Linear(width, 1, device=device)

    def predict(
        self,
        dense: Tensor | None,
        sparse: KeyedJaggedTensor | None,
        reduced: dict[str, Tensor],
        managed: KeyedJaggedTensor | None = None,
    ) -> Tensor:
        """Logits f32 [B] of rows with these reduced vectors; nothing else is looked at."""
        content = torch.cat([reduced[modality.name] for modality in self.modalities], dim=1)
        return self.logit(content).squeeze(1).float()

    def parts(
        self,
        dense: Tensor | None,
        sparse: KeyedJaggedTensor | None,
        reduced: dict[str, Tensor],
        managed: KeyedJaggedTensor | None = None,
    ) -> tuple[None, None, Tensor]:
        """As `DLRREC.parts`, without a wide path."""
        return None, None, self.predict(dense, sparse, reduced, managed)
