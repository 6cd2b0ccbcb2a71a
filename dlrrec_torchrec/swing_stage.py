"""The SWING stage: neighbours of users and of items from the training rows.

Every training row is an interaction regardless of its rating, so no row's rating changes its positives. With
`swing.pairs: liked` only rows with label 1 are: then a row's label decides whether it shapes its positives.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

import swing
from dlrrec_torchrec.config import SwingStageConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import check_schema, part_files, read_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.schema import SPLIT
from swing.interactions import Interactions


def neighbors(config: SwingStageConfig, split_dir: str | Path, out_dir: str | Path) -> Manifest:
    """Write out_dir/{users,items}/part-*.parquet (NEIGHBORS) from split_dir/train.

    Every id of a row that counts (`pairs`) has a row; one without neighbours has empty lists.
    `min_user_items` bounds the side that links, `max_item_users` both sides: no id has more than so many
    links. Facts for each side: ids, coverage (share of ids with a neighbour), neighbours, edges that the
    limits left, what each limit dropped, seconds. Raises DataError for training rows that SWING cannot use
    and for an unknown preset.
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
            interactions = _interactions(folder, config.pairs == "liked")
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


def _interactions(folder: Path, liked: bool) -> Interactions:
    """The training rows, or those with label 1. Raises DataError where there are none of these."""
    if not liked:
        return swing.read(folder)
    rows = read_table(folder, SPLIT, ["user_id", "item_id", "label"])
    rows = rows.filter(pc.greater(rows["label"], 0.5)).select(["user_id", "item_id"])
    if not rows.num_rows:
        raise DataError(f"{folder}: column 'label': no row is liked; run `dlrrec swing --pairs all`")
    with tempfile.TemporaryDirectory() as scratch:
        pq.write_table(rows, Path(scratch) / "liked.parquet")
        return swing.read(Path(scratch) / "liked.parquet")


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


def item_similarities(
    users: np.ndarray, items: np.ndarray, n_items: int, similarity: str, top_k: int
) -> sparse.csr_matrix:
    """Similarities of items by the users they share, f32 CSR [n_items, n_items]; row i holds the best of i.

    Args:
        users, items: integer codes [N] of the interactions; items below `n_items`.
        similarity: as `swing.similarity` of the settings, with the preset "dlrrec"; by SWING, users of one
            item link nothing and do not count, by the others they do.
        top_k: similarities kept of each item.

    Without any two items that a user has in common the matrix is empty.
    """
    least = 2 if similarity == "swing" else 1
    chosen = swing.preset("dlrrec", similarity=similarity, top_k=max(top_k, 1), min_user_items=least)
    empty = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    if not len(users) or np.bincount(users).max() < 2:
        return empty
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.parquet"
        table = {"user_id": pa.array(users, pa.int64()), "item_id": pa.array(items, pa.int64())}
        pq.write_table(pa.table(table), path)
        lists = swing.similar(path, chosen).to_arrow()
    neighbors, scores = (lists[name].combine_chunks() for name in ("neighbors", "scores"))
    lengths = neighbors.value_lengths().to_numpy()
    rows = np.repeat(lists["id"].to_numpy(), lengths)
    values = scores.flatten().to_numpy()
    return sparse.csr_matrix((values, (rows, neighbors.flatten().to_numpy())), (n_items, n_items))
