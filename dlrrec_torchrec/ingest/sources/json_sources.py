"""Readers of the data sets that are published as JSON: Google restaurants, Amazon reviews, Yelp."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from dlrrec_torchrec.ingest.source_files import (
    KeyCheck,
    Record,
    Source,
    Stream,
    find_files,
    json_records,
    read_lines,
    with_split,
)
from dlrrec_torchrec.store.errors import DataError

_WRONG_FORM = "Is --source right? For other forms use --source table with --columns."
_JSON = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz")
_YELP_REVIEWS = ("*review.json", "*review.json.gz", "*review.jsonl")
_YELP_BUSINESSES = ("*business.json", "*business.json.gz", "*business.jsonl")
_YELP_PHOTOS = ("photos.json", "photos.json.gz", "*photo.json")


def google(reviews: str, items: str, test: str) -> Source:
    """Google restaurants (Yan et al., SIGIR 2023): one object with the lists train, val, test, or one list.

    Records are `{"business_id", "user_id", "rating", "review_text", "pics", "history_reviews"}`; `pics`
    become images; the history is ignored, since it repeats reviews. The published lists go into the column
    `split` (val counts as train). A file is one JSON value, so all of it is in memory while it is read.
    In a folder, `filter_all_t.json` is read, or else `image_review_all.json`.
    """
    if items:
        raise DataError(f"--items {items}: the Google form has no item metadata; leave --items out")
    names = (("filter_all_t.json*",), ("image_review_all.json*",))
    files = {"reviews": find_files(reviews, "--reviews", names, (test,))}
    if test:
        files["test"] = find_files(test, "--test", names)

    def streams(progress: Progress) -> Iterator[Stream]:
        for path, split in with_split(files):
            body = _json_value(path, progress)
            lists = {"": body} if isinstance(body, list) else {}
            if isinstance(body, dict):
                lists = {key: body[key] for key in ("train", "val", "test") if key in body}
            if not lists or not all(isinstance(rows, list) for rows in lists.values()):
                raise DataError(
                    f"{path}: not of the Google form: expected one JSON object with the lists train, val "
                    "and test, or one list of reviews"
                )
            del body
            check = KeyCheck(str(path), [("user_id",), ("business_id",), ("rating",)], advice=_WRONG_FORM)
            for key, rows in lists.items():
                part = split or ({"train": "train", "val": "train", "test": "test"}[key] if key else None)
                name = f"{path.name}:{key}" if key else path.name
                yield Stream(name, _google_records(rows, check), "record", part)
            check.finish()

    return Source(files, streams)


def _json_value(path: Path, progress: Progress) -> Any:
    try:
        with open(path, "rb") as head:
            packed = head.read(2) == b"\x1f\x8b"
        with progress.open(path, "rb", description=f"reading {path.name}") as raw:
            return json.load(gzip.GzipFile(fileobj=raw) if packed else raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not of the Google form: not one JSON value ({error})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _google_records(rows: list[Any], check: KeyCheck) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            yield Record(number, row, None, "not a JSON object")
            continue
        check.see(row)
        fields = {
            "user": row.get("user_id"),
            "item": row.get("business_id"),
            "rating": row.get("rating"),
            "text": row.get("review_text"),
            "images": row.get("pics"),
        }
        yield Record(number, {k: v for k, v in row.items() if k != "history_reviews"}, fields)


def amazon(reviews: str, items: str, test: str) -> Source:
    """Amazon reviews of 2014, 2018 (McAuley et al.) and 2023 (Hou et al.), one object a line, also gzipped.

    The year follows from the keys: `reviewerID/asin/overall/reviewText/unixReviewTime` (2014, and 2018 with
    `image`) or `user_id/parent_asin/rating/text/images/timestamp` (2023, in milliseconds). Lines that are
    Python dictionaries, as the metadata of 2014, are read as well. In a folder, `meta_*` is the metadata.
    """
    files = {"reviews": find_files(reviews, "--reviews", (_JSON,), (items, test))}
    if Path(reviews).expanduser().is_dir():
        beside = [f for f in files["reviews"] if f.name.startswith("meta_")]
        files["reviews"] = [f for f in files["reviews"] if f not in beside]
        if not files["reviews"]:
            raise DataError(f"--reviews {reviews}: this folder holds metadata (meta_*) but no reviews")
        if beside and not items:
            files["items"] = beside
    if items:
        files["items"] = find_files(items, "--items", (tuple(f"meta_{p}" for p in _JSON), _JSON))
    if test:
        files["test"] = find_files(test, "--test", (_JSON,))
    user_keys, item_keys = ("reviewerID", "user_id"), ("asin", "parent_asin")

    def review_streams(progress: Progress) -> Iterator[Stream]:
        for path, split in with_split(files):
            required = (user_keys, item_keys, ("overall", "rating"))
            records = json_records(
                path, progress, _amazon_review, required, advice=_WRONG_FORM, literals=True
            )
            yield Stream(path.name, records, split=split)

    def item_streams(progress: Progress) -> Iterator[Stream]:
        for path in files["items"]:
            records = json_records(
                path, progress, _amazon_item, (item_keys,), advice=_WRONG_FORM, literals=True
            )
            yield Stream(path.name, records)

    return Source(files, review_streams, item_streams if "items" in files else None)


def _amazon_review(row: dict[str, Any]) -> dict[str, Any]:
    get = row.get
    return {
        "user": get("reviewerID", get("user_id")),
        "item": get("parent_asin") or get("asin"),
        "rating": get("overall", get("rating")),
        "text": get("reviewText", get("text")),
        "time": get("unixReviewTime", get("timestamp")),
        "images": get("images", get("image")),
    }


def _amazon_item(row: dict[str, Any]) -> dict[str, Any]:
    get = row.get
    images = get("imageURLHighRes") or get("imageURL") or get("images") or get("image") or get("imUrl")
    return {
        "item": get("parent_asin") or get("asin"),
        "title": get("title"),
        "text": [get("description"), get("features", get("feature"))],
        "categories": get("categories") or get("category") or get("main_category") or get("main_cat"),
        "price": get("price"),
        "images": [images] if isinstance(images, str) and images else images,
    }


def yelp(reviews: str, items: str, test: str) -> Source:
    """The Yelp Open Dataset: `yelp_academic_dataset_review.json` and, beside it, `..._business.json`.

    A business' categories are a comma-separated string, its price is RestaurantsPriceRange2 (1 to 4), and its
    pictures and captions come from `photos.json` if that is beside it (pictures in `photos/`).
    """
    files = {"reviews": find_files(reviews, "--reviews", (_YELP_REVIEWS,), (items, test))}
    if test:
        files["test"] = find_files(test, "--test", (_YELP_REVIEWS,))
    if items:
        files["items"] = find_files(items, "--items", (_YELP_BUSINESSES,))
    else:
        files["items"] = _beside(files["reviews"][0], _YELP_BUSINESSES)
    if not files["items"]:
        del files["items"]
    photos = _beside(files["items"][0], _YELP_PHOTOS) if "items" in files else []
    if photos:
        files["photos"] = photos

    def review_streams(progress: Progress) -> Iterator[Stream]:
        for path, split in with_split(files):
            required = (("user_id",), ("business_id",), ("stars",))
            records = json_records(path, progress, _yelp_review, required, advice=_WRONG_FORM)
            yield Stream(path.name, records, split=split)

    def item_streams(progress: Progress) -> Iterator[Stream]:
        pictures: dict[str, tuple[list[str], list[str]]] = {}
        for path in photos:
            _yelp_pictures(path, progress, pictures)

        def fields(row: dict[str, Any]) -> dict[str, Any]:
            attributes = row.get("attributes")
            images, captions = pictures.get(str(row.get("business_id")), (None, None))
            return {
                "item": row.get("business_id"),
                "title": row.get("name"),
                "categories": row.get("categories"),
                "price": attributes.get("RestaurantsPriceRange2") if isinstance(attributes, dict) else None,
                "images": images,
                "captions": captions,
            }

        for path in files["items"]:
            records = json_records(path, progress, fields, (("business_id",),), advice=_WRONG_FORM)
            yield Stream(path.name, records)

    return Source(files, review_streams, item_streams if "items" in files else None)


def _yelp_review(row: dict[str, Any]) -> dict[str, Any]:
    get = row.get
    return {
        "user": get("user_id"),
        "item": get("business_id"),
        "rating": get("stars"),
        "text": get("text"),
        "time": get("date"),
    }


def _yelp_pictures(path: Path, progress: Progress, pictures: dict[str, tuple[list[str], list[str]]]) -> None:
    """Add each business' picture paths and captions, in the file's order."""
    for number, line in enumerate(read_lines(path, progress), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
            photo, business, caption = row["photo_id"], row["business_id"], row.get("caption") or ""
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{path}: line {number} has no photo_id and business_id") from None
        images, captions = pictures.setdefault(str(business), ([], []))
        images.append(str(path.parent / "photos" / f"{photo}.jpg"))
        captions.append(str(caption))


def _beside(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The first file of one of these names in the folder of `path`, if any."""
    candidates = (f for pattern in patterns for f in sorted(path.parent.glob(pattern)))
    return [f for f in [next(candidates, None)] if f]
