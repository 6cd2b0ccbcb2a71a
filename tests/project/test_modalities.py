"""Modalities are data: whole runs with a vector of one's own and with a wider text encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.serving.load import load_trained
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.modality import Modality
from dlrrec_torchrec.store.paths import RunPaths
from dlrrec_torchrec.store.schema import ENTITY, REVIEWS
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.encoders import random_encoder

# Both ways of the vectors, in one run; one epoch says that they train.
VARIANTS = "variants={rows: {}, tables: {model: {vectors: table}}}"
TRAIN = ["train.epochs=1", "train.batch_size=128", "contrastive.num_negatives=32"]


def copy_of(run: Path, folder: Path) -> RunPaths:
    """The run up to `swing`, to go on from in another folder."""
    for name in ("reviews", "split", "content", "swing", "cache"):
        shutil.copytree(run / name, folder / name)
    return RunPaths(folder, folder)


def dlrrec(*words: str) -> None:
    assert cli.main(list(words)) == 0, words


def trained_and_served(paths: RunPaths, capsys, *settings: str) -> dict[str, dict]:
    """Train, evaluate and recommend by both variants; what is recommended."""
    common = ["--run-dir", str(paths.root), "--set", VARIANTS, *TRAIN, *settings]
    dlrrec("train", *common)
    dlrrec("evaluate", *common)
    metrics = json.loads((paths.evaluation / "metrics.json").read_text())
    assert all(0 < metrics["models"][name]["auc"] < 1 for name in ("rows", "tables"))
    user = read_table(paths.shards / "entities" / "users", ENTITY, ["id"])["id"][0].as_py()
    shown = {}
    for name in ("rows", "tables"):
        capsys.readouterr()
        dlrrec("recommend", *common, "--user", user, "-n", "3", "--json", "--variant", name)
        shown[name] = json.loads(capsys.readouterr().out)
        assert len(shown[name]["items"]) == 3
        assert all(0 < item["probability"] < 1 for item in shown[name]["items"])
    return shown


def test_a_run_with_vectors_of_ones_own(tiny_run, tmp_path, capsys):
    """128 numbers of each item's sound out of a file, whose columns have their own names."""
    paths = copy_of(tiny_run[0], tmp_path)
    ids = sorted({*read_table(paths.reviews, REVIEWS, ["item_id"])["item_id"].to_pylist()})
    sounds = np.random.default_rng(0).normal(size=(len(ids), 128)).astype(np.float32)
    table = {"track": ids, "embedding": pa.FixedSizeListArray.from_arrays(sounds.reshape(-1), 128)}
    pq.write_table(pa.table(table), tmp_path / "audio.parquet")
    flag = f"item_audio={tmp_path}/audio.parquet:track,embedding"
    dlrrec("prepare", "--run-dir", str(tmp_path), "--vectors", flag)
    facts = ShardFacts.read(paths.shards)
    assert f"{facts.items} items with item_audio" in capsys.readouterr().out
    assert [(m.name, m.dim) for m in facts.modalities] == [
        ("user_text", 384),
        ("item_text", 384),
        ("item_image", 384),
        ("item_audio", 128),
    ]
    trained_and_served(paths, capsys, "model.towers.item_audio=48,32")
    for name in ("rows", "tables"):
        towers = load_trained(paths.train(name), paths.shards).dense_arch.towers
        matrices = [matrix.shape for matrix in towers["item_audio"].layers.parameters() if matrix.ndim > 1]
        assert matrices == [(48, 128), (32, 48)]
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--run-dir", str(tmp_path), "--vectors", "item_audio"])


def test_a_run_with_a_wider_text_encoder(tiny_run, tmp_path, capsys):
    """BERT of 768 numbers a vector, of random weights; the cache of the narrower one is not taken for its."""
    paths = copy_of(tiny_run[0], tmp_path)
    random_encoder(tmp_path / "bert")
    common = ["--run-dir", str(tmp_path), "--set", "extract.summary_sentences=1"]
    dlrrec("extract", *common, "--encoder", str(tmp_path / "bert"))
    dlrrec("prepare", *common)
    facts = ShardFacts.read(paths.shards)
    encoder = str(tmp_path / "bert")
    assert facts.modalities[0] == Modality("user_text", "user", "text", "reviews", 768, encoder)
    assert [m.dim for m in facts.modalities] == [768, 768, 768]
    trained_and_served(paths, capsys)
    towers = load_trained(paths.train("rows"), paths.shards).dense_arch.towers
    assert next(towers["item_text"].layers.parameters()).shape == (32, 768)  # linear: the data are few
