"""The reduced space that a training leaves: do SWING neighbours lie closer in it, and is the content kept?

Measured on users and on items by themselves, on the content vectors that go into the towers (before) and on
the reduced vectors that come out (after), those of a side's modalities side by side. With a variant that has
contrastive terms and one that has none, the difference is what these do to the space.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from dlrrec_torchrec.data.entities import Entities, first_entities
from dlrrec_torchrec.evaluation.baselines import Rows
from dlrrec_torchrec.evaluation.intervals import mean_difference
from dlrrec_torchrec.evaluation.lists import interval_facts
from dlrrec_torchrec.metrics import effective_rank, uniformity
from dlrrec_torchrec.serving.score import Scorer
from dlrrec_torchrec.store.modality import SIDES, Modality
from dlrrec_torchrec.training.probe import rank_alarm, uniformity_alarm

FIRST = 16_384  # entities of a side that are looked at, at most
SAMPLE = 2_000  # of them, whose distances are measured
OTHERS = 10  # that each is compared with
DRAWN = 800  # entities of a side whose vectors are kept for the map
SEED = 0


@dataclasses.dataclass(frozen=True)
class Distances:
    """Of anchors with neighbours, [n] each.

    Attributes:
        neighbours, others, random: mean cosine distance (1 - cosine, from 0 to 2) to the own neighbours, to
            those of others, to entities at random.
        nearer: the share of the pairs (own neighbour, another's) whose own is nearer; equal counts a half.
    """

    neighbours: np.ndarray
    others: np.ndarray
    random: np.ndarray
    nearer: np.ndarray

    def facts(self) -> dict[str, Any]:
        """Means, and 95 % intervals over anchors of `nearer` and of `gap`, others less neighbours."""
        nothing = np.zeros(len(self.nearer))
        return {
            "neighbours": _mean(self.neighbours),
            "others": _mean(self.others),
            "random": _mean(self.random),
            "gap": interval_facts(mean_difference(self.others, self.neighbours)),
            "nearer": interval_facts(mean_difference(self.nearer, nothing)),
        }


def distances(
    vectors: np.ndarray, anchors: np.ndarray, neighbours: np.ndarray, others: np.ndarray, random: np.ndarray
) -> Distances:
    """Distances of anchors; those without an entity of all three kinds are left out.

    Args:
        vectors: floats [N, D].
        anchors: codes [n]; neighbours [n, P], others [n, R], random [n, R]: codes, -1 for none.
    """
    unit = np.asarray(vectors, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    kept = np.all([(codes >= 0).any(1) for codes in (neighbours, others, random)], axis=0)
    means, found = [], []
    for codes in (neighbours, others, random):
        real = codes[kept] >= 0
        apart = 1 - np.einsum("nd,nkd->nk", unit[anchors[kept]], unit[codes[kept]])
        means.append((apart * real).sum(1) / real.sum(1))
        found.append((apart, real))
    (near, real_near), (far, real_far), _ = found
    pairs = real_near[:, :, None] & real_far[:, None, :]
    gaps = far[:, None, :] - near[:, :, None]
    nearer = ((gaps > 0) + 0.5 * (gaps == 0)) * pairs
    return Distances(*means, nearer.sum((1, 2)) / pairs.sum((1, 2)))


def kept_variance(content: np.ndarray, reduced: np.ndarray) -> tuple[float, float]:
    """The share of the content vectors' variance that is linear in the reduced ones, and the most that as
    many numbers can keep (their principal components), both on these very rows.

    Args:
        content: floats [N, V]; reduced: floats [N, R]. NaN where the content does not vary.
    """
    content = np.asarray(content, np.float64) - np.asarray(content, np.float64).mean(0)
    reduced = np.asarray(reduced, np.float64) - np.asarray(reduced, np.float64).mean(0)
    total = float(np.square(content).sum())
    if not total > 0:
        return np.nan, np.nan
    left, values, _ = np.linalg.svd(reduced, full_matrices=False)
    left = left[:, values > 1e-6 * max(values.max(initial=0), 1e-12)]
    small = content if content.shape[0] < content.shape[1] else content.T
    most = np.linalg.eigvalsh(small @ small.T)[::-1][: reduced.shape[1]].sum()
    return float(np.square(left.T @ content).sum()) / total, float(most) / total


class ReducedSpace:
    """Measures every variant on the same users and items.

    Args:
        shards_dir: what the variants were trained on.
        modalities: of the shards.
        entities: for the names of users and items, and the items' categories and price tags.
        train: the training rows, for the users' categories.
        categories: names of the category types, in code order.

    Raises DataError as `first_entities`.
    """

    def __init__(
        self,
        shards_dir: str | os.PathLike,
        modalities: Sequence[Modality],
        entities: Entities,
        train: Rows,
        categories: Sequence[str],
    ) -> None:
        self._vectors, self._positives = first_entities(shards_dir, modalities, FIRST)
        self._entities, self._groups = entities, groups(entities, train, categories)
        self._found: dict[str, dict[str, dict[str, Any]]] = {}  # variant -> side
        self._nearer: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}  # of the first variant with these
        self._maps: dict[tuple[str, str], pa.Table] = {}
        self.notes: list[str] = []

    def measure(self, name: str, scorer: Scorer, known: Sequence[str] = ()) -> None:
        """Measure a variant; `notes` gets what is wrong with its space, except alarms by these names."""
        self._found[name] = {}
        for side in SIDES:
            names = [m.name for m in scorer.spec.modalities if m.side == side]
            if not names or side not in self._positives:
                continue
            content = {m: self._vectors[m] for m in names}
            self._found[name][side] = self._of_side(name, side, content, scorer.reduced(content), known)

    def _of_side(
        self,
        name: str,
        side: str,
        content: Mapping[str, np.ndarray],
        reduced: Mapping[str, np.ndarray],
        known: Sequence[str],
    ) -> dict[str, Any]:
        before, after = (np.concatenate(list(found.values()), axis=1) for found in (content, reduced))
        before = before.astype(np.float32)
        present = np.flatnonzero(before.any(1))
        draw = np.random.default_rng(SEED)
        sample = np.sort(draw.choice(present, min(SAMPLE, len(present)), replace=False))
        pairs = sample, *self._compared(side, sample, present, draw)
        of_content, of_reduced = distances(before, *pairs), distances(after, *pairs)
        gain = interval_facts(mean_difference(of_reduced.nearer, of_content.nearer))
        facts: dict[str, Any] = {
            "entities": len(sample),
            "with_neighbours": len(of_reduced.nearer),
            "before": of_content.facts(),
            "after": of_reduced.facts() | {"gain": gain},
            "uniformity": uniformity(after[sample]),
            "towers": {
                m: {
                    "effective_rank": effective_rank(vectors[sample]),
                    "width": vectors.shape[1],
                    "content_rank": effective_rank(content[m][sample]),
                }
                for m, vectors in reduced.items()
                if len(sample)
            },
        }
        facts["kept"], facts["kept_most"] = kept_variance(before[sample], after[sample])
        alike = side, tuple(content)
        if alike in self._nearer:
            facts["less"] = interval_facts(mean_difference(self._nearer[alike], of_reduced.nearer))
        self._nearer.setdefault(alike, of_reduced.nearer)
        self._warn(name, side, facts, known)
        self._maps[name, side] = self._map(side, after, present)
        return facts

    def _compared(
        self, side: str, sample: np.ndarray, present: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Of the sample the neighbours [n, P], OTHERS of other entities and OTHERS at random, -1 for none.

        Against entities at random a neighbour is nearer for being anybody's: who is a neighbour is popular,
        and content of many reviews lies near the middle. Against others' neighbours only whose it is counts.
        """
        everybody = self._positives[side]
        there = np.zeros(len(everybody) + 1, bool)
        there[present] = True
        known = np.where((everybody >= 0) & (everybody < len(everybody)), everybody, -1)
        known = np.where(there[known], known, -1)
        listed, pool = everybody[sample], known[present]

        def drawn(pool: np.ndarray) -> np.ndarray:
            if not len(pool):
                return np.full((len(sample), OTHERS), -1)
            codes = draw.choice(pool, (len(sample), OTHERS))
            wrong = (codes == sample[:, None]) | (codes[:, :, None] == listed[:, None, :]).any(2)
            return np.where(wrong, -1, codes)

        return known[sample], drawn(pool[pool >= 0]), drawn(present)

    def _warn(self, name: str, side: str, facts: Mapping[str, Any], known: Sequence[str]) -> None:
        alarms = {f"uniformity_{side}": uniformity_alarm(side, facts["uniformity"])}
        for modality, tower in facts["towers"].items():
            possible = min(tower["content_rank"], tower["width"])
            alarms[f"effective_rank_{modality}"] = rank_alarm(modality, tower["effective_rank"], possible)
        self.notes += [f"{name}: {text}" for what, text in alarms.items() if text and what not in known]

    def _map(self, side: str, vectors: np.ndarray, present: np.ndarray) -> pa.Table:
        draw = np.random.default_rng(SEED)
        codes = np.sort(draw.choice(present, min(DRAWN, len(present)), replace=False))
        table = {
            "entity": pa.array(codes, pa.int32()),
            "group": [self._groups[side][code] for code in codes],
            "vector": pa.array(list(vectors[codes].astype(np.float32)), pa.list_(pa.float32())),
        }
        return pa.table(table)

    def result(self) -> dict[str, Any]:
        """The part "space" of `metrics.json`: variant -> side ("user", "item") -> measures.

        `entities`, `with_neighbours` (numbers); `before` and `after`, of content and of reduced vectors:
        `neighbours`, `others` and `random` (mean cosine distance to its SWING neighbours, to those of others
        and to entities at random), `gap`
        and `nearer` (`Distances`), and `after` also `gain`, its `nearer` less that before; `less`, the first
        variant's `nearer` less this one's (not of the first); `uniformity`; `towers`, modality ->
        `effective_rank`, `width`, `content_rank`; `kept`, `kept_most` (`kept_variance`). All differences as
        `interval_facts`.
        """
        return self._found

    def write(self, folder: Path) -> None:
        """`VARIANT-users.parquet` and `VARIANT-items.parquet` in `folder`: of up to DRAWN entities `entity`
        (code), `group` (`groups`) and `vector`, the reduced vectors side by side."""
        folder.mkdir()
        for (name, side), table in self._maps.items():
            pq.write_table(table, folder / f"{name}-{side}s.parquet", compression="zstd")


def groups(entities: Entities, train: Rows, categories: Sequence[str]) -> dict[str, list[str]]:
    """What colours a map: an item's first category, or its price tag where no item has a category; of a user
    that which most of the user's training rows have (the first of several). "" for none."""
    items = entities.items
    if items.category.shape[1] and (items.category[:, 0] < len(categories)).any():
        names, codes = [*categories, ""], np.minimum(items.category[:, 0], len(categories))
    else:
        known = sorted({*items.price_tag.tolist()} - {"none"})
        names, place = [*known, ""], {tag: k for k, tag in enumerate(known)}
        codes = np.array([place.get(tag, len(known)) for tag in items.price_tag.tolist()], np.int64)
    users, of_rows = len(entities.users), codes[train.item]
    real = of_rows < len(names) - 1
    ones = np.ones(int(real.sum()))
    counts = sparse.csr_matrix((ones, (train.user[real], of_rows[real])), (users, len(names)))
    favourite = np.asarray(counts.argmax(1)).reshape(-1)
    favourite[np.diff(counts.indptr) == 0] = len(names) - 1
    return {"item": [names[code] for code in codes], "user": [names[code] for code in favourite]}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
