"""Stage `train`: shards -> a trained model. One path for one process and for N ranks.

`dlrrec train` in one process needs no launcher, and `breakpoint()` works; `torchrun --nproc_per_node N -m
dlrrec_torchrec train` runs the same function on N ranks, on the same global batches. Everything random
follows from the seed and the number of the epoch or step, so that a training that was killed goes on from its
last checkpoint as the same run.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dlrrec_torchrec import checkpoint, schema
from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig, TrainConfig, from_dict
from dlrrec_torchrec.data.entities import load_entities
from dlrrec_torchrec.data.loader import ShardLoader, make_loader
from dlrrec_torchrec.history import History
from dlrrec_torchrec.metrics import json_safe
from dlrrec_torchrec.models.build import build_model, build_wrapper, sparse_keys
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.losses import class_weights
from dlrrec_torchrec.optimizers import make_optimizer
from dlrrec_torchrec.parallel import Ranks, describe_plan, process_group, resolve_device, shard
from dlrrec_torchrec.quiet import quiet
from dlrrec_torchrec.schema import DataError, Manifest
from dlrrec_torchrec.selection import Selection, selection_for
from dlrrec_torchrec.trainer import Trainer


def train(
    model: ModelConfig,
    contrastive: ContrastiveConfig,
    train: TrainConfig,
    protocol: str,
    shards_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
) -> Manifest:
    """Train a model on `shards_dir`/train and keep its best epoch.

    `out_dir` gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `best.json` (epoch, metrics, protocol,
    split, rule) and at the end `manifest.json`. If it holds an interrupted training with these settings, that
    one goes on. To be called on every rank where there is a launcher.

    Raises:
        DataError: shards that cannot be used (file, column, row), settings that do not fit (flag), a loss
            that is not a number.
    """
    shards = Manifest.read(shards_dir)
    settings = schema.jsonable({"model": model, "contrastive": contrastive, "train": train})
    for name in ("workers", "resume"):  # these do not change the result
        del settings["train"][name]
    inputs = {"shards": shards.fingerprint}
    manifest = Manifest("train", settings | {"protocol": protocol}, inputs)
    if done := manifest.current(out_dir):
        return done

    out_dir, facts = Path(out_dir), shards.facts
    with quiet(), process_group(train.device) as ranks, schema.timed(manifest):
        share = _share_of_batch(train.batch_size, ranks)
        table_lr = train.lr if train.table_lr is None else train.table_lr
        selection = selection_for(protocol, train.select, train.patience)
        loading = {
            "modalities": model.modalities,
            "sparse_keys": sparse_keys(model),
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "workers": train.workers,
            "pin_memory": ranks.device.type == "cuda",
        }
        rows = make_loader(
            shards_dir,
            "train",
            share,
            positives=facts["positives"],
            seed=train.seed,
            shuffle=True,
            **loading,
        )
        held_out = make_loader(shards_dir, selection.split, share, positives=0, **loading)
        _check(rows, held_out, selection.split, shards_dir, ranks)

        torch.manual_seed(train.seed)
        plain = build_model(
            model,
            dense_width=facts["dense_width"],
            num_users=facts["users"],
            num_items=facts["items"],
            device="meta",
        )
        labels = facts["label_counts"]
        wrapper = build_wrapper(
            plain,
            contrastive,
            corpus={m: torch.from_numpy(v) for m, v in load_entities(shards_dir).vectors.items()},
            class_weights=class_weights(train.class_weights, labels["negative"], labels["positive"]),
            seed=train.seed,
        )
        sharded = shard(
            wrapper,
            ranks,
            batch_size=share,
            table_optimizer=train.table_optimizer,
            table_lr=table_lr,
            seed=train.seed,
        )
        optimizer = make_optimizer(sharded, train.lr, train.weight_decay)

        _clear_unless_resumed(out_dir, manifest.fingerprint, train.resume, ranks)
        if state := checkpoint.load_latest(out_dir / "checkpoints", sharded, optimizer, ranks):
            selection.restore(state["selection"])
        done_steps, total = selection.epoch * len(rows), train.epochs * len(rows)
        with (
            _progress(ranks.rank == 0) as bar,
            History(out_dir, selection.epoch, done_steps, ranks.rank == 0) as history,
        ):
            task = bar.add_task("training", total=total, completed=done_steps)
            trainer = Trainer(
                sharded,
                optimizer,
                ranks,
                lr=train.lr,
                table_lr=table_lr,
                schedule=train.schedule,
                warmup_steps=train.warmup_steps,
                total_steps=total,
                seed=train.seed,
                advance=lambda: bar.advance(task),
            )
            while selection.epoch < train.epochs and not selection.stop:
                record, steps = trainer.run_epoch(rows, selection.epoch + 1)
                metrics = trainer.evaluate(held_out)
                best = selection.update(record["epoch"], metrics)
                history.add(record | metrics | {"split": selection.split, "best": best}, steps)
                if best and ranks.rank == 0:
                    _write_best(out_dir, protocol, selection)
                state = {"run": manifest.fingerprint, "step": record["step"], "epoch": record["epoch"]}
                state |= {"selection": json_safe(selection.state())}
                checkpoint.save(out_dir / "checkpoints", sharded, optimizer, state, best, ranks)
                shown = f"epoch {record['epoch']}: {selection.split} AUC {metrics['auc']:.4f}"
                bar.update(task, description=shown)
        manifest.rows = {"train": rows.rows, selection.split: held_out.rows}
        manifest.facts = json_safe(
            {
                "epochs": selection.epoch,
                "best_epoch": selection.best_epoch,
                "split": selection.split,
                "best": selection.best,
                "ranks": ranks.world_size,
                "device": ranks.device.type,
                "tables": describe_plan(sharded),
            }
        )
    if ranks.rank == 0:
        manifest.write(out_dir)
    return manifest


def load_trained(train_dir: str | os.PathLike, shards_dir: str | os.PathLike, device: str = "cpu") -> DLRREC:
    """The best epoch's model, unsharded on one device, in eval mode; needs no launcher and no process group.

    Args:
        train_dir: of a finished training.
        shards_dir: the shards it was trained on.
        device: "cpu", "cuda" or "auto".

    Raises:
        DataError: a training that is not finished, or was made on other shards; a damaged checkpoint.
    """
    trained, shards = Manifest.read(train_dir), Manifest.read(shards_dir)
    if trained.inputs.get("shards") != shards.fingerprint:
        raise DataError(f"{train_dir}: not trained on {shards_dir}; run `dlrrec train` again")
    model = build_model(
        from_dict(ModelConfig, trained.config["model"], str(train_dir)),
        dense_width=shards.facts["dense_width"],
        num_users=shards.facts["users"],
        num_items=shards.facts["items"],
        device="cpu",
    )
    with quiet():
        checkpoint.load_model(Path(train_dir) / "checkpoints" / checkpoint.BEST, model, prefix="model.")
    return model.to(resolve_device(device)).eval()


def _share_of_batch(batch_size: int, ranks: Ranks) -> int:
    """Rows of a step on each rank."""
    if batch_size % ranks.world_size or batch_size < 2 * ranks.world_size:
        raise DataError(
            f"train.batch_size: {batch_size} rows of a step cannot be shared by {ranks.world_size} ranks; "
            "take a multiple of the number of ranks, with at least two rows for each"
        )
    return batch_size // ranks.world_size


def _check(
    rows: ShardLoader, held_out: ShardLoader, split: str, shards_dir: str | os.PathLike, ranks: Ranks
) -> None:
    """Refuse shards that would fail in the middle of a training, on all ranks together."""
    error = None
    try:
        rows.check()
        held_out.check()
    except DataError as found:
        error = found
    ranks.agree(error)
    if rows.rows < 2 * ranks.world_size:
        raise DataError(
            f"{Path(shards_dir) / 'train'}: {rows.rows} rows, too few for {ranks.world_size} ranks"
        )
    if not held_out.rows:
        raise DataError(
            f"{Path(shards_dir) / split}: no rows to select the best epoch by; make this split larger"
        )


def _clear_unless_resumed(out_dir: Path, run: str, resume: bool, ranks: Ranks) -> None:
    """Empty `out_dir` unless it holds an interrupted training of this very run that may go on."""
    if ranks.rank == 0:
        state = checkpoint.latest_state(out_dir / "checkpoints")
        if not resume or (state and state["run"] != run) or (out_dir / "manifest.json").exists():
            shutil.rmtree(out_dir, ignore_errors=True)
        out_dir.mkdir(parents=True, exist_ok=True)
    dist.barrier()


def _write_best(out_dir: Path, protocol: str, selection: Selection) -> None:
    best: dict[str, Any] = {"epoch": selection.best_epoch, "metrics": selection.best}
    best |= {"protocol": protocol, "split": selection.split, "rule": selection.rule}
    schema.write_text_atomic(out_dir / "best.json", json.dumps(json_safe(best), indent=2) + "\n")


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
