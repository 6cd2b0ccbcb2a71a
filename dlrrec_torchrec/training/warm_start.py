"""The start of a training with a wide path: the logistic regression of its dense features.

The wide path gets the features' mean and scale on the training rows, and the weights of an L2 logistic
regression on what it makes of them; the deep part adds nothing yet. So the first prediction is that
regression, a strong one, and training has to improve on it. Category profiles and their products stay out,
for the whole training and of the deep part too, unless held-out rows say that they help.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.wide import WidePath
from dlrrec_torchrec.store import packed
from dlrrec_torchrec.store.files import part_files
from dlrrec_torchrec.store.shard_facts import ShardFacts

MOST_ROWS = 1_000_000  # of a split that the regression sees
# scikit-learn's C: weight of the sum of losses beside |w|^2 / 2
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
TOLERANCE = 0.5  # standard errors
DEFAULT_PENALTY = 0.01
PROFILES = ("none", "alone", "products")  # category profiles: left out, as columns, with their products too
PRODUCT_SCALE = 2.0  # deviations that one unit of a product is: they are many, so each weighs less
LEAST_ROWS = 50  # held-out rows that may choose


@dataclasses.dataclass(frozen=True)
class Given:
    """What holds where no rows are held out that could choose: the penalty, and which of PROFILES."""

    penalty: float = DEFAULT_PENALTY
    profiles: str = "none"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a wide path begins with.

    Attributes:
        mean, scale: f32 [F], of all features of the path; the scale of a constant one is 1, of one that is
            left out infinite.
        weight, bias: f32 [F] for standardised features, and the intercept.
        facts: rows, penalty, what chose it, which of PROFILES, for the training's manifest.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float
    facts: dict[str, Any]

    def write(self, wide: WidePath) -> None:
        """Put these into the path."""
        wide.set_scaling(torch.from_numpy(self.mean), torch.from_numpy(self.scale))
        wide.set_weights(torch.from_numpy(self.weight), self.bias)


def warm_start(
    wide: WidePath,
    shards_dir: str | os.PathLike,
    class_weights: Sequence[float],
    held_out: str | None,
    seed: int,
    ranks: Ranks,
    given: Given | None = None,
) -> dict[str, Any]:
    """Fit the regression on rank 0 and write it into the wide path of every rank; call it on all ranks.

    Args:
        class_weights: of the labels 0 and 1, as in the training's loss.
        held_out: the split that chooses the penalty (`strongest`); None: none does.
        seed: of the parts that are read where a split has more than MOST_ROWS.
        given: what holds where no split chooses.

    Returns:
        `Start.facts`.
    """
    start = None
    if ranks.first:
        facts = ShardFacts.read(shards_dir)
        rows = dense_rows(shards_dir, "train", facts, seed)
        others = dense_rows(shards_dir, held_out, facts, seed) if held_out else None
        start = fit(*rows, others, class_weights, given, wide.products)
    start = ranks.share(start)
    start.write(wide)
    return start.facts


def fit(
    dense: np.ndarray,
    label: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray] | None,
    class_weights: Sequence[float],
    given: Given | None = None,
    products: tuple[range, range] | None = None,
) -> Start:
    """Standardisation and regression of training rows: dense f32 [N, D], label [N] of 0 and 1.

    `held_out`, dense and label of other rows, chooses the penalty, and which of PROFILES where there are
    `products` (as in `WidePath`), if there are LEAST_ROWS of both labels; else it is as `given`. More
    features are used where they lower the mean loss by more than TOLERANCE standard errors. Of training rows
    with one label only the regression is left out: weights and bias are 0.
    """
    wide = WidePath(width := dense.shape[1], products)
    with torch.no_grad():
        mean, scale = scaling(wide.expand(torch.from_numpy(dense)).numpy())
    scale[width:] *= PRODUCT_SCALE
    wide.set_scaling(torch.from_numpy(mean), torch.from_numpy(scale))
    facts: dict[str, Any] = {"rows": len(label), "features": width}
    columns = {"none": np.arange(width)}
    if products:
        in_profile = np.isin(columns["none"], [k for group in products for k in group])
        columns = {
            "none": np.flatnonzero(~in_profile),
            "alone": np.arange(width),
            "products": np.arange(len(mean)),
        }

    def start(used: np.ndarray, weight: np.ndarray, bias: float) -> Start:
        weights, scales = np.zeros_like(mean), np.full_like(scale, np.inf)
        weights[used], scales[used] = weight, scale[used]
        return Start(mean, scales, weights, bias, facts)

    if len(np.unique(label)) < 2 or not width:
        facts["note"] = "one label only: nothing to fit"
        return start(columns["none"], np.zeros(len(columns["none"]), np.float32), 0.0)

    def z(rows: np.ndarray) -> np.ndarray:
        return wide.standardize(torch.from_numpy(rows)).numpy().astype(np.float64)

    x, y = z(dense), label.astype(int)
    if held_out is not None and may_choose(held_out[1]):
        rest = z(held_out[0])
        grids = {
            name: _Grid(x[:, used], y, class_weights, rest[:, used], held_out[1])
            for name, used in columns.items()
        }
        profiles = "none"
        for name, grid in grids.items():
            before = grids[profiles]
            gain = before.losses[before.best] - grid.losses[grid.best]
            if gain.mean() > TOLERANCE * gain.std() / math.sqrt(len(gain)):
                profiles = name
        chosen = grids[profiles]
        penalty, weight, bias = chosen.best, *chosen.fitted[chosen.best]
        facts |= {"chosen_by": "loss", "grid": chosen.means}
        if products:
            facts["grids"] = {name: grid.means for name, grid in grids.items()}
    else:
        facts["chosen_by"] = "default" if given is None else "the evaluated training"
        given = given or Given()
        penalty, profiles = given.penalty, given.profiles if given.profiles in columns else "none"
        weight, bias = _regression(class_weights)(x[:, columns[profiles]], y, penalty)
    facts |= {"C": penalty, "profiles": profiles}
    return start(columns[profiles], weight, bias)


class _Grid:
    """Regressions with all PENALTIES: their losses on held-out rows, and the strongest that does as well."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        class_weights: Sequence[float],
        x_held_out: np.ndarray,
        held_out: np.ndarray,
    ):
        regression = _regression(class_weights)
        self.fitted = {penalty: regression(x, y, penalty) for penalty in PENALTIES}
        logits = {c: x_held_out @ weight + bias for c, (weight, bias) in self.fitted.items()}
        self.losses = {c: row_losses(held_out, of) for c, of in logits.items()}
        self.means = {f"{c:g}": float(loss.mean()) for c, loss in self.losses.items()}
        self.best = strongest(self.losses)


