"""Vectors of texts on disk, looked up by content.

A cache folder holds segments: Parquet files of keys and half-precision vectors, each written under a
temporary name and renamed, so an interrupted run leaves complete segments and loses seconds of work. The
key of a text is a hash of the text and of the encoder's identity: one folder serves several encoders, of any
numbers of columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dlrrec_torchrec.extract.encoder import Encoder
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.mapped import mapped_zeros
from dlrrec_torchrec.store.packed import all_finite, matrix
from dlrrec_torchrec.store.progress import Bar

_KEY_BYTES = 16
_NUMBER_BYTES = 2  # half precision
_SEGMENT_ROWS = 16384
_AT_ONCE = 1 << 18  # texts that are given to the encoder at a time
_SEGMENT_SECONDS = 15.0  # most work that a killed run loses


def embed_cached(
    texts: Sequence[str],
    encoder: Encoder,
    folder: str | os.PathLike,
    segment_rows: int = _SEGMENT_ROWS,
    out: str | os.PathLike | None = None,
) -> tuple[np.ndarray, int]:
    """The unit vectors of distinct `texts`, f16 [N, V], and how many of them the encoder had to compute.

    Known texts are read from `folder`; the others are embedded with a progress bar on stderr and written at
    once. Vectors are rounded to half precision before use, so a second run sees the same numbers.
    Where all texts are known, the encoder is not even asked for its `dim`, which may load a model.

    In memory are 16 bytes of each text and of each that the folder holds, and the vectors; these are in the
    file `out` instead, if it is given.
    """
    folder = Path(folder)
    keys = _text_keys(texts, encoder.identity)
    segments = _find_known(keys, folder)
    widths = {segment.dim for segment in segments}
    covered = np.zeros(len(texts), bool)
    for segment in segments:
        covered[segment.rows] = True
    dim = widths.pop() if covered.all() and len(widths) == 1 else encoder.dim
    known = np.zeros(len(texts), bool)
    shape = len(texts), dim
    vectors = np.zeros(shape, np.float16) if out is None else mapped_zeros(out, np.float16, shape)
    for segment in segments:
        if segment.dim != dim:  # of an encoder with this identity and another width
            continue
        with _readable(segment.path):
            vectors[segment.rows], known[segment.rows] = _read_vectors(segment), True
    missing = np.flatnonzero(~known)
    if len(missing):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder}: vectors cannot be kept there ({error.strerror}); it must be a folder that may be "
                "written to: move away what is there"
            ) from None
        _embed_missing(texts, missing, keys, vectors, encoder, folder, segment_rows)
    return vectors, len(missing)


def _embed_missing(texts, missing, keys, vectors, encoder, folder, segment_rows) -> None:
    waiting: list[np.ndarray] = []
    last_write = started = time.monotonic()
    finished = 0

    def write() -> None:
        rows = np.concatenate(waiting)
        _write_segment(folder, keys.take(pa.array(rows)), vectors[rows])
        waiting.clear()

    with _progress() as progress:
        bar = progress.add_task("embedding", total=len(missing), rate="")
        try:
            for start in range(0, len(missing), _AT_ONCE):
                block = missing[start : start + _AT_ONCE]
                for batch, batch_vectors in encoder.encode_batches([texts[i] for i in block]):
                    rows = block[batch]
                    vectors[rows] = batch_vectors
                    waiting.append(rows)
                    finished += len(rows)
                    now = time.monotonic()
                    rate = f"{finished / (now - started + 1e-9):,.0f} texts/s"
                    progress.update(bar, completed=finished, rate=rate)
                    if sum(map(len, waiting)) >= segment_rows or now - last_write > _SEGMENT_SECONDS:
                        write()
                        last_write = now
        finally:  # an interruption keeps the finished vectors
            if waiting:
                write()


def _text_keys(texts: Sequence[str], identity: str) -> pa.Array:
    """One key a text, fixed_size_binary[16]."""
    seed = hashlib.blake2b(identity.encode(), digest_size=32).digest()
    raw = bytearray()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        raw += hashlib.blake2b(data, digest_size=_KEY_BYTES, key=seed).digest()
    return _binary(bytes(raw), _KEY_BYTES)


def _binary(raw: bytes | np.ndarray, width: int) -> pa.Array:
    buffer = pa.py_buffer(raw)
    return pa.Array.from_buffers(pa.binary(width), buffer.size // width, [None, buffer])


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A file with some of the texts."""

    path: Path
    rows: np.ndarray  # i64 [n], which of the texts
    here: np.ndarray  # i64 [n], where in the file each of them is
    dim: int


def _find_known(keys: pa.Array, folder: Path) -> list[_Segment]:
    """The segments that have some of the keys. All their keys are looked up at once: to look up each
    segment's alone would build the same table for each."""
    paths, found, dims = [], [], []
    for path in sorted(folder.glob("*.parquet")):
        with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            kind = file.schema_arrow.field("vector").type
            if not pa.types.is_fixed_size_binary(kind) or kind.byte_width % _NUMBER_BYTES:
                raise ValueError(f"vectors have type {kind}")
            found.append(file.read(["key"])["key"].combine_chunks().cast(pa.binary(_KEY_BYTES)))
            dims.append(kind.byte_width // _NUMBER_BYTES)
            paths.append(path)
    if not found:
        return []
    place = pc.index_in(pa.concat_arrays(found), value_set=keys)
    segments, start = [], 0
    for path, stored, dim in zip(paths, found, dims, strict=True):
        part = place.slice(start, len(stored))
        start += len(stored)
        if part.null_count < len(part):  # else leave its vectors on disk
            here = np.flatnonzero(np.asarray(part.is_valid()))
            segments.append(_Segment(path, part.take(pa.array(here)).to_numpy(), here, dim))
    return segments


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Warn of a segment that cannot be read, and go on without it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        warnings.warn(
            f"{path}: this part of the cache cannot be read and is ignored; its texts are embedded again "
            f"(delete the file to end this warning): {error}",
            stacklevel=5,
        )


def _read_vectors(segment: _Segment) -> np.ndarray:
    """f16 [n, V]. Raises ValueError where some are no vectors."""
    with pq.ParquetFile(segment.path, page_checksum_verification=True) as file:
        stored = file.read(["vector"])["vector"].combine_chunks()
    vectors = matrix(stored, pa.float16())[segment.here]
    if not all_finite(vectors):
        raise ValueError("some vectors have numbers that are not finite")
    return vectors


def _write_segment(folder: Path, keys: pa.Array, vectors: np.ndarray) -> None:
    width = vectors.shape[1] * _NUMBER_BYTES
    table = pa.table({"key": keys, "vector": _binary(np.ascontiguousarray(vectors), width)})
    path = folder / f"{uuid.uuid4().hex}.parquet"
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    pq.write_table(table, temporary, compression="none", use_dictionary=False, write_page_checksum=True)
    os.replace(temporary, path)


def _progress() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
