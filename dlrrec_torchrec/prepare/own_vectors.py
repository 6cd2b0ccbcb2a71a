"""Vectors that the user already has: from a file of ids and vectors to a matrix in code order.

They know no review, so a training row leaves nothing of them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrrec_torchrec.features.left_out import CHUNK_ROWS
from dlrrec_torchrec.prepare.vocabulary import encode
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.mapped import mapped_zeros
from dlrrec_torchrec.store.modality import BUILT_IN, Modality, modality

FLAG = "--vectors"
_COLUMNS = ("user_positives", "item_positives")  # of the shards, beside the modalities
_DEFAULTS = {".parquet": ("id", "vector"), ".npz": ("ids", "vectors")}  # columns, arrays
_EXAMPLE = "item_audio=FILE.parquet:ID,VECTOR, item_audio=FILE.npz:IDS,VECTORS or item_audio=FILE.npy:IDS.txt"


@dataclasses.dataclass(frozen=True)
class VectorFile:
    """The file with the vectors of one modality.

    Attributes:
        name: of the modality.
        path: of the file.
        ids, vectors: columns of Parquet or arrays of .npz; of .npy, ids is the file of the ids.
    """

    name: str
    path: Path
    ids: str
    vectors: str = ""

    @property
    def files(self) -> list[Path]:
        """All that is read."""
        return [self.path, Path(self.ids)] if self.path.suffix == ".npy" else [self.path]

    def __str__(self) -> str:
        return f"{FLAG} {self.name}: {self.path}"


def vector_files(settings: Mapping[str, str]) -> list[VectorFile]:
    """What `prepare.vectors` names (name -> "FILE:ID,VECTOR").

    Raises DataError for a name that cannot be one or is taken, a form that is not known, or a missing file.
    """
    files = []
    for name, text in settings.items():
        modality(name, 1, flag=FLAG)
        if name in BUILT_IN or name in _COLUMNS:
            owner = "vectors that `dlrrec extract` makes" if name in BUILT_IN else "a column of the shards"
            raise DataError(f"{FLAG} {name}: is the name of {owner}; choose another one, as {name}_own")
        files.append(_vector_file(name, str(text)))
        for path in files[-1].files:
            if not path.is_file():
                raise DataError(f"{FLAG} {name}={text}: there is no file {path}")
    return files


def _vector_file(name: str, text: str) -> VectorFile:
    path, colon, columns = (text, "", "") if Path(text).is_file() else text.rpartition(":")
    if not colon:
        path, columns = text, ""
    kind = Path(path).suffix
    if kind == ".npy":
        if not columns:
            raise DataError(
                f"{FLAG} {name}={text}: a matrix needs its ids: write {path}:IDS.txt, one id a line"
            )
        return VectorFile(name, Path(path), columns)
    if kind not in _DEFAULTS:
        raise DataError(f"{FLAG} {name}={text}: neither Parquet, .npz nor .npy; write {_EXAMPLE}")
    parts = [part.strip() for part in columns.split(",")] if columns else list(_DEFAULTS[kind])
    if len(parts) != 2 or not all(parts):
        raise DataError(
            f"{FLAG} {name}={text}: '{columns}' must name two: the ids and the vectors, as ID,VECTOR"
        )
    return VectorFile(name, Path(path), *parts)


def read_vector_file(
    file: VectorFile, ids: Mapping[str, pa.Array], scratch: Path
) -> tuple[Modality, np.ndarray]:
    """The modality of a file, and its vectors in code order, float16 [E, V] on disk at `scratch`.

    Vectors are brought to unit length, as the extracted ones are, so numbers of any size fit into float16.
    Entities that the file does not know, or whose vector is null, have zeros. Ids of the file that no
    training row has are skipped.

    Args:
        ids: "user", "item" -> the entities in code order.

    Raises:
        DataError: naming file, column and row, for ids that are null, come twice or are all unknown, and for
            vectors of several lengths or with a number that is not finite.
    """
    keys, chunks, dim = _open(file)
    described = modality(file.name, dim, encoder=file.path.name, flag=FLAG)
    codes = _codes(file, keys, ids[described.side], described.side)
    some = False
    vectors = mapped_zeros(scratch, np.float16, (len(ids[described.side]), dim))
    for rows, values in chunks:
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(rows[np.argmin(finite)])
            raise DataError(f"{file}: column '{file.vectors or 'vectors'}', row {row}: not a finite number")
        known = codes[rows] >= 0
        vectors[codes[rows][known]] = _unit(values[known])
        some |= bool(values[known].any())
    if not some:
        raise DataError(f"{file}: all vectors of the training rows' {described.side}s are missing or zeros")
    return described, vectors


def _open(file: VectorFile) -> tuple[pa.Array, Iterator[tuple[np.ndarray, np.ndarray]], int]:
    """The ids (strings), chunks of (rows i64 [n], numbers [n, V]), and V."""
    if file.path.suffix == ".parquet":
        return _open_parquet(file)
    try:
        if file.path.suffix == ".npz":
            with np.load(file.path) as arrays:
                for name in (file.ids, file.vectors):
                    if name not in arrays:
                        raise DataError(
                            f"{file}: there is no array '{name}' (there is: {', '.join(arrays)}); "
                            f"write {file.path}:IDS,VECTORS"
                        )
                keys, matrix = arrays[file.ids], arrays[file.vectors]
        else:
            keys, matrix = _listed_ids(Path(file.ids)), np.load(file.path, mmap_mode="r")
    except (ValueError, OSError) as error:  # arrays of objects, which only pickle reads, among others
        raise DataError(f"{file}: not readable without pickle as an array of numbers ({error})") from None
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise DataError(
            f"{file}: {matrix.dtype} numbers of shape {matrix.shape}; a matrix [ids, numbers] is needed"
        )
    if keys.ndim != 1 or len(keys) != len(matrix):
        raise DataError(f"{file}: {keys.size} ids for {len(matrix)} vectors; there must be one for each")
    if keys.dtype.kind not in "USiu":
        raise DataError(f"{file}: ids of type {keys.dtype}; they must be text or integers")
    chunks = (
        (np.arange(k, min(k + CHUNK_ROWS, len(matrix))), matrix[k : k + CHUNK_ROWS])
        for k in range(0, len(matrix), CHUNK_ROWS)
    )
    return pa.array(keys.astype(str), pa.string()), chunks, matrix.shape[1]


def _listed_ids(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    return np.array(path.read_text(encoding="utf-8-sig").rstrip().splitlines(), dtype=str)


def _open_parquet(file: VectorFile) -> tuple[pa.Array, Iterator[tuple[np.ndarray, np.ndarray]], int]:
    try:
        parquet = pq.ParquetFile(file.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error})") from None
    schema = parquet.schema_arrow
    for name in (file.ids, file.vectors):
        if name not in schema.names:
            raise DataError(
                f"{file}: there is no column '{name}' (there is: {', '.join(schema.names)}); "
                f"write {file.path}:ID,VECTOR"
            )
    kind = schema.field(file.ids).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{file}: column '{file.ids}' has type {kind}; ids must be text or integers")
    kind = schema.field(file.vectors).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"{file}: column '{file.vectors}' has type {kind}; it must hold lists of numbers")
    keys = parquet.read([file.ids])[file.ids].combine_chunks().cast(pa.string())
    if keys.null_count:
        row = pc.index(keys.is_null(), True).as_py()
        raise DataError(f"{file}: column '{file.ids}', row {row}: no id")
    dim = _width(file, parquet)

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for batch in parquet.iter_batches(CHUNK_ROWS, columns=[file.vectors]):
            column = batch.column(0)
            rows = start + np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            lengths = pc.list_value_length(column.drop_null()).to_numpy()
            if (lengths != dim).any():
                at = int(np.argmax(lengths != dim))
                raise DataError(
                    f"{file}: column '{file.vectors}', row {rows[at]}: {lengths[at]} numbers, where the rows "
                    f"before have {dim}; all vectors must be of one length"
                )
            numbers = pc.list_flatten(column.drop_null())
            if numbers.null_count:
                at = pc.index(numbers.is_null(), True).as_py() // dim
                raise DataError(f"{file}: column '{file.vectors}', row {rows[at]}: a number is missing")
            yield rows, numbers.to_numpy(zero_copy_only=False).reshape(-1, dim)
            start += len(column)

    return keys, chunks(), dim


def _width(file: VectorFile, parquet: pq.ParquetFile) -> int:
    """How long the first vector is."""
    for batch in parquet.iter_batches(CHUNK_ROWS, columns=[file.vectors]):
        if len(column := batch.column(0).drop_null()):
            return pc.list_value_length(column)[0].as_py()
    raise DataError(f"{file}: column '{file.vectors}' holds no vector")


def _codes(file: VectorFile, keys: pa.Array, ids: pa.Array, side: str) -> np.ndarray:
    """The codes of the file's ids, int32; -1 where no training row has one."""
    distinct, first = np.unique(keys.dictionary_encode().indices.to_numpy(), return_index=True)
    if len(distinct) < len(keys):
        row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
        raise DataError(f"{file}: id '{keys[row]}' comes twice, the second time in row {row}")
    codes = encode(keys, ids)
    if not (codes >= 0).any():
        theirs, ours = (", ".join(names.slice(0, 3).to_pylist()) or "none" for names in (keys, ids))
        raise DataError(
            f"{file}: no id is one of the training rows' {side}s (the file has {theirs}; the rows {ours}); "
            "write FILE:ID,VECTOR with the column whose ids are those of the reviews"
        )
    return codes


def _unit(values: np.ndarray) -> np.ndarray:
    """Rows f64 [n, V] at length 1, as float16; a row of zeros, which counts as missing, stays one."""
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)  # first, so that no square overflows
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, norm, out=scaled, where=norm > 0).astype(np.float16)