def _regression(
    class_weights: Sequence[float],
) -> Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, float]]:
    """(standardised features, labels, penalty) -> weights f32 and bias, from where the last fit ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        solver="newton-cholesky",  # few passes over many rows, where the features are few
        tol=1e-8,
        warm_start=True,  # from the stronger penalty's weights
        class_weight=dict(enumerate(map(float, class_weights))),
    )

    def fitted(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=penalty).fit(x, y)
        return model.coef_[0].astype(np.float32), float(model.intercept_[0])

    return fitted


def row_losses(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Cross-entropies [N] in nats, of labels [N] of 0 and 1 and logits [N]."""
    return np.logaddexp(0, np.where(label > 0, -logit, logit))


def may_choose(label: np.ndarray) -> bool:
    """Whether held-out rows with these labels [N], 0 and 1, may choose: LEAST_ROWS, and both labels."""
    return len(label) >= LEAST_ROWS and 0 < (label > 0).sum() < len(label)


def strongest(losses: Mapping[float, np.ndarray]) -> float:
    """The strongest penalty whose loss on the held-out rows is hardly above the lowest: the smallest C.

    "Hardly" is TOLERANCE standard errors of the mean of the rows' differences, as in the one-standard-error
    rule (Breiman et al. 1984, section 3.4.3): few rows cannot tell weak penalties apart, and of those that
    fit about as well the strongest carries over best.

    Args:
        losses: C -> loss of each held-out row [N].
    """
    best = min(losses, key=lambda c: losses[c].mean())
    for c in sorted(losses):
        difference = losses[c] - losses[best]
        if difference.mean() <= TOLERANCE * difference.std() / math.sqrt(len(difference)):
            return c
    return best


def scaling(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation f32 [D] of rows f32 [N, D]; the scale of a constant column is 1."""
    mean = dense.mean(0, dtype=np.float64) if len(dense) else np.zeros(dense.shape[1])
    deviation = dense.std(0, dtype=np.float64) if len(dense) else np.zeros(dense.shape[1])
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean.astype(np.float32), np.where(constant, 1.0, deviation).astype(np.float32)


def dense_rows(
    shards_dir: str | os.PathLike, split: str, facts: ShardFacts, seed: int, most: int = MOST_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Dense features f32 [N, D] and labels f32 [N] of a split; of a larger one, parts drawn at random.

    No other column is read.
    """
    parts = part_files(Path(shards_dir) / split)
    counts = [pq.read_metadata(part).num_rows for part in parts]
    if sum(counts) > most:
        drawn = np.random.default_rng(seed).permutation(len(parts))
        enough = int(np.searchsorted(np.cumsum([counts[n] for n in drawn]), most)) + 1
        parts = [parts[n] for n in np.sort(drawn[:enough])]
    dense, label, left = [], [], most
    for part in parts:
        table = packed.unpack(pq.read_table(part, columns=["label", "dense"])).slice(0, left)
        flat = table["dense"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        dense.append(flat.reshape(table.num_rows, facts.dense_width))
        label.append(table["label"].to_numpy())
        left -= table.num_rows
    return np.concatenate(dense), np.concatenate(label)
