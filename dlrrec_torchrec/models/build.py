"""From settings to the model and its training wrapper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TableConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic, automatic_lists
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.listing import LIST_KEYS, ListRows, recent_ranges
from dlrrec_torchrec.models.content import ContentTables
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.list_head import ListHead
from dlrrec_torchrec.models.list_loss import ListTerm
from dlrrec_torchrec.models.managed import ManagedTables
from dlrrec_torchrec.models.mmrec import Reduction
from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.modality import Modality

_DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


def build_model(
    model: ModelConfig,
    spec: BatchSpec,
    device: torch.device | str | None = None,
    lists: ListConfig | None = None,
) -> DLRREC | Reduction:
    """The model with embedding tables t_category, t_user and t_item, those that are switched on.

    Args:
        spec: what `batch_spec` makes of `model` and the shards: modalities, dense features, users, items and
            categories, of which the table has one row more, for the padding.
        model: settings that are open are the papers' (`config.automatic`).
        device: of the tables. With "meta" (sharded training: no table is ever whole on one host) the dense
            part is on the CPU, else where the tables are. Its weights are drawn on the CPU, so that they
            follow from the seed alone. Tables of model.tables' data types are made on "meta" only: whole
            ones are fp32, which holds the values of the others.
        lists: the list head; None, or weight 0: without.

    With `model.reduction` "alone" it is V0's first step, on the CPU or `device`, and with "upstream" its
    second one, whose towers are to be loaded.

    Raises:
        DataError: settings that do not fit together, naming the flags.
    """
    facts = spec.facts
    model, *_ = automatic(model, TrainConfig())
    needed = {"category": facts.category_types + 1} | facts.entities
    check_settings(model)
    device = torch.device(device or "cpu")
    meta = device.type == "meta"

    def tables_of(names: Sequence[str], **options: Any) -> list[EmbeddingBagConfig]:
        settings = {key: model.tables.get(key, TableConfig()) for key in names}
        return [
            EmbeddingBagConfig(
                name=f"t_{key}",
                embedding_dim=model.embedding_dim,
                num_embeddings=_rows(key, needed[key], settings[key], model.embedding_dim),
                feature_names=[key],
                data_type=_DTYPES[settings[key].dtype or "fp32"] if meta else DataType.FP32,
                **options,
            )
            for key in names
        ]

    table_device = torch.device("meta" if meta else "cpu")
    if model.reduction == "alone":
        sizes = tower_sizes(model, spec.modalities)
        step_one = Reduction(spec.modalities, sizes, model.tower_norm, model.tower_dropout)
        return step_one if meta else step_one.to(device)
    tables = None
    if spec.sparse:
        tables = EmbeddingBagCollection(tables=tables_of(spec.sparse), device=table_device)
    managed = None
    if spec.managed:
        chosen = [model.tables[key] for key in spec.managed]
        managed = ManagedTables(
            tables_of(spec.managed, init_fn=nn.init.zeros_),
            [table.evict for table in chosen],
            [table.admit for table in chosen],
            table_device,
        )
    built = DLRREC(
        tables,
        facts.dense_width,
        model.dense_arch,
        model.over_arch,
        spec.modalities,
        tower_sizes(model, spec.modalities),
        tower_norm=model.tower_norm,
        tower_dropout=model.tower_dropout,
        interaction=model.interaction,
        dropout=model.dropout,
        content=_content(model, spec, table_device) if spec.in_tables else None,
        managed=managed,
        wide=model.wide,
        products=facts.profile_columns,
        residual=model.residual,
        frozen=model.reduction == "upstream",
        list_head=_list_head(model, lists, spec, table_device) if lists and lists.weight else None,
    )
    return built if meta else built.to(device)


def _list_head(model: ModelConfig, lists: ListConfig, spec: BatchSpec, device: torch.device) -> ListHead:
    needed = {f"list_{side}": rows for side, rows in spec.facts.entities.items()}
    needed["list_category"] = spec.facts.category_types
    keys = LIST_KEYS if lists.content and needed["list_category"] else LIST_KEYS[:2]
    settings = {key: model.tables.get(key, TableConfig()) for key in keys}
    configs = [
        EmbeddingBagConfig(
            name=f"t_{key}",
            embedding_dim=lists.dim,
            num_embeddings=_rows(key, needed[key], settings[key], lists.dim),
            feature_names=[key],
            data_type=_DTYPES[settings[key].dtype or "fp32"] if device.type == "meta" else DataType.FP32,
        )
        for key in keys
    ]
    sizes = tower_sizes(model, spec.modalities)
    reduced = {name: layers[-1] for name, layers in sizes.items()} if lists.content else {}
    tables = EmbeddingBagCollection(tables=configs, device=device)
    lists, _ = automatic_lists(lists)
    recent = recent_ranges(lists.recent)
    return ListHead(tables, spec.modalities, reduced, lists.tau, spec.facts.items, recent)


def tower_sizes(model: ModelConfig, modalities: Sequence[Modality]) -> dict[str, list[int]]:
    """The layer sizes of each modality's tower: its own, or those of its kind.

    Raises DataError for sizes of a tower that does not exist.
    """
    names = [modality.name for modality in modalities]
    if unknown := [name for name in model.towers if name not in names]:
        raise DataError(
            f"model.towers: there is no modality '{unknown[0]}' (there is: {', '.join(names) or 'none'})"
        )
    kinds = {"text": model.text_tower, "image": model.image_tower, "other": model.other_tower}
    return {modality.name: model.towers.get(modality.name, kinds[modality.kind]) for modality in modalities}


def _content(model: ModelConfig, spec: BatchSpec, device: torch.device) -> ContentTables:
    """Content tables, still empty. Unsharded ones keep their data type too: the vectors are fp16 anyway."""
    settings = {modality.name: model.tables.get(modality.name, TableConfig()) for modality in spec.in_tables}
    rows = {
        modality.name: _rows(
            modality.name,
            spec.facts.entities[modality.side],
            settings[modality.name],
            modality.dim,
            content=True,
        )
        for modality in spec.in_tables
    }
    for modality in spec.in_tables:
        if modality.dim % 4:
            raise DataError(
                f"model.vectors=table: the vectors of {modality.name} have {modality.dim} numbers, and "
                "FBGEMM's tables need a multiple of 4; use model.vectors=row"
            )
    data_types = {name: _DTYPES[table.dtype or "fp16"] for name, table in settings.items()}
    tables = ContentTables(spec.in_tables, rows, spec.facts.entities, data_types, torch.device("meta"))
    return tables if device.type == "meta" else tables.to_empty(device=device)


def _rows(key: str, needed: int, settings: TableConfig, dim: int, content: bool = False) -> int:
    """Rows of a table that needs `needed` of them. Raises DataError for settings the model cannot follow."""
    if settings.ids == "managed":
        return max(settings.rows or needed + 1, 2)  # one is for ids that have none
    if settings.ids == "code" and settings.rows is not None and settings.rows < needed:
        raise DataError(
            f"model.tables.{key}.rows: {settings.rows:,}, but there are {needed:,} ids; "
            f"fewer rows need model.tables.{key}.ids=hash or managed"
        )
    if settings.dim not in (None, dim):
        raise DataError(
            f"model.tables.{key}.dim: {settings.dim}, but "
            + (
                f"its content vectors have {dim} numbers"
                if content
                else f"the model's tables are of one dimension, model.embedding_dim ({dim})"
            )
        )
    return settings.rows or needed


def build_wrapper(
    model: DLRREC | Reduction,
    contrastive: ContrastiveConfig,
    *,
    corpus: Mapping[str, Tensor],
    class_weights: Sequence[float] = (1.0, 1.0),
    seed: int = 0,
    lists: ListConfig | None = None,
    list_rows: ListRows | None = None,
    item_counts: Tensor | None = None,
    rating: bool = True,
    rating_range: tuple[float, float] | None = None,
    spec: BatchSpec | None = None,
) -> TrainWrapper:
    """The training wrapper of `model`; `corpus`, `class_weights`, `seed` and `rating` as in TrainWrapper.

    Args:
        lists, list_rows: of the model's list head, and what its batches bring (`BatchSpec.lists`); both None
            without one.
        item_counts: i64 [items] training rows of each item; for list.candidates=batch.
        rating_range: lowest and highest rating, for list.graded.
        spec: of the batches, with what its draws need (`models.spec.with_draws`); needed for
            contrastive.negatives=popularity and for contrastive.refresh.
    """
    draws, refreshed = (), {}
    if spec is not None:
        draws, refreshed = spec.draws, spec.replaced if contrastive.refresh else {}
    term = None
    if lists is not None and list_rows is not None:
        term = ListTerm(
            lists.weight,
            lists.low_weight,
            list_rows.candidates,
            list_rows.items,
            lists.id_dropout,
            item_counts,
            seed,
            rating_range if lists.graded else None,
        )
    return TrainWrapper(
        model,
        corpus,
        class_weights,
        item_weight=contrastive.item_weight,
        user_weight=contrastive.user_weight,
        learnable=contrastive.learnable,
        temperature=contrastive.temperature,
        normalize=contrastive.normalize,
        negatives=contrastive.negatives,
        num_negatives=contrastive.num_negatives,
        num_hard=contrastive.num_hard,
        popularity={d.side: d.cumulative for d in draws if d.cumulative is not None},
        refreshed=refreshed,
        positive=contrastive.positive,
        seed=seed,
        lists=term,
        rating=rating,
    )
