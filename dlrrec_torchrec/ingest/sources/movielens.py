"""Reader of MovieLens 100k (tabs, `u.item` with pipes) and 1M (`::`) (Harper & Konstan, TiiS 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress

from dlrrec_torchrec.ingest.source_files import (
    BLANK,
    Record,
    Source,
    Stream,
    find_files,
    read_lines,
    with_split,
)
from dlrrec_torchrec.store.errors import DataError

_RATINGS = (("u.data",), ("ratings.dat",))
_MOVIES = (("u.item",), ("movies.dat",))
# the flags at the end of a line of u.item, in order; the first, "unknown", is no genre
_GENRES = (
    "Action,Adventure,Animation,Children's,Comedy,Crime,Documentary,Drama,Fantasy,Film-Noir,Horror,Musical,"
    "Mystery,Romance,Sci-Fi,Thriller,War,Western"
).split(",")


def movielens(reviews: str, items: str, test: str) -> Source:
    """Ratings `user, item, rating, timestamp`; the text is the film's title and genres.

    The films are those of `items`, or of `u.item` or `movies.dat` beside the ratings; without them the
    ratings have no text. Ids are numbered from 1: a row with another id is bad.
    """
    files = {"reviews": find_files(reviews, "--reviews", _RATINGS, (items, test))}
    if test:
        files["test"] = find_files(test, "--test", _RATINGS)
    if items:
        files["items"] = find_files(items, "--items", _MOVIES)
    else:
        beside = (files["reviews"][0].parent / name for group in _MOVIES for name in group)
        if films := next((path for path in beside if path.is_file()), None):
            files["items"] = [films]

    def item_streams(progress: Progress) -> Iterator[Stream]:
        for path in files["items"]:
            yield Stream(path.name, _films(path, progress))

    def review_streams(progress: Progress) -> Iterator[Stream]:
        texts: dict[str, str] = {}
        if "items" in files:
            for stream in item_streams(progress):
                texts.update((r.fields["item"], r.fields["text"]) for r in stream.records if r.fields)
        for path, split in with_split(files):
            yield Stream(path.name, _ratings(path, progress, texts), split=split)

    return Source(files, review_streams, item_streams if "items" in files else None)


def _rows(path: Path, progress: Progress, marks: tuple[str, ...], width: int) -> Iterator[Record]:
    """Lines of Latin-1 split at the mark of the first line; `fields`: the cells by position."""
    mark = None
    for number, line in enumerate(read_lines(path, progress), 1):
        text = line.decode("latin-1").rstrip("\r\n")
        if not text.strip():
            yield Record(number, None, None, BLANK)
            continue
        if mark is None:
            mark = next((m for m in marks if len(text.split(m)) >= width), None)
            if mark is None:
                raise DataError(
                    f"{path}: line {number} is not of the MovieLens 100k or 1M form; for a file with named "
                    "columns (MovieLens 20M and later) use --source table with --columns"
                )
        cells = text.split(mark)
        if len(cells) < width:
            yield Record(number, text, None, "wrong number of fields")
        elif not all(cell.isdecimal() and int(cell) for cell in cells[: 2 if width == 4 else 1]):
            yield Record(number, text, None, "id is not a number from 1")
        else:
            yield Record(number, text, dict(enumerate(cells)))


def _ratings(path: Path, progress: Progress, texts: dict[str, str]) -> Iterator[Record]:
    for record in _rows(path, progress, ("\t", "::"), 4):
        if record.fields:
            user, item, rating, time = (record.fields[k] for k in range(4))
            fields = {"user": user, "item": item, "rating": rating, "time": time, "text": texts.get(item)}
            record = record._replace(fields=fields)
        yield record


def _films(path: Path, progress: Progress) -> Iterator[Record]:
    for record in _rows(path, progress, ("::", "|"), 3):
        if record.fields:
            cells = list(record.fields.values())
            if len(cells) == 3:
                genres = cells[2].split("|")
            else:
                genres = [g for g, flag in zip(_GENRES, cells[-len(_GENRES) :], strict=False) if flag == "1"]
            item, title = cells[:2]
            text = f"{title}. {', '.join(genres)}" if genres else title
            fields = {"item": item, "title": title, "text": text, "categories": genres}
            record = record._replace(fields=fields)
        yield record
