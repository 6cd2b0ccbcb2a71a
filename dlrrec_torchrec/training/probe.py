"""How the towers reduce a fixed sample of entities: does its content get lost?

Reduced vectors that all lie close together (mode collapse), or in few directions (an information bottleneck),
cannot tell entities apart, whatever the loss says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dlrrec_torchrec.data.entities import first_entities
from dlrrec_torchrec.metrics import alignment, effective_rank, uniformity
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.store.modality import Modality

SAMPLE = 512  # entities of a side
_FIRST = 16384  # entities of a side that the sample is drawn from
# The alarms.
RANK_SHARE = 0.125  # of the effective rank that is possible
UNIFORMITY = -0.5


class Probe:
    """A sample of users and of items with their content vectors, and their nearest neighbours where known.

    Args:
        modalities: of the vectors.
        vectors: modality -> f16 or f32 [N, V], zeros where missing.
        positives: "user" and "item" -> i64 [N, P], best first, padded with -1.
        seed: of the sample of up to SAMPLE entities that have all vectors of their side.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        vectors: Mapping[str, np.ndarray],
        positives: Mapping[str, np.ndarray],
        seed: int = 0,
    ) -> None:
        self._vectors: dict[str, Tensor] = {}  # modality -> [n + pairs, V]: the sample, then neighbours
        self._sides: dict[str, tuple[list[str], int, np.ndarray]] = {}  # modalities, n, who has a neighbour
        self._possible: dict[str, float] = {}
        for side, listed in positives.items():
            names = [modality.name for modality in modalities if modality.side == side]
            present = np.all([vectors[name].any(1) for name in names], axis=0)
            codes = np.flatnonzero(present)
            draw = np.random.default_rng(seed)
            codes = np.sort(draw.choice(codes, min(SAMPLE, len(codes)), replace=False))
            best = listed[codes, 0] if listed.shape[1] else np.full(len(codes), -1)
            paired = (best >= 0) & (best < len(present))
            paired &= present[np.where(paired, best, 0)] if len(present) else False
            self._sides[side] = names, len(codes), paired
            for name in names:
                sample = np.concatenate([vectors[name][codes], vectors[name][best[paired]]])
                self._vectors[name] = torch.from_numpy(sample).float()
                self._possible[name] = effective_rank(vectors[name][codes]) if len(codes) else np.nan

    @torch.no_grad()
    def measure(self, model: DLRREC) -> dict[str, float]:
        """How the model's towers, in eval mode, reduce the sample: without collectives, on any one rank.

        Returns:
            effective_rank_MODALITY: `metrics.effective_rank` of a tower's vectors.
            uniformity_SIDE, alignment_SIDE: of users' and items' vectors, those of several modalities side by
            side, and of their pairs with the first SWING neighbour.
        """
        arch = model.dense_arch
        device, training = next(arch.parameters()).device, arch.training
        arch.eval()
        try:
            reduced = {
                name: arch.towers[name](vectors.to(device)).float().cpu().numpy()
                for name, vectors in self._vectors.items()
            }
        finally:
            arch.train(training)
        measures = {}
        for side, (names, size, paired) in self._sides.items():
            for name in names:
                measures[f"effective_rank_{name}"] = effective_rank(reduced[name][:size])
            joined = np.concatenate([reduced[name] for name in names], axis=1)
            measures[f"alignment_{side}"] = alignment(joined[:size][paired], joined[size:])
            measures[f"uniformity_{side}"] = uniformity(joined[:size])
        return measures

    def watched(self) -> list[str]:
        """The names of the measures that `alarms` judges."""
        ranks = [f"effective_rank_{name}" for name in self._vectors]
        return ranks + [f"uniformity_{side}" for side in self._sides]

    def alarms(self, model: DLRREC, measures: Mapping[str, float]) -> dict[str, str]:
        """What is wrong in plain words, by the name of the measure.

        An effective rank below RANK_SHARE of what is possible: of the tower's width, or of the effective rank
        of the content vectors themselves if that is less. A uniformity above UNIFORMITY.
        """
        alarms: dict[str, str | None] = {}
        for name in self._vectors:
            rank = measures[f"effective_rank_{name}"]
            possible = min(self._possible[name], model.dense_arch.towers[name].layers[-1].out_features)
            alarms[f"effective_rank_{name}"] = rank_alarm(name, rank, possible)
        for side in self._sides:
            alarms[f"uniformity_{side}"] = uniformity_alarm(side, measures[f"uniformity_{side}"])
        return {name: text for name, text in alarms.items() if text}


def rank_alarm(modality: str, rank: float, possible: float) -> str | None:
    """A bottleneck in words: a tower's effective rank below RANK_SHARE of what is possible."""
    if not rank < RANK_SHARE * possible:
        return None
    return (
        f"the {modality} tower's vectors have an effective rank of {rank:.1f}, where {possible:.0f} is "
        "possible: much of the content is lost in it (what may help: a lower train.lr, "
        "model.tower_norm=batch, a wider tower)"
    )


def uniformity_alarm(side: str, value: float) -> str | None:
    """A collapse in words: a uniformity above UNIFORMITY."""
    if not value > UNIFORMITY:
        return None
    return (
        f"the {side}s' reduced vectors lie close together (uniformity {value:.2f}; 0 is one point) and "
        f"hardly tell {side}s apart (what may help: a lower train.lr, a higher "
        f"contrastive.{side}_weight, more negatives)"
    )


def open_probe(shards_dir: str | os.PathLike, model: DLRREC) -> Probe:
    """The probe of a training on these shards. Raises DataError as `load_entities`."""
    return Probe(model.modalities, *first_entities(shards_dir, model.modalities, _FIRST))
