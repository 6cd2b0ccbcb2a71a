"""Reading small sources in the tests of `ingest`."""

import json
from pathlib import Path

from dlrrec_torchrec.config import IngestConfig
from dlrrec_torchrec.ingest.stage import ingest
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.schema import ITEMS, REVIEWS


def read(tmp_path, **settings):
    """Ingest into `tmp_path`/out; returns the manifest and both tables as lists of dicts."""
    settings = {"max_rejected": 1.0} | {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    reviews, items = tmp_path / "out" / "reviews", tmp_path / "out" / "items"
    manifest = ingest(IngestConfig(**settings), reviews, items)
    table = read_table(reviews, REVIEWS).to_pylist()
    return manifest, table, read_table(items, ITEMS).to_pylist() if items.exists() else None


def lines(path, rows):
    """Write rows as JSON lines; strings as they are."""
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def rejected(tmp_path, name="reviews"):
    return [json.loads(line) for line in open(tmp_path / "out" / name / "rejected.jsonl", encoding="utf-8")]


def review(user, item, rating, text=None, time=None, images=None, captions=None, split=None):
    values = (user, item, rating, text, time, images, captions, split)
    return dict(zip(REVIEWS.names, values, strict=True))
