"""A source of reviews -> the review table and, where it has metadata, the item table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import IngestConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.ingest.facts import ItemFacts, ReviewFacts
from dlrrec_torchrec.ingest.source_files import Source
from dlrrec_torchrec.ingest.sources.json_sources import amazon, google, yelp
from dlrrec_torchrec.ingest.sources.movielens import movielens
from dlrrec_torchrec.ingest.sources.table import table
from dlrrec_torchrec.ingest.validate import REJECTED, ItemCheck, ReviewCheck, Tally, collect
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.folders import check_output, remove_own
from dlrrec_torchrec.store.manifest import Manifest, file_digest, jsonable, stage_output
from dlrrec_torchrec.store.progress import Bar
from dlrrec_torchrec.store.schema import ITEMS, REVIEWS

__all__ = ["ingest"]


def ingest(config: IngestConfig, reviews_dir: str | Path, items_dir: str | Path) -> Manifest:
    """Read the source into `reviews_dir` (REVIEWS) and its metadata, if any, into `items_dir` (ITEMS).

    Both folders get part-*.parquet, `rejected.jsonl` (each bad row with its file, line and reason) and the
    manifest, with counts of rows by reason, users, items and ratings. The items are written first; an
    `items_dir` of an earlier run is removed where this source has none.

    Raises:
        DataError: a file or column is missing or of the wrong form, no row is usable, or more than
            `config.max_rejected` of the rows are bad; the rejected rows are then kept beside the folder as
            `<folder>.rejected.jsonl`. A folder that holds what this stage did not write, or a source in one
            of the two folders: nothing is changed.
    """
    reviews_dir, items_dir = Path(reviews_dir), Path(items_dir)
    check_output(reviews_dir, "ingest")
    check_output(items_dir, "ingest-items")
    source = _open(config)
    for path in [file for files in source.files.values() for file in files] if source else []:
        for folder in (reviews_dir, items_dir):
            if path.resolve().is_relative_to(folder.resolve()):
                raise DataError(
                    f"{path}: lies in {folder}, which this stage replaces; move the file, or give another "
                    "--run-dir"
                )
    inputs = {name: file_digest(files) for name, files in source.files.items()} if source else {}
    manifest = Manifest("ingest", jsonable(config), inputs)
    items_manifest = Manifest("ingest-items", jsonable(config), inputs)
    has_items = source is None or source.items is not None
    previous = manifest.current(reviews_dir)
    if previous and (items_manifest.current(items_dir) if has_items else not items_dir.exists()):
        return previous
    with stage_output(manifest, reviews_dir) as folder:
        if source is None:
            write_synthetic(config.size, config.seed, folder, items_dir, manifest, items_manifest)
            return manifest
        with Bar(transient=True) as progress:
            if source.items:
                with stage_output(items_manifest, items_dir) as items_folder:
                    check, facts = ItemCheck(), ItemFacts()
                    tally = collect(source.items(progress), check, facts, items_folder)
                    _conclude(items_manifest, "items", tally, check, facts.facts())
                    _judge(source.files["items"], tally, check, config.max_rejected, items_folder, items_dir)
            check, facts = ReviewCheck(), ReviewFacts()
            tally = collect(source.reviews(progress), check, facts, folder)
            _conclude(manifest, "reviews", tally, check, facts.facts())
            files = source.files["reviews"] + source.files.get("test", [])
            _judge(files, tally, check, config.max_rejected, folder, reviews_dir)
    if not has_items:
        remove_own(items_dir, items_manifest.stage)
    return manifest


def _open(config: IngestConfig) -> Source | None:
    """The source that the settings name; None for the synthetic world, which reads nothing."""
    check_settings(config)
    if config.source == "synthetic":
        return None
    if config.source == "table":
        return table(config.reviews, config.items, config.test, config.columns, config.item_columns)
    openers = {"google": google, "amazon": amazon, "yelp": yelp, "movielens": movielens}
    return openers[config.source](config.reviews, config.items, config.test)


def write_synthetic(
    size: str | tuple[int, int, int],
    seed: int,
    folder: Path,
    items_dir: Path,
    manifest: Manifest,
    items_manifest: Manifest,
) -> None:
    """Write the synthetic world, and what both manifests say of it; its pictures and true probabilities are
    in `folder`, that of the reviews."""
    from dlrrec_torchrec.ingest.synthetic.write import write_world

    reviews, items, world = write_world(size, seed, folder)
    with stage_output(items_manifest, items_dir) as items_folder:
        items_manifest.rows = {"items": write_table(items.select(ITEMS.names).cast(ITEMS), items_folder)}
        facts = ItemFacts()
        facts.add(items)
        items_manifest.facts = facts.facts()
    facts = ReviewFacts()
    facts.add(reviews)
    manifest.rows = {"reviews": write_table(reviews.select(REVIEWS.names).cast(REVIEWS), folder)}
    manifest.facts = facts.facts() | world


def _conclude(
    manifest: Manifest, name: str, tally: Tally, check: ReviewCheck | ItemCheck, facts: dict[str, Any]
) -> None:
    manifest.rows = {name: tally.accepted, "rejected": tally.rejected}
    manifest.facts = {
        "read": tally.read,
        "accepted": tally.accepted,
        "rejected": dict(tally.reasons.most_common()),
        "blank": tally.blank,
        **{f"{column}_unread": unread.failed for column, unread in check.unread.items()},
        **facts,
    }


def _judge(
    files: list[Path],
    tally: Tally,
    check: ReviewCheck | ItemCheck,
    max_rejected: float,
    folder: Path,
    target: Path,
) -> None:
    """Raise DataError if nothing or too little of the source is usable, and keep the rejected rows."""
    rejected_copy = target.with_name(f"{target.name}.{REJECTED}")
    rejected_copy.unlink(missing_ok=True)
    where = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if not tally.read:
        raise DataError(f"{where}: no rows in it")
    # a repeated item is common in published metadata and harmless: its first row is kept
    bad = tally.rejected - (tally.reasons[check.duplicate] if isinstance(check, ItemCheck) else 0)
    if not tally.accepted or bad / tally.read > max_rejected:
        shutil.copyfile(folder / REJECTED, rejected_copy)
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in tally.reasons.most_common())
        problem = f"more than --max-rejected {max_rejected:g} allows" if tally.accepted else "none is usable"
        raise DataError(
            f"{where}: {bad:,} of {tally.read:,} rows ({bad / tally.read:.1%}) are bad, {problem}: "
            f"{reasons}. Each is listed with its line in {rejected_copy}; correct the file or how it is "
            "read, or allow more with --max-rejected"
        )
    for column, unread in check.unread.items():
        # published price columns have remains of web pages; times decide which rows are trained on
        allowed = max_rejected if column == "time" else 0.5
        if unread.failed > allowed * unread.given:
            raise DataError(
                f"{where}: {unread.failed:,} of {unread.given:,} values of the {column} cannot be read, "
                f"such as {unread.example!r}; expected {unread.forms}: correct them or leave that column out"
            )
