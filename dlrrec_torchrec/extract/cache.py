"""Vectors of texts on disk, looked up by content.

A cache folder holds segments: Parquet files of keys and half-precision vectors, each written under a
temporary name and renamed, so an interrupted run leaves complete segments and loses seconds of work. The
key of a text is a hash of the text and of the encoder's identity: one folder serves several encoders, of any
numbers of columns.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dlrrec_torchrec.extract.encoder import Encoder
from dlrrec_torchrec.store.progress import Bar

_KEY_BYTES = 16
_NUMBER_BYTES = 2  # half precision
_SEGMENT_ROWS = 16384
_SEGMENT_SECONDS = 15.0  # most work that a killed run loses


def embed_cached(
    texts: list[str], encoder: Encoder, folder: str | os.PathLike, segment_rows: int = _SEGMENT_ROWS
) -> tuple[np.ndarray, int]:
    """The unit vectors of distinct `texts`, f16 [N, V], and how many of them the encoder had to compute.

    Known texts are read from `folder`; the others are embedded with a progress bar on stderr and written at
    once. Vectors are rounded to half precision before use, so a second run sees the same numbers.
    Where all texts are known, the encoder is not even asked for its `dim`, which may load a model.
    """
    folder = Path(folder)
    keys = _text_keys(texts, encoder.identity)
    segments = _read_known(keys, folder)
    widths = {stored.shape[1] for _, stored in segments}
    covered = len(np.unique(np.concatenate([[], *(rows for rows, _ in segments)]))) == len(texts)
    dim = widths.pop() if covered and len(widths) == 1 else encoder.dim
    vectors, known = np.zeros((len(texts), dim), np.float16), np.zeros(len(texts), bool)
    for rows, stored in segments:
        if stored.shape[1] == dim:  # others are of an encoder with this identity and another width
            vectors[rows], known[rows] = stored, True
    missing = np.flatnonzero(~known)
    if len(missing):
        folder.mkdir(parents=True, exist_ok=True)
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
            for batch, batch_vectors in encoder.encode_batches([texts[i] for i in missing]):
                rows = missing[batch]
                vectors[rows] = batch_vectors
                waiting.append(rows)
                finished += len(rows)
                now = time.monotonic()
                progress.update(
                    bar, completed=finished, rate=f"{finished / (now - started + 1e-9):,.0f} texts/s"
                )
                if sum(map(len, waiting)) >= segment_rows or now - last_write > _SEGMENT_SECONDS:
                    write()
                    last_write = now
        finally:  # an interruption keeps the finished vectors
            if waiting:
                write()


def _text_keys(texts: list[str], identity: str) -> pa.Array:
    """One key a text, fixed_size_binary[16]."""
    seed = hashlib.blake2b(identity.encode(), digest_size=32).digest()
    raw = b"".join(
        hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES, key=seed).digest()
        for t in texts
    )
    return _binary(raw, _KEY_BYTES)


def _binary(raw: bytes | np.ndarray, width: int) -> pa.Array:
    buffer = pa.py_buffer(raw)
    return pa.Array.from_buffers(pa.binary(width), buffer.size // width, [None, buffer])


def _read_known(keys: pa.Array, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each segment that has some of the keys: which they are, i64 [n], and their vectors f16 [n, V]."""
    segments = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            if segment := _read_segment(path, keys):
                segments.append(segment)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            warnings.warn(
                f"{path}: this part of the cache cannot be read and is ignored; its texts are embedded again "
                f"(delete the file to end this warning): {error}",
                stacklevel=3,
            )
    return segments


def _read_segment(path: Path, keys: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        place = pc.index_in(file.read(["key"])["key"].combine_chunks(), value_set=keys)
        if place.null_count == len(place):
            return None  # no vector of these texts: leave them on disk
        stored = file.read(["vector"])["vector"].combine_chunks()
    if not pa.types.is_fixed_size_binary(stored.type) or stored.type.byte_width % _NUMBER_BYTES:
        raise ValueError(f"vectors have type {stored.type}")
    here = np.flatnonzero(np.asarray(place.is_valid()))
    size = stored.type.byte_width
    body = np.frombuffer(stored.buffers()[1], np.uint8)[stored.offset * size :][: len(stored) * size]
    vectors = body.view(np.float16).reshape(-1, size // _NUMBER_BYTES)[here]
    return place.take(pa.array(here)).to_numpy(), vectors


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
