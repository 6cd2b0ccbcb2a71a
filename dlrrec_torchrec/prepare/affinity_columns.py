"""The affinity features of all rows: for training rows fold by fold, for all others by all training rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from dlrrec_torchrec.features.affinity import Affinity, History, fit_affinity
from dlrrec_torchrec.features.left_out import CHUNK_ROWS
from dlrrec_torchrec.features.low_rank import basis, unit
from dlrrec_torchrec.prepare.inputs import SplitRows
from dlrrec_torchrec.prepare.join import JoinedSides
from dlrrec_torchrec.store.mapped import mapped_zeros
from dlrrec_torchrec.store.modality import Modality
from dlrrec_torchrec.store.progress import Bar

DIM = 64  # of content vectors, in the leading directions of all entities'


def affinity_columns(
    splits: Mapping[str, SplitRows],
    sides: JoinedSides,
    modalities: tuple[Modality, ...],
    earlier: bool,
    scratch: Path,
) -> tuple[Affinity, dict[str, np.ndarray]]:
    """The affinity of all training rows, and each split's columns, float32 [N, F] (training rows on disk).

    A training row's columns are those of an affinity that is fitted on the training rows of other folds or,
    where only `earlier` ones count, of earlier folds.
    """
    train = splits["train"]

    def fitted(fold: int) -> Affinity:
        category, price = sides.items.labels.seen_by(fold)
        likes, avoids = sides.users.tastes.seen_by(fold)
        rows = slice(None)
        if fold >= 0:
            rows = np.flatnonzero(sides.fold < fold if earlier else sides.fold != fold)
        return fit_affinity(
            History(
                user=train.user[rows],
                item=train.item[rows],
                rating=train.rating[rows],
                label=train.label[rows],
                users=len(sides.users),
                items=len(sides.items),
                vectors=_vectors(sides, modalities, fold),
                category=category,
                category_types=sides.items.labels.padding,
                price=price,
                likes=likes,
                avoids=avoids,
            )
        )

    folds = np.unique(sides.fold)
    with Bar() as progress:
        task = progress.add_task("affinity", total=len(folds) + 1)
        whole = fitted(-1)
        progress.advance(task)
        names, size = whole.names, (max(len(train.user), 1), len(whole.names))
        columns = {"train": mapped_zeros(scratch / "affinity", np.float32, size)}
        for fold in folds:
            rows = np.flatnonzero(sides.fold == fold)
            affinity = fitted(int(fold))
            for start in range(0, len(rows), CHUNK_ROWS):
                chosen = rows[start : start + CHUNK_ROWS]
                columns["train"][chosen] = _in_order(affinity, names, train.user[chosen], train.item[chosen])
            del affinity  # before the next is fitted: each is as large as all the rest
            progress.advance(task)
    for name, rows in splits.items():
        if name != "train":
            columns[name] = whole.columns(rows.user, rows.item)
    return whole, columns


def _in_order(affinity: Affinity, names: tuple[str, ...], user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Columns by `names`; 0 for a column that this affinity lacks, as that of a tag that no row left has."""
    columns = affinity.columns(user, item)
    if affinity.names == names:
        return columns
    place = {name: k for k, name in enumerate(affinity.names)}
    out = np.zeros((len(user), len(names)), np.float32)
    for k, name in enumerate(names):
        if name in place:
            out[:, k] = columns[:, place[name]]
    return out


def _vectors(sides: JoinedSides, modalities: tuple[Modality, ...], fold: int) -> dict[str, np.ndarray]:
    """Modality -> float32 [E, DIM], as training rows of `fold` see the entities (-1: as all others do).

    Modalities of one space, as user_text and item_text of one encoder, have one projection.
    """
    spaces: dict[tuple, list[Modality]] = {}
    for modality in modalities:
        name = modality.name.removeprefix(f"{modality.side}_")
        spaces.setdefault((name, modality.dim, modality.encoder), []).append(modality)
    projected = {}
    for space in spaces.values():
        seen, sizes = {}, {}
        for modality in space:
            side = sides.users if modality.side == "user" else sides.items
            vectors = side.vectors[modality.name]
            seen[modality.name] = vectors.of_entities if fold < 0 else partial(vectors.as_seen_by, fold)
            sizes[modality.name] = len(side)
        sample = np.concatenate([_sample(seen[name], sizes[name]) for name in seen])
        directions = basis(sample - sample.mean(0), DIM) if len(sample) else sample[:0].T
        for name in seen:
            projected[name] = _projected(seen[name], sizes[name], directions)
    return projected


Seen = Callable[[np.ndarray], np.ndarray]  # codes -> float16 [n, V]


def _sample(seen: Seen, number: int) -> np.ndarray:
    """float32 [n, V], the vectors of up to CHUNK_ROWS entities that have one."""
    codes = np.arange(number)
    if number > CHUNK_ROWS:
        codes = np.sort(np.random.default_rng(0).choice(codes, CHUNK_ROWS, replace=False))
    vectors = seen(codes).astype(np.float32)
    return vectors[vectors.any(axis=1)]


def _projected(seen: Seen, number: int, directions: np.ndarray) -> np.ndarray:
    out = np.zeros((number, directions.shape[1]), np.float32)
    for start in range(0, number, CHUNK_ROWS):
        codes = np.arange(start, min(start + CHUNK_ROWS, number))
        out[codes] = unit(seen(codes).astype(np.float32) @ directions)
    return out
