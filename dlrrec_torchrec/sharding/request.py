"""The request of a run: its model's tables, before there is any data or any GPU."""

from __future__ import annotations

import dataclasses
import os

import torch

from dlrrec_torchrec.config import ENCODER_DIMS, RunConfig, TableConfig
from dlrrec_torchrec.config.automatic import automatic
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.listing import LIST_KEYS
from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.spec import batch_spec, data_size
from dlrrec_torchrec.sharding.devices import Device
from dlrrec_torchrec.sharding.planner import Request
from dlrrec_torchrec.sharding.tables import configured, dense_bytes, tables_in
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import BUILT_IN, SIDES, Modality, modality
from dlrrec_torchrec.store.rating_scale import USUAL
from dlrrec_torchrec.store.shard_facts import ShardFacts


def run_request(
    config: RunConfig,
    device: Device,
    *,
    world_size: int = 1,
    local_world_size: int = 1,
    shards: str | os.PathLike | None = None,
    model: bool = True,
) -> Request:
    """What to plan for a run's training.

    Args:
        config: model.tables may name tables that the model does not have: these are planned for as well.
        device, world_size, local_world_size: as Request.
        shards: a folder with the run's shards, which know the number of ids. Without, model.tables must say
            how many rows the id tables have, and the vectors of the contrastive terms and the list head's
            tables are left out.
        model: False plans only for tables that the model does not have.

    Raises:
        DataError: settings that do not fit, or a table whose size is not known.
    """
    settings, size_of_dense = dict(config.model.tables), 0
    tables = []
    if model:
        facts = ShardFacts.read(shards) if shards else _planned_facts(config)
        size = data_size(facts) if shards else None
        chosen, *_ = automatic(config.model, config.train, size)
        spec = batch_spec(chosen, facts)
        of_model = _tables_of(spec)
        lists = config.list if shards and config.list.weight else None
        of_model += LIST_KEYS if lists else ()
        predictor = module = build_model(chosen, spec, device="meta", lists=lists)
        if shards and not spec.in_tables:
            vectors = {
                m.name: torch.empty(facts.entities[m.side], m.dim, dtype=torch.float16, device="meta")
                for m in spec.in_rows
            }
            module = build_wrapper(predictor, config.contrastive, corpus=vectors)
        tables = tables_in(module, {name: settings[name] for name in of_model if name in settings})
        size_of_dense = dense_bytes(module)
        settings = {name: table for name, table in settings.items() if name not in of_model}
    # The batch is the training's, over all ranks.
    batch = max(config.train.batch_size // world_size, 1)
    tables += [configured(name, t, None, t.dim or config.model.embedding_dim) for name, t in settings.items()]
    return Request(
        tables=tuple(tables),
        device=device,
        world_size=world_size,
        local_world_size=local_world_size,
        batch_size=batch,
        optimizer=config.train.table_optimizer,
        dense_bytes=size_of_dense,
    )


def _tables_of(spec: BatchSpec) -> list[str]:
    """The names of the model's tables in model.tables."""
    return [*spec.sparse, *spec.managed, *(m.name for m in spec.in_tables)]


def _planned_facts(config: RunConfig) -> ShardFacts:
    """What the shards would be by the settings alone, the numbers of ids by those of model.tables."""
    names = config.model.modalities
    names = [*BUILT_IN, *config.prepare.vectors] if names is None else names
    modalities = tuple(_planned_modality(name, config) for name in names)
    facts = ShardFacts(
        users=1,
        items=1,
        dense=tuple(config.prepare.dense),
        affinity=(),
        dense_width=dense_width(config.prepare.dense),
        rating_range=tuple(config.prepare.rating_range or USUAL),
        modalities=modalities,
        in_rows=tuple(names),
        positives=config.prepare.positives,
        category_slots=config.extract.category_slots,
        category_types=config.prepare.category_types,
        label_counts={"negative": 0, "positive": 0},
        later=0.0,
    )
    spec = batch_spec(config.model, facts)
    ids = {}
    for side in SIDES:
        needing = [name for name in (*spec.sparse, *spec.managed) if name == side]
        needing += [m.name for m in spec.in_tables if m.side == side]
        ids[f"{side}s"] = _rows(needing, config.model.tables)
    return dataclasses.replace(facts, **ids)


def _planned_modality(name: str, config: RunConfig) -> Modality:
    table = config.model.tables.get(name)
    dim = table.dim if table and table.dim else None
    if dim is None and name in BUILT_IN:
        dim = ENCODER_DIMS.get(config.extract.encoder)
    if dim is None:
        raise DataError(
            f"table {name}: how many columns? give the --run-dir of a run with shards, or "
            f"--set model.tables.{name}.dim=N with model.vectors=table"
        )
    return modality(name, dim, flag="model.modalities")


def _rows(needing: list[str], settings: dict[str, TableConfig]) -> int:
    """How many ids there are, by the settings of the tables that need them; 1 where none does."""
    row_counts = [settings[name].rows for name in needing if name in settings and settings[name].rows]
    if len(row_counts) < len(needing):
        name = next(n for n in needing if n not in settings or not settings[n].rows)
        raise DataError(
            f"table {name}: how many rows? give the --run-dir of a run with shards, or "
            f"--set model.tables.{name}.rows=N"
        )
    return min(row_counts, default=1)
