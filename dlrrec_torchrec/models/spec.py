"""What the batches of a model must hold, by its settings and the shards."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import torch
from torch import Tensor

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TableConfig
from dlrrec_torchrec.config.automatic import DataSize, automatic_lists
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.draws import Draws, permuted_positives, popularity
from dlrrec_torchrec.data.entities import entity_counts, entity_positives
from dlrrec_torchrec.data.hard_negatives import second_neighbours
from dlrrec_torchrec.data.listing import ListRows, recent_ranges
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality, chosen
from dlrrec_torchrec.store.shard_facts import ShardFacts

VECTORS = ("row", "table")
CATALOGUE = 20_000  # items up to which list.candidates=auto takes all of them


def data_size(facts: ShardFacts) -> DataSize:
    """What settings that are open follow from (`config.automatic`)."""
    counts = facts.label_counts.values()
    return DataSize(sum(counts), min(counts), facts.users, facts.items, bool(facts.affinity), facts.later)


def batch_spec(
    model: ModelConfig,
    facts: ShardFacts,
    contrastive: ContrastiveConfig | None = None,
    seed: int = 0,
    lists: ListConfig | None = None,
) -> BatchSpec:
    """What the batches of the model hold.

    Args:
        facts: of the shards that it is trained on.
        contrastive: also what the anchors are compared with, as the wrapper of this `seed` expects it.
        lists: also what the list head looks up, where it is on (open settings by `automatic_lists`); what it
            needs of the shards' rows comes from `with_rows`, what draws need of the entity tables from
            `with_draws`.

    Raises:
        DataError: vectors, or a modality, that do not exist; names the setting.
    """
    if model.vectors not in VECTORS:
        raise DataError(f"model.vectors: {model.vectors!r} is not one of {', '.join(VECTORS)}")
    on = {"category": model.category, "user": model.user_id, "item": model.item_id}
    ids = {key: model.tables.get(key, TableConfig()).ids for key, used in on.items() if used}
    modalities = _modalities(model, facts)
    draws = []
    if contrastive is not None:
        negatives = 0 if contrastive.negatives == "batch" else contrastive.num_negatives
        hard = contrastive.num_hard if contrastive.negatives == "swing_hard" else 0
        for side, weight in (("item", contrastive.item_weight), ("user", contrastive.user_weight)):
            if weight and any(modality.side == side for modality in modalities):
                draws.append(Draws(side, facts.entities[side], contrastive.positive, negatives, seed, hard))
    tables = model.vectors == "table"
    return BatchSpec(
        facts,
        sparse=tuple(key for key, scheme in ids.items() if scheme != "managed"),
        managed=tuple(key for key, scheme in ids.items() if scheme == "managed"),
        hashed={key: model.tables[key].rows for key, scheme in ids.items() if scheme == "hash"},
        in_rows=() if tables else modalities,
        joined=() if tables else tuple(model.joined),
        in_tables=modalities if tables else (),
        draws=tuple(draws),
        positives=facts.positives if draws else 0,
        lists=None if lists is None or not lists.weight else _list_rows(lists, facts, seed),
    )


def _list_rows(lists: ListConfig, facts: ShardFacts, seed: int) -> ListRows:
    candidates = lists.candidates
    if candidates == "auto":
        candidates = "catalogue" if facts.items <= CATALOGUE else "sampled"
    number = min(lists.num_candidates, facts.items)
    padding = facts.category_types
    return ListRows(
        candidates,
        facts.items,
        number,
        seed,
        padding=padding,
        content=lists.content,
        mask_seen=lists.mask_seen,
        recent=recent_ranges(automatic_lists(lists)[0].recent),
    )


def with_rows(spec: BatchSpec, category: np.ndarray, sequences: Sequences) -> BatchSpec:
    """The same, with what the list head's lookups need of the shards.

    Args:
        category: i32 [items, slots], the items' category types, padded with their number.
        sequences: of the training rows.
    """
    used = spec.lists.content and spec.facts.category_types
    rows = dataclasses.replace(spec.lists, category=category if used else None, sequences=sequences)
    return dataclasses.replace(spec, lists=rows)


def with_draws(
    spec: BatchSpec, shards_dir: str | os.PathLike, contrastive: ContrastiveConfig, seed: int
) -> BatchSpec:
    """The same, with what its draws need of the entity tables.

    Those are the entities' numbers of training rows (`popularity`), who is near an entity without being its
    positive (`swing_hard`), and positives by entity in place of the rows': another entity's (`permuted`), or
    those that a training makes anew (`refresh`), which begin as SWING's. Hard negatives are of the positives
    that count, whichever these are.

    Raises DataError for damaged entity tables.
    """
    draws, replaced = [], {}
    for drawn in spec.draws:
        side = drawn.side
        if contrastive.negatives == "popularity":
            counts = torch.from_numpy(np.array(entity_counts(shards_dir, side)))
            drawn = dataclasses.replace(drawn, cumulative=popularity(counts))
        if contrastive.permuted or contrastive.refresh or drawn.hard:
            positives = torch.from_numpy(entity_positives(shards_dir, side))
            if contrastive.permuted:
                positives = permuted_positives(positives, side, seed)
            if contrastive.permuted or contrastive.refresh:
                replaced[side] = positives
            if drawn.hard:
                near = torch.from_numpy(second_neighbours(positives.numpy()))
                drawn = dataclasses.replace(drawn, near=near)
        draws.append(drawn)
    spec = dataclasses.replace(spec, draws=tuple(draws), replaced=replaced)
    if contrastive.refresh:
        for table in changing_tables(spec):
            table.share_memory_()
    return spec


def changing_tables(spec: BatchSpec) -> list[Tensor]:
    """What `contrastive.refresh` writes to in place."""
    return [*spec.replaced.values(), *(drawn.near for drawn in spec.draws if drawn.near is not None)]


def _modalities(model: ModelConfig, facts: ShardFacts) -> tuple[Modality, ...]:
    if model.vectors == "table":
        return chosen(model.modalities, facts.modalities, "model.modalities")
    if model.modalities is None and facts.modalities and not facts.in_rows:
        raise DataError(
            "model.vectors=row: the rows of these shards hold no vectors; set model.vectors=table to look "
            "them up, model.modalities=[] to use none, or run `dlrrec prepare` again with prepare.modalities"
        )
    return chosen(model.modalities, facts.row_modalities, "model.modalities")
