"""The features of every shipped configuration pass the leak detector, and the old statistics do not.

All stages up to the shards are the configuration's. The vectors are means of random vectors of words: the
audit looks at the dense columns, and a sentence encoder would take most of the time. Where the world has the
papers' size, the small one stands in for it; of MovieLens a quarter of the users is enough.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from dlrrec_torchrec.config import load_config
from dlrrec_torchrec.experiments.leakage import Finding, audit_shards
from dlrrec_torchrec.extract import stage as extracting
from dlrrec_torchrec.stages import run
from dlrrec_torchrec.store.paths import run_paths

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BEFORE_SHARDS = ("protocol", "ingest", "split", "extract", "swing", "prepare")
DIM = 384


class Words:
    """Unit means of one random vector a word."""

    identity, dim = "words", DIM

    def __init__(self, *_, **__):
        self._table = np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float32)

    def encode_batches(self, texts):
        for place, text in enumerate(texts):
            codes = [zlib.crc32(word.encode()) % len(self._table) for word in text.lower().split() or [""]]
            mean = self._table[codes].mean(0)
            yield np.asarray([place]), (mean / np.linalg.norm(mean))[None]


@pytest.fixture(scope="module")
def finding_of(tmp_path_factory):
    """What the audit finds in a configuration's shards; skips where its data are missing.

    Files that differ in their models alone are one case.
    """
    found = {}

    def find(path: Path, changes: dict | None = None) -> Finding:
        folder = tmp_path_factory.mktemp(path.stem)
        config = load_config(path, own_files(path.stem, folder) | {"seeds": 1} | (changes or {}))
        key = repr([getattr(config, section) for section in BEFORE_SHARDS])
        if key not in found:
            run(config, folder, until="prepare", say=lambda line: None)
            found[key] = audit_shards(run_paths(folder)[0].shards, draws=1)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extracting, "SentenceEncoder", Words)
        yield find


def own_files(name: str, folder: Path) -> dict:
    """The settings that name a configuration's files, or make its world small."""
    if name == "movielens-100k":
        source = needed(DATA / "movielens-100k")
        parts = {"ingest.reviews": "u1.base", "ingest.test": "u1.test"}
        for part in parts.values():
            lines = (source / part).read_text().splitlines(keepends=True)
            (folder / part).write_text("".join(line for line in lines if int(line.split("\t")[0]) % 4 == 0))
        files = {setting: str(folder / part) for setting, part in parts.items()}
        return files | {"ingest.items": str(source / "u.item")}
    if name == "zomato":
        source = needed(DATA / "zomato")
        files = {"reviews": "reviews.csv", "items": "restaurants.csv"}
        return {f"ingest.{setting}": str(source / file) for setting, file in files.items()}
    return {"ingest.size": "small"}


def needed(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_training_rows_do_not_tell_their_labels(path, finding_of):
    finding = finding_of(path)
    assert not finding.leaks, finding
    assert finding.rows > 2000 and finding.outside_auc > 0.53, "or there is nothing to tell"


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem in ("demo", "synthetic-paper")], ids=lambda p: p.stem
)
def test_leaving_out_only_the_own_row_is_found(path, finding_of):
    finding = finding_of(path, {"prepare.statistics": "row", "prepare.affinity": False})
    assert finding.leaks and finding.low > 0.05, finding
