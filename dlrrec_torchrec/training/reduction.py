"""V0's two steps (MMREC, Tian et al. 2024, section 4.3): the towers first, alone, and then the DLRM on them.

Step one is a training like any other, in the folder `step-one` of the training that it is part of, with
settings of its own: `models.mmrec.Reduction` on the same rows, with the same rules. The reduced vectors of
its best epoch are what step two sees of the content; they are also written down, as `vectors/`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlrrec_torchrec.config import ContrastiveConfig, ModelConfig
from dlrrec_torchrec.data.batch_spec import BatchSpec
from dlrrec_torchrec.data.loader import make_loader
from dlrrec_torchrec.models.build import build_model
from dlrrec_torchrec.models.calibration import Calibration
from dlrrec_torchrec.models.dlrrec import DLRREC
from dlrrec_torchrec.models.weights import load_model
from dlrrec_torchrec.store.checkpoint_files import BEST
from dlrrec_torchrec.store.files import parquet_options
from dlrrec_torchrec.store.folders import atomic_folder
from dlrrec_torchrec.store.schema import SPLITS
from dlrrec_torchrec.training.selection import Evaluated

STEP_ONE = "step-one"
VECTORS = "vectors"
NO_TERMS = ContrastiveConfig(item_weight=0.0, user_weight=0.0)
_ROWS = 4096  # reduced at once


def step_one(model: ModelConfig) -> ModelConfig:
    """The settings of step one: those of `model` that concern its towers, all others as they are by default
    or off."""
    kept = ("modalities", "joined", "towers", "text_tower", "image_tower", "other_tower")
    kept += ("tower_norm", "tower_dropout")
    off = {"category": False, "user_id": False, "item_id": False, "wide": False, "residual": []}
    off |= {"over_arch": [1], "interaction": "pairwise", "dropout": 0.0}
    return ModelConfig(reduction="alone", **off, **{name: getattr(model, name) for name in kept})


def evaluated_step_one(evaluated: Evaluated | None) -> Evaluated | None:
    """What a step one on all rows takes over from that of the training that was evaluated."""
    if evaluated is None:
        return None
    return dataclasses.replace(
        evaluated,
        epochs=evaluated.step_one_epochs,
        start=None,
        calibration=Calibration(),
        share=1.0,
        base_epoch=0,
        mix=None,
    )


def load_towers(model: DLRREC, settings: ModelConfig, spec: BatchSpec, folder: str | os.PathLike) -> None:
    """Give `model` the towers of the best epoch of the finished step one in `folder`, of these settings.

    Raises DataError for a damaged checkpoint.
    """
    reduction = build_model(settings, spec)
    load_model(Path(folder) / "checkpoints" / BEST, reduction, prefix="model.")
    model.dense_arch.towers.load_state_dict(reduction.dense_arch.towers.state_dict())


@torch.no_grad()
def write_vectors(
    model: DLRREC, shards_dir: str | os.PathLike, spec: BatchSpec, out_dir: str | os.PathLike
) -> None:
    """Write what the towers make of every row, `out_dir`/{train,val,test}/part-00000.parquet.

    A row has `user`, `item` (i32 codes) and, for each modality of the model, its reduced vector f32[R], null
    where the row has none. The rows are in the shards' order. A folder that is there is left as it is.
    """
    if Path(out_dir).exists():
        return
    device, training = next(model.parameters()).device, model.training
    model.eval()
    sizes = {m.name: model.dense_arch.towers[m.name].layers[-1].out_features for m in spec.modalities}
    fields = [pa.field("user", pa.int32()), pa.field("item", pa.int32())]
    fields += [pa.field(name, pa.list_(pa.float32(), size)) for name, size in sizes.items()]
    schema = pa.schema(fields)
    with atomic_folder(out_dir, VECTORS) as folder:
        for split in (name for name in SPLITS if (Path(shards_dir) / name).exists()):
            (folder / split).mkdir()
            path = folder / split / "part-00000.parquet"
            with pq.ParquetWriter(path, schema, **parquet_options(schema)) as writer:
                for batch in make_loader(shards_dir, split, _ROWS, spec.to_predict()):
                    reduced = model.reduce(batch.to(device).vectors)
                    columns = [batch.user.numpy(), batch.item.numpy()]
                    columns = [pa.array(column, pa.int32()) for column in columns]
                    columns += [_vectors(reduced[name].float().cpu().numpy()) for name in sizes]
                    writer.write_table(pa.table(columns, schema=schema))
    model.train(training)


def _vectors(rows: np.ndarray) -> pa.FixedSizeListArray:
    """f32 [N, R] as a column; rows of zeros are missing."""
    missing = pa.array(~rows.any(axis=1))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1], mask=missing)
