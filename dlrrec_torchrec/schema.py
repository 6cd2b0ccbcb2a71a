"""The columns of every table that passes between stages, the manifest each stage leaves, and atomic writes.

Every stage reads folders of Parquet and writes a folder of Parquet with a `manifest.json`. A folder appears
under its final name only when it is complete, so a killed stage leaves nothing that could be taken for whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dlrrec_torchrec import packed

SCHEMA_VERSION = 2
VECTOR_DIM = 384
NUM_CATEGORIES = 179  # types; the embedding table has one row more, for the padding
PAD_CATEGORY = 179
CATEGORY_SLOTS = 11
PRICE_TAGS = ("none", "cheap", "fair", "overpriced")
MODALITIES = ("user_text", "item_text", "item_image")
SPLITS = ("train", "val", "test")

_str_list = pa.list_(pa.string())
_vector16 = pa.list_(pa.float16(), VECTOR_DIM)

REVIEWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),
        ("text", pa.string()),  # null: a rating without words
        ("timestamp", pa.int64()),  # seconds since 1970, null: unknown
        ("images", _str_list),  # paths or links, null: none
        ("captions", _str_list),  # one for each image where the source has them, else null
        ("split", pa.string()),  # "train" or "test" where the source publishes a split, else null
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("categories", _str_list),
        ("price", pa.float32()),  # in the source's own unit
        ("images", _str_list),
        ("captions", _str_list),
    ]
)
SPLIT = pa.schema([*REVIEWS, ("label", pa.float32())])  # label = 1 if rating >= positive_rating else 0

# Content of an entity as one provider saw it. fold = -1: from all its training reviews; fold = k: from all
# its training reviews except those of fold k (cross-fitting: what a training row of fold k may see).
USER_CONTENT = pa.schema(
    [
        ("id", pa.string()),
        ("fold", pa.int16()),
        ("summary", pa.string()),
        ("text_vector", _vector16),  # of the summary; null: no words
    ]
)
ITEM_CONTENT = pa.schema(
    [
        *USER_CONTENT,
        ("image_vector", _vector16),  # mean over captions; null: no picture
        ("price_tag", pa.string()),  # one of PRICE_TAGS
        ("categories", _str_list),  # at most CATEGORY_SLOTS, best first
    ]
)
# One row per training review: its own vectors (for exact leave-one-out by subtraction) and its folds.
REVIEW_CONTENT = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("user_fold", pa.int16()),
        ("item_fold", pa.int16()),
        ("text_vector", _vector16),  # null: no words
        ("image_vector", _vector16),  # mean over its captions; null: no picture
    ]
)
# One row per training item whose own metadata has words or captions; no review of it is counted here.
METADATA_CONTENT = pa.schema(
    [
        ("id", pa.string()),
        ("text_vector", _vector16),  # null: no words
        ("image_vector", _vector16),  # mean over its captions; null: no picture
    ]
)
NEIGHBORS = pa.schema([("id", pa.string()), ("neighbors", _str_list), ("scores", pa.list_(pa.float32()))])


def shard_schema(dense: int, modalities: Iterable[str], positives: int) -> pa.Schema:
    """The columns of a training shard; no value is null, and fixed-size lists are stored packed (`packed`).

    Args:
        dense: dense features.
        modalities: whose vectors are in the rows.
        positives: neighbours kept of the user and of the item.
    """
    single = {"label": pa.float32(), "rating": pa.float32(), "user": pa.int32(), "item": pa.int32()}
    lists = {
        "dense": pa.list_(pa.float32(), dense),
        "category": pa.list_(pa.int32(), CATEGORY_SLOTS),  # padded with PAD_CATEGORY
    }
    if positives:
        codes = pa.list_(pa.int32(), positives)  # best first, padded with -1
        lists |= {"user_positives": codes, "item_positives": codes}
    lists |= {m: _vector16 for m in modalities}  # zeros where the entity has none
    return pa.schema([pa.field(n, kind, nullable=False) for n, kind in (single | lists).items()])


# Entity tables: row i is code i. What serving needs to build a row for any user and item.
USER_ENTITY = pa.schema(
    [
        ("code", pa.int32()),
        ("id", pa.string()),
        ("count", pa.int32()),  # training reviews
        ("mean_rating", pa.float32()),  # of its training reviews, smoothed as the rows' are
        ("user_text", _vector16),
        ("positives", pa.list_(pa.int32())),
    ]
)
ITEM_ENTITY = pa.schema(
    [
        ("code", pa.int32()),
        ("id", pa.string()),
        ("title", pa.string()),
        ("count", pa.int32()),
        ("mean_rating", pa.float32()),
        ("price_tag", pa.string()),
        ("category", pa.list_(pa.int32(), CATEGORY_SLOTS)),
        ("item_text", _vector16),
        ("item_image", _vector16),
        ("positives", pa.list_(pa.int32())),
    ]
)


def category_types() -> list[str]:
    """The 179 restaurant types that offline extraction and the synthetic world share, in code order."""
    return (Path(__file__).parent / "categories.txt").read_text(encoding="utf-8").split("\n")[:NUM_CATEGORIES]


class DataError(Exception):
    """Input that cannot be used. The message names the file, column, row or flag, and the way out."""


def check_schema(found: pa.Schema, wanted: pa.Schema, where: str | os.PathLike) -> None:
    """Raise DataError naming the file and the first column that is missing or of another type."""
    for field in wanted:
        index = found.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{where}: column '{field.name}' is missing (found: {', '.join(found.names)})")
        if not _same_type(found.field(index).type, field.type):
            raise DataError(
                f"{where}: column '{field.name}' has type {found.field(index).type}, wanted {field.type}; "
                "run the stage that writes this folder again"
            )


def _same_type(a: pa.DataType, b: pa.DataType) -> bool:
    """Equal up to string/large_string and list/large_list, which writers choose freely."""
    if pa.types.is_string(b):
        return pa.types.is_string(a) or pa.types.is_large_string(a) or pa.types.is_string_view(a)
    if pa.types.is_fixed_size_list(b):
        return pa.types.is_fixed_size_list(a) and a.list_size == b.list_size and a.value_type == b.value_type
    if pa.types.is_list(b):
        return (pa.types.is_list(a) or pa.types.is_large_list(a)) and _same_type(a.value_type, b.value_type)
    return a == b


def part_files(folder: str | os.PathLike) -> list[Path]:
    """The folder's Parquet parts in order. Raises DataError if there is none."""
    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise DataError(f"{folder}: no part-*.parquet here; run the stage that writes this folder first")
    return parts


