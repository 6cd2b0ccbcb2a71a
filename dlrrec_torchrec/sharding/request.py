"""The request of a run: its model's tables, before there is any data or any GPU."""

from __future__ import annotations

import os

import torch

from dlrrec_torchrec.config import RunConfig, TableConfig
from dlrrec_torchrec.data.lookup import side_of
from dlrrec_torchrec.features.dense import dense_width
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.spec import in_tables, managed_keys, sparse_keys
from dlrrec_torchrec.sharding.devices import Device
from dlrrec_torchrec.sharding.planner import Request
from dlrrec_torchrec.sharding.tables import configured, dense_bytes, tables_in
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import VECTOR_DIM


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
            how many rows the id tables have, and the vectors of the contrastive terms are left out.
        model: False plans for the tables that the model does not have alone.

    Raises:
        DataError: settings that do not fit, or a table whose size is not known.
    """
    settings, taken = dict(config.model.tables), 0
    tables = []
    if model:
        facts = Manifest.read(shards).facts if shards else {}
        content = config.model.modalities if in_tables(config.model) else []
        own, ids = (*sparse_keys(config.model), *managed_keys(config.model), *content), {}
        for key in ("user", "item"):
            needing = [name for name in own if side_of(name) == key]
            ids[key] = facts.get(f"{key}s") or _rows(needing, settings)
        built = module = build_model(
            config.model,
            dense_width=facts.get("dense_width") or dense_width(config.prepare.dense),
            num_users=ids["user"],
            num_items=ids["item"],
            device="meta",
        )
        if facts and not content:
            vectors = {
                m: torch.empty(ids[side_of(m)], VECTOR_DIM, dtype=torch.float16, device="meta")
                for m in facts["modalities"]
            }
            module = build_wrapper(built, config.contrastive, corpus=vectors)
        tables = tables_in(module, {name: settings[name] for name in own if name in settings})
        taken = dense_bytes(module)
        settings = {name: table for name, table in settings.items() if name not in own}
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
        dense_bytes=taken,
    )


def _rows(needing: list[str], settings: dict[str, TableConfig]) -> int:
    """How many ids there are, by the settings of the tables that need them; 1 where none does."""
    known = [settings[name].rows for name in needing if name in settings and settings[name].rows]
    if len(known) < len(needing):
        name = next(n for n in needing if n not in settings or not settings[n].rows)
        raise DataError(
            f"table {name}: how many rows? give the --run-dir of a run with shards, or "
            f"--set model.tables.{name}.rows=N"
        )
    return min(known, default=1)
