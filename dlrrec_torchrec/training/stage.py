"""Stage `train`: shards -> a trained model. One path for one process and for N ranks.

`dlrrec train` in one process needs no launcher, and `breakpoint()` works; `torchrun --nproc_per_node N -m
dlrrec_torchrec train` runs the same function on N ranks, on the same global batches. Everything random
follows from the seed, the number of the epoch or step, and the generators' state in the checkpoint, so that a
training that was killed goes on from its last checkpoint as the same run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlrrec_torchrec.config import ContrastiveConfig, ListConfig, ModelConfig, TrainConfig
from dlrrec_torchrec.config.automatic import automatic, automatic_lists, chosen_text
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.data.hard_negatives import shares
from dlrrec_torchrec.distributed.lockstep import any_rank
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import process_group
from dlrrec_torchrec.models.spec import batch_spec, data_size
from dlrrec_torchrec.ranking.second_stage import left_out
from dlrrec_torchrec.sharding.apply import describe_plan, save_plan
from dlrrec_torchrec.store.folders import check_output
from dlrrec_torchrec.store.manifest import Manifest, jsonable, timed
from dlrrec_torchrec.store.shard_facts import ShardFacts
from dlrrec_torchrec.training.assemble import assemble, rated, rows_per_rank, schedule
from dlrrec_torchrec.training.checkpoint import own_folder
from dlrrec_torchrec.training.epochs import Run
from dlrrec_torchrec.training.list_metrics import ListMetrics
from dlrrec_torchrec.training.probe import open_probe
from dlrrec_torchrec.training.reduction import (
    NO_TERMS,
    STEP_ONE,
    VECTORS,
    evaluated_step_one,
    load_towers,
    step_one,
    write_vectors,
)
from dlrrec_torchrec.training.refresh import Refresh
from dlrrec_torchrec.training.rows import open_rows
from dlrrec_torchrec.training.selection import Evaluated, Selection, no_selection, selection_for
from dlrrec_torchrec.training.signals import Stopped, stop_requests
from dlrrec_torchrec.training.terminal import warn_of_restarts

# Settings that do not change the result.
FREE = ("workers", "resume", "checkpoint_steps", "keep_checkpoints", "background_checkpoints")
FREE += ("log_steps", "profile")

NOT_LEFT_OUT = (
    "vectors from tables: those of a training row know its own review (not leave-one-out), so metrics of "
    "training rows are too good; validation and test rows are not affected"
)
NO_ORDER = (
    "list.recent: no held-out row is known to come after its user's training rows (without all times, these "
    "are in random order), so the latest items may say nothing; --recent 0 leaves them out"
)
UNRATED = "all training rows are positive: the rating is not trained, and the list head learns alone"


def train(
    model: ModelConfig,
    contrastive: ContrastiveConfig,
    train: TrainConfig,
    protocol: str,
    shards_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    lists: ListConfig | None = None,
    evaluated: Evaluated | None = None,
    after_epoch: Callable[[Selection], None] | None = None,
) -> Manifest:
    """Train a model on `shards_dir`/train and keep its best epoch.

    Settings that are open follow from the size of the training rows (`config.automatic`); the manifest has
    all of them, and as `chosen` those.

    `out_dir` gets `unfinished.json` (first: whose folder this is), `plan.json`, `checkpoints/`,
    `metrics.jsonl`, `steps.jsonl`, `tensorboard/`, `best.json` (epoch, metrics, protocol, split, rule) and at
    the end `manifest.json`, with the fact `list`: the shares of the rating logit (`mix`) and of EASE (`ease`)
    in its lists. With model.reduction "upstream" it also gets `step-one/`, first. If it
    holds an interrupted training with these settings, that one goes on. Under a launcher, call it on every
    rank.

    Args:
        lists: the list head; None, or weight 0: without.
        evaluated: of a training with these settings: no row is held out, and what it says takes the place of
            what held-out rows would choose. Learning rates go by `train.epochs` all the same.
        after_epoch: called on every rank with the selection so far after each epoch is saved; an exception
            of its own ends the training.

    Raises:
        DataError: `out_dir` holds something other than a training, or is being trained; shards that cannot
            be used (file, column, row), settings that do not fit (flag), a loss that is not a number, a
            checkpoint that cannot be written; on all ranks.
        Stopped: any rank got SIGTERM or SIGINT; all saved after the same step and leave with exit status 75.
    """
    lists = lists if lists and lists.weight else None
    check_settings(model, contrastive, train, lists or ListConfig(weight=0.0), protocol=protocol)
    shards = Manifest.read(shards_dir)
    facts = ShardFacts.of(shards, shards_dir)
    model, train, chosen = automatic(model, train, data_size(facts))
    if lists is not None:
        lists, of_lists = automatic_lists(lists, facts.later)
        chosen |= of_lists
    check_settings(model, contrastive, train, protocol=protocol)  # the chosen ones beside the given ones
    settings = jsonable({"model": model, "contrastive": contrastive, "list": lists, "train": train})
    for name in FREE:
        del settings["train"][name]
    settings["protocol"], inputs = protocol, {"shards": shards.fingerprint}
    if evaluated is not None:
        settings["evaluated"], inputs["evaluated"] = jsonable(evaluated), evaluated.fingerprint
    manifest = Manifest("train", settings, inputs)
    if previous := manifest.current(out_dir):
        return previous
    check_output(out_dir, manifest.stage)

    warn_of_restarts()
    out_dir = Path(out_dir)
    spec = batch_spec(model, facts, contrastive, train.seed, lists)
    with (
        quiet(),
        process_group(train.device) as ranks,
        timed(manifest),
        contextlib.ExitStack() as held,
    ):
        selection = (
            no_selection()
            if evaluated
            else selection_for(protocol, train.select, train.patience, lists is not None)
        )
        opened = open_rows(
            shards_dir,
            spec,
            train,
            rows_per_rank(train, ranks),
            selection.split,
            ranks,
            contrastive,
        )
        spec, rows, held_out, entities = opened.spec, opened.rows, opened.held_out, opened.entities
        assembly = assemble(
            model,
            contrastive,
            train,
            spec,
            ranks,
            corpus=opened.corpus,
            shards_dir=shards_dir,
            lists=lists,
            item_counts=None if entities is None else torch.tensor(entities.items.count),
        )

        held.enter_context(own_folder(out_dir, manifest.fingerprint, train.resume, ranks))
        if ranks.first:
            if assembly.plan is not None:
                save_plan(assembly.plan, out_dir)
            if chosen:
                print(chosen_text(chosen, data_size(facts)), file=sys.stderr)
            if near := {draws.side: draws.near.numpy() for draws in spec.draws if draws.hard}:
                print(shares(near), file=sys.stderr)
            if spec.in_tables:
                print(NOT_LEFT_OUT, file=sys.stderr)
            if not rated(spec):
                print(UNRATED, file=sys.stderr)
            if lists is not None and lists.recent and not facts.later and evaluated is None:
                print(NO_ORDER, file=sys.stderr)
            if lists is not None and lists.ease and (why := left_out(facts.users, facts.items)):
                print(f"list.ease: {why}", file=sys.stderr)
        first_step = None
        if model.reduction == "upstream":
            first_step = _train_step_one(model, train, protocol, shards_dir, out_dir / STEP_ONE, evaluated)
            with ranks.together():
                load_towers(assembly.plain, step_one(model), spec, out_dir / STEP_ONE)
                if ranks.first:
                    write_vectors(assembly.plain, shards_dir, spec, out_dir / STEP_ONE / VECTORS)
        list_metrics = probe = None
        with ranks.together():
            if lists is not None and evaluated is None:
                list_metrics = ListMetrics(
                    shards_dir,
                    selection.split,
                    spec,
                    entities,
                    ranks,
                    lists.val_users,
                    train.seed,
                    lists.ease,
                )
            if ranks.first:
                probe = open_probe(shards_dir, assembly.plain)
            refresh = Refresh(contrastive.refresh, spec, assembly.wrapper, shards_dir, ranks)
        with stop_requests() as stop_requested:
            run = Run(
                shards_dir=Path(shards_dir),
                out_dir=out_dir,
                fingerprint=manifest.fingerprint,
                assembly=assembly,
                ranks=ranks,
                rows=rows,
                held_out=held_out,
                selection=selection,
                settings=train,
                evaluated=evaluated,
                schedule=functools.partial(schedule, train, lists=lists),
                list_metrics=list_metrics,
                rated=rated(spec),
                protocol=protocol,
                stop_requested=stop_requested,
                probe=probe,
                refresh=refresh,
                after_epoch=after_epoch,
            )
            run.to_the_end()
            # Too late for this training, but the next stage does not have to begin.
            stopped = any_rank(stop_requested())
        manifest.rows = {"train": rows.rows}
        if held_out is not None:
            manifest.rows[selection.split] = held_out.rows
        manifest.facts = jsonable(
            {
                "epochs": selection.epoch,
                "best_epoch": selection.best_epoch,
                "split": selection.split,
                "rule": selection.rule,
                "best": selection.best,
                "start": run.start,
                "calibration": run.calibration,
                "share": run.share,
                "base_epoch": run.base_epoch,
                "alarms": run.alarms.listed(),
                "ranks": ranks.world_size,
                "device": ranks.device.type,
                "tables": describe_plan(assembly.model),
                "parameters": assembly.parameters,
                "leave_one_out": not spec.in_tables,
                "chosen": chosen,
                "list": run.mix,
                "step_one": first_step,
            }
        )
    if ranks.first:
        manifest.write(out_dir)
    if stopped:
        raise Stopped
    return manifest


def _train_step_one(
    model: ModelConfig,
    settings: TrainConfig,
    protocol: str,
    shards_dir: str | os.PathLike,
    out_dir: Path,
    evaluated: Evaluated | None,
) -> dict[str, Any]:
    """Train V0's first step, unless that is done; what the second one's manifest says of it."""
    alone = step_one(model)
    held = evaluated_step_one(evaluated)
    done = train(alone, NO_TERMS, settings, protocol, shards_dir, out_dir, None, held)
    facts = {name: done.facts[name] for name in ("epochs", "best_epoch", "best")}
    return facts | {"seconds": done.seconds}
