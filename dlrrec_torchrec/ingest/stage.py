"""A source of reviews -> the review table and, where it has metadata, the item table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dlrrec_torchrec.config import IngestConfig
from dlrrec_torchrec.ingest.facts import ItemFacts, ReviewFacts
from dlrrec_torchrec.ingest.source_files import Source
from dlrrec_torchrec.ingest.sources.json_sources import amazon, google, yelp
from dlrrec_torchrec.ingest.sources.movielens import movielens
from dlrrec_torchrec.ingest.sources.table import table
from dlrrec_torchrec.ingest.validate import REJECTED, ItemCheck, ReviewCheck, Tally, collect
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import write_table
from dlrrec_torchrec.store.manifest import Manifest, file_digest, jsonable, stage_output
from dlrrec_torchrec.store.progress import Bar
from dlrrec_torchrec.store.schema import ITEMS, REVIEWS

__all__ = ["ingest"]


def ingest(config: IngestConfig, reviews_dir: str | Path, items_dir: str | Path) -> Manifest:
    """Read the source into `reviews_dir` (REVIEWS) and its metadata, if any, into `items_dir` (ITEMS).

    Both folders hold part-*.parquet, `rejected.jsonl` (each bad row with its file, line and reason) and the
    manifest, whose facts count rows by reason, users, items and ratings. The items are written first; an
    `items_dir` of an earlier run is removed where this source has none.

    Raises:
        DataError: a file or column is missing or of the wrong form, no row is usable, or more than
            `config.max_rejected` of the rows are bad; the rejected rows are then kept beside the folder as
            `<folder>.rejected.jsonl`.
    """
    reviews_dir, items_dir = Path(reviews_dir), Path(items_dir)
    source = _open(config)
    inputs = {name: file_digest(files) for name, files in source.files.items()} if source else {}
    manifest = Manifest("ingest", jsonable(config), inputs)
    items_manifest = Manifest("ingest-items", jsonable(config), inputs)
    has_items = source is None or source.items is not None
    done = manifest.current(reviews_dir)
    if done and (items_manifest.current(items_dir) if has_items else not items_dir.exists()):
        return done
    with stage_output(manifest, reviews_dir) as folder:
        if source is None:
            _write_world(config.size, config.seed, folder, items_dir, manifest, items_manifest)
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
        shutil.rmtree(items_dir, ignore_errors=True)
    return manifest


def _open(config: IngestConfig) -> Source | None:
    """The source that the settings name; None for the synthetic world, which reads nothing."""
    if config.source != "table" and (config.columns or config.item_columns):
        raise DataError(f"--columns and --item-columns are for --source table, not '{config.source}'")
    if config.source == "synthetic":
        for name in ("reviews", "items", "test"):
            if given := getattr(config, name):
                raise DataError(
                    f"--{name} {given}: the synthetic world reads no file; name the file's form with --source"
                )
        return None
    if config.source == "table":
        return table(config.reviews, config.items, config.test, config.columns, config.item_columns)
    openers = {"google": google, "amazon": amazon, "yelp": yelp, "movielens": movielens}
    if config.source not in openers:
        raise DataError(f"--source: '{config.source}' is not one of synthetic, table, {', '.join(openers)}")
    return openers[config.source](config.reviews, config.items, config.test)


def _write_world(
    size: str, seed: int, folder: Path, items_dir: Path, manifest: Manifest, items_manifest: Manifest
) -> None:
    """The synthetic world; its pictures and true probabilities lie in the folder of the reviews."""
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
    """Raise DataError if nothing or too little of the source is usable, keeping the rejected rows."""
    kept = target.with_name(f"{target.name}.{REJECTED}")
    kept.unlink(missing_ok=True)
    where = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if not tally.read:
        raise DataError(f"{where}: no rows in it")
    # a repeated item is common in published metadata and harmless: its first row is kept
    bad = tally.rejected - (tally.reasons[check.duplicate] if isinstance(check, ItemCheck) else 0)
    if not tally.accepted or bad / tally.read > max_rejected:
        shutil.copyfile(folder / REJECTED, kept)
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in tally.reasons.most_common())
        problem = f"more than --max-rejected {max_rejected:g} allows" if tally.accepted else "none is usable"
        raise DataError(
            f"{where}: {bad:,} of {tally.read:,} rows ({bad / tally.read:.1%}) are bad, {problem}: "
            f"{reasons}. Each is listed with its place in {kept}; correct the file or how it is read, "
            "or allow more with --max-rejected"
        )
    for column, unread in check.unread.items():
        # published price columns hold remains of web pages; times decide what is trained on
        allowed = max_rejected if column == "time" else 0.5
        if unread.failed > allowed * unread.given:
            raise DataError(
                f"{where}: {unread.failed:,} of {unread.given:,} values of the {column} cannot be read, "
                f"such as {unread.example!r}; wanted {unread.forms}: correct them or leave that column out"
            )
