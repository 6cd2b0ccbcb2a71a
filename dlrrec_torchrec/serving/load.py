"""A trained model, ready to predict in one process."""

from __future__ import annotations

import os
from pathlib import Path

from dlrrec_torchrec.config import ListConfig, ModelConfig, from_dict
from dlrrec_torchrec.distributed.quiet import quiet
from dlrrec_torchrec.distributed.ranks import resolve_device
from dlrrec_torchrec.models.build import build_model
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.spec import batch_spec
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.sharding.fill import fill_content
from dlrrec_torchrec.store.checkpoint_files import BEST
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.shard_facts import ShardFacts


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
    settings = from_dict(ModelConfig, trained.config["model"], str(train_dir))
    lists = trained.config.get("list") and from_dict(ListConfig, trained.config["list"], str(train_dir))
    spec = batch_spec(settings, ShardFacts.of(shards, shards_dir))
    model = build_model(settings, spec, device="cpu", lists=lists)
    with quiet():
        load_model(Path(train_dir) / "checkpoints" / BEST, model, prefix="model.")
    fill_content(model, shards_dir)
    return model.to(resolve_device(device)).eval()