def read_table(
    folder: str | os.PathLike, schema: pa.Schema, columns: list[str] | None = None, rows: int | None = None
) -> pa.Table:
    """All (or the first `rows`) rows of a folder of parts, checked against `schema` (or `columns` of it), in
    its types.
    """
    parts = part_files(folder)
    wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
    stored = packed.stored_schema(wanted)
    for part in parts:
        check_schema(pq.read_schema(part), stored, part)
    if rows is None:
        table = pads.dataset(parts).to_table(columns=wanted.names)
    else:
        table = _first_rows(parts, stored, rows)
    return packed.unpack(table.cast(stored)).cast(wanted)


def _first_rows(parts: list[Path], stored: pa.Schema, rows: int) -> pa.Table:
    """Read on, in this thread, until there are `rows` rows: what reads ahead would go on after that."""
    batches: list[pa.RecordBatch] = []
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(rows, columns=stored.names, use_threads=False):
                batches.append(batch)
                if sum(b.num_rows for b in batches) >= rows:
                    return pa.Table.from_batches(batches).slice(0, rows)
    return pa.Table.from_batches(batches, None if batches else stored)


def write_table(
    table: pa.Table, folder: str | os.PathLike, rows_per_part: int = 1 << 20, first: int = 0
) -> int:
    """Write `table` as part-00000.parquet (or `first`), ... into `folder`; at least one, even when empty."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = packed.pack(table)
    for number, start in enumerate(range(0, max(table.num_rows, 1), rows_per_part), first):
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(stored.slice(start, rows_per_part), path, **parquet_options(stored.schema))
    return table.num_rows


def parquet_options(stored: pa.Schema) -> dict[str, Any]:
    """How a table is written: rows of shards, which are read in every epoch, for speed, others for size.

    Vectors never repeat, so they have no dictionaries. What was measured: docs/benchmarks.md.
    """
    rows = any(map(packed.is_packed, stored))
    return {
        "compression": "lz4" if rows else "zstd",
        "use_dictionary": [
            f.name for f in stored if not pa.types.is_nested(f.type) and not packed.is_packed(f)
        ],
        "write_statistics": not rows,
    }


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that takes its place when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in [*target.parent.glob(f".{target.name}.tmp-*"), *target.parent.glob(f".{target.name}.old-*")]:
        shutil.rmtree(stale, ignore_errors=True)
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        old = target.parent / f".{target.name}.old-{os.getpid()}"
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@dataclasses.dataclass
class Manifest:
    """What a stage did. `fingerprint` names its output: equal fingerprints mean equal inputs and settings."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]  # input name -> fingerprint or content hash
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the stage reports
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    schema_version: int = SCHEMA_VERSION
    reused: bool = False  # set by `current`, never written

    @property
    def fingerprint(self) -> str:
        return digest([self.stage, self.schema_version, self.config, self.inputs])

    def write(self, folder: str | os.PathLike) -> None:
        body = jsonable(self) | {"fingerprint": self.fingerprint}
        del body["reused"]
        write_text_atomic(Path(folder) / "manifest.json", json.dumps(body, indent=2, default=str) + "\n")

    def current(self, folder: str | os.PathLike) -> Manifest | None:
        """The manifest in `folder` if that folder already holds the output of this very stage, else None."""
        if not (Path(folder) / "manifest.json").exists():
            return None
        found = Manifest.read(folder)
        found.reused = True
        return found if found.fingerprint == self.fingerprint else None

    @staticmethod
    def read(folder: str | os.PathLike) -> Manifest:
        path = Path(folder) / "manifest.json"
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{path}: not there; run the stage that writes '{Path(folder).name}' first "
                "(`dlrrec run` runs all in order)"
            ) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: not valid JSON ({error}); delete the folder and run its stage"
            ) from None
        names = {f.name for f in dataclasses.fields(Manifest)}
        return Manifest(**{k: v for k, v in body.items() if k in names})


@contextlib.contextmanager
def timed(manifest: Manifest) -> Iterator[None]:
    """Fill in the manifest's seconds and the peak memory (MiB) of the block."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak anew for each stage
    start = time.monotonic()
    yield
    manifest.seconds = round(time.monotonic() - start, 3)
    manifest.peak_memory_mib = _peak_memory_mib()


def _peak_memory_mib() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


@contextlib.contextmanager
def stage_output(manifest: Manifest, target: str | os.PathLike) -> Iterator[Path]:
    """The frame of a stage: a temporary folder to write to, timing, the manifest, then the final name."""
    with atomic_folder(target) as folder:
        with timed(manifest):
            yield folder
        manifest.write(folder)


def digest(value: Any) -> str:
    """A short hash of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def file_digest(paths: Iterable[str | os.PathLike]) -> str:
    """A hash over the contents of files (and their names)."""
    total = hashlib.blake2b(digest_size=12)
    for path in sorted(map(Path, paths)):
        total.update(path.name.encode())
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def jsonable(value: Any) -> Any:
    """Dataclasses, paths and mappings as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value
