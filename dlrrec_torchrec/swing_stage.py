"""The SWING stage: neighbours of users and of items from the training rows.

Every training row is an interaction regardless of its rating, so no row's rating changes its positives.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

import swing
from dlrrec_torchrec.config import SwingStageConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.schema import SPLIT


def neighbors(config: SwingStageConfig, split_dir: str | Path, out_dir: str | Path) -> Manifest:
    """Write out_dir/{users,items}/part-*.parquet (NEIGHBORS) from split_dir/train.

    Every training id has a row; one without neighbours has empty lists. `min_user_items` bounds the side that
    links, `max_item_users` both sides: no id has more than so many links. Facts for each side: ids,
    coverage (share of ids with a neighbour), neighbours, edges that the limits left, what each limit dropped,
    seconds. Raises DataError for training rows that SWING cannot use and for an unknown preset.
    """
    split = Manifest.read(split_dir)
    body = jsonable(config)
    del body["threads"]  # the result is the same for any number
    chosen = parameters(config)
    manifest = Manifest("swing", body, {"split": split.fingerprint})
    if (previous := manifest.current(out_dir)) is not None:
        return previous
    folder = Path(split_dir) / "train"
    for part in part_files(folder):
        check_schema(pq.read_schema(part), SPLIT, part)
    try:
        with stage_output(manifest, out_dir) as output:
            interactions = swing.read(folder)
            for side in ("users", "items"):
                report = swing.run(interactions, output / side, chosen, side, threads=config.threads)
                manifest.rows[side] = report["ids"]
                manifest.facts[side] = {
                    "ids": report["ids"],
                    "coverage": report["coverage"],
                    "neighbors": report["neighbors"],
                    "edges": report["limits"]["edges_left"],
                    "dropped": {k: v for k, v in report["limits"].items() if k != "edges_left"},
                    "seconds": report["seconds"]["score_and_write"],
                }
    except swing.SwingError as error:
        raise DataError(f"swing: {error}") from None
    return manifest


def parameters(config: SwingStageConfig) -> swing.SwingConfig:
    """SWING's own parameters. Raises DataError for settings that it refuses."""
    check_settings(config)
    try:
        return swing.preset(
            config.preset,
            similarity=config.similarity,
            alpha=config.alpha,
            top_k=config.top_k,
            min_user_items=config.min_user_items,
            sample_user_items=config.max_item_users,
            max_item_users=config.max_item_users,
            seed=config.seed,
        )
    except swing.SwingError as error:
        raise DataError(f"swing: {error}") from None
