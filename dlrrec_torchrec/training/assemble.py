"""From settings to what is trained: model, plan, sharded tables, optimizers, content vectors, pipeline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.distributed.ranks import Ranks
from dlrrec_torchrec.models.build import build_model, build_wrapper
from dlrrec_torchrec.models.compiled import compile_dense
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.losses import class_weights
from dlrrec_torchrec.models.mmrec import Reduction
from dlrrec_torchrec.models.wrapper import TrainWrapper
from dlrrec_torchrec.sharding.apply import plan_tables, shard_tables
from dlrrec_torchrec.sharding.fill import fill_content
from dlrrec_torchrec.sharding.planner import Plan
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.training.optimizers import Schedule, make_optimizer
from dlrrec_torchrec.training.steps import Pipeline, make_pipeline


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A model ready to be trained on these ranks.

    Attributes:
        plain: the model that predicts, whose tables are on "meta".
        wrapper: `plain` with its loss.
        model: `wrapper`, sharded.
        plan: where its tables are; None where it has none.
        optimizer: of tables and dense part.
        pipeline: of steps with all of these.
        parameters: of `plain` (`parameter_counts`).
    """

    plain: DLRREC | Reduction
    wrapper: TrainWrapper
    model: DistributedModelParallel
    plan: Plan | None
    optimizer: CombinedOptimizer
    pipeline: Pipeline
    parameters: dict[str, int]


def assemble(
    model: ModelConfig,
    contrastive: ContrastiveConfig,
    train: TrainConfig,
    spec: BatchSpec,
    ranks: Ranks,
    *,
    corpus: Mapping[str, Tensor],
    shards_dir: str | os.PathLike | None = None,
    lists: ListConfig | None = None,
    item_counts: Tensor | None = None,
) -> Assembly:
    """Build everything a training step needs; call it on every rank.

    Weights follow from `train.seed` alone, the same for every number of ranks.

    Args:
        model, train: settings that are open are the papers' (`config.automatic`).
        spec: of the model's batches (`models.spec.batch_spec`).
        corpus: modality -> the vectors of all entities, for the contrastive terms (`TrainWrapper`).
        shards_dir: fills content tables; needed only where the model has any.
        lists: the list head, whose batches `spec` describes; None: without. `item_counts` as in
            `build_wrapper`.

    Raises:
        DataError: settings that do not fit together, the data or the devices; on all ranks.
    """
    model, train, _ = automatic(model, train)
    torch.manual_seed(train.seed)
    plain = build_model(model, spec, device="meta", lists=lists)
    parameters = parameter_counts(plain)
    if plain.list_head is not None and item_counts is not None:
        plain.list_head.set_popularity(item_counts)
    labels = spec.facts.label_counts
    wrapper = build_wrapper(
        plain,
        contrastive,
        corpus=corpus,
        class_weights=class_weights(train.class_weights, labels["negative"], labels["positive"]),
        seed=train.seed,
        lists=lists,
        list_rows=spec.lists,
        item_counts=item_counts,
        rating=rated(spec),
        rating_range=spec.facts.rating_range,
        spec=spec,
    )
    tables = {"batch_size": rows_per_rank(train, ranks), "table_optimizer": train.table_optimizer}
    plan = plan_tables(wrapper, ranks, settings=model.tables, **tables)
    sharded = shard_tables(
        wrapper,
        ranks,
        table_lr=schedule(train).table_lr,
        seed=train.seed,
        plan=plan,
        comms=train.comms,
        static_graph=train.accumulate == 1,
        **tables,
    )
    if shards_dir is not None:
        fill_content(sharded, shards_dir, ranks)
    if train.compile:
        compile_dense(plain, ranks.device)
    optimizer = make_optimizer(sharded, train.lr, train.weight_decay, train.table_optimizer)
    pipeline = make_pipeline(
        sharded,
        optimizer,
        ranks.device,
        precision=train.precision,
        clip_norm=train.clip_norm,
        accumulate=train.accumulate,
    )
    return Assembly(plain, wrapper, sharded, plan, optimizer, pipeline, parameters)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """`dense` and `tables`: weights outside and inside of embedding tables; `bytes` of both.

    Args:
        model: not yet sharded, tables on "meta".
    """
    dense = [parameter for parameter in model.parameters() if not parameter.is_meta]
    tables = [parameter for parameter in model.parameters() if parameter.is_meta]
    return {
        "dense": sum(parameter.numel() for parameter in dense),
        "tables": sum(parameter.numel() for parameter in tables),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in dense + tables),
    }


def rated(spec: BatchSpec) -> bool:
    """Whether the rating's loss counts: not where all labels are positive and there is a list head."""
    return spec.lists is None or bool(spec.facts.label_counts["negative"])


def schedule(train: TrainConfig, total_steps: int = 1, lists: ListConfig | None = None) -> Schedule:
    """The learning rates of a training of `total_steps` steps."""
    _, train, _ = automatic(ModelConfig(), train)
    return Schedule(
        lr=train.lr,
        table_lr=train.lr if train.table_lr is None else train.table_lr,
        kind=train.schedule,
        warmup_steps=train.warmup_steps,
        total_steps=total_steps,
        list_lr=lists.id_lr if lists else ListConfig().id_lr,
        residual_lr=train.residual_lr,
    )


def rows_per_rank(train: TrainConfig, ranks: Ranks) -> int:
    """Rows of a step on each rank. Raises DataError where the batch cannot be shared."""
    size = train.batch_size
    if size % ranks.world_size or size < 2 * ranks.world_size:
        raise DataError(
            f"train.batch_size: {size} rows of a step cannot be shared by {ranks.world_size} ranks; "
            "take a multiple of the number of ranks, with at least two rows for each"
        )
    if size < 2 * ranks.world_size * train.accumulate:
        raise DataError(
            f"train.accumulate: {size} rows of a step cannot be cut into {train.accumulate} micro-batches "
            f"on {ranks.world_size} ranks with two rows each; lower it, or raise train.batch_size"
        )
    return size // ranks.world_size
