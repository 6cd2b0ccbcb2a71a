"""Shards some of whose columns know what they must not know: for the experiment that measures leaks alone.

Nothing is computed here. `prepare` works three times on splits that `leaky_splits.recombine` made of one:

    base   training rows are training rows
    own    the training rows stand among the rows to predict, so their features leave nothing out
    all    validation and test rows stand among the training rows, and all rows among those to predict

and every row takes its columns from the one of the three that knows what the leak lets it know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.experiments.eight_leaks import KEY, Known
from dlrrec_torchrec.features.dense import DENSE_FEATURES
from dlrrec_torchrec.prepare.shard_writer import write_parts
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.manifest import Manifest, jsonable, stage_output
from dlrrec_torchrec.store.packed import lists
from dlrrec_torchrec.store.schema import SPLITS
from dlrrec_torchrec.store.shard_facts import ShardFacts

# Parts of the split that each preparation takes for which part.
VIEWS: dict[str, dict[str, Sequence[str]]] = {
    "base": {"train": ("train",), "val": ("val",), "test": ("test",)},
    "own": {"train": ("train",), "val": ("train",), "test": ("test",)},
    "all": {"train": SPLITS, "val": ("train",), "test": ("val", "test")},
}
_CONTENT, _MEANS = ("price",), ("item_count", "user_count", "user_mean", "item_mean")  # dense features
_ENTITY = {
    "content": ("price_tag", "category"),
    "means": ("count", "mean_rating"),
    "positives": ("positives",),
}


def compose(shards: Mapping[str, Path], known: Known, out_dir: Path) -> Manifest:
    """Write `out_dir`: the shards of `base` with the columns that `known` takes from `own` and `all`.

    All rows are in memory, with their vectors: 2 bytes for each number.

    Args:
        shards: view -> what `prepare` made of it, by the same settings, without affinity.

    Raises DataError for shards with affinity features, which are made of both sides at once, and where the
    three are not of the same rows.
    """
    needed = {"base"} | {at[0] for pair in known.views.values() for at in pair if at}
    stored = {view: Manifest.read(shards[view]) for view in sorted(needed)}
    inputs = {f"shards/{view}": manifest.fingerprint for view, manifest in stored.items()}
    inputs |= stored["base"].inputs
    manifest = Manifest("prepare", stored["base"].config | {KEY: jsonable(known)}, inputs)
    if previous := manifest.current(out_dir):
        return previous
    facts = {view: ShardFacts.of(of, shards[view]) for view, of in stored.items()}
    for view in needed:
        _check_same(shards["base"], facts["base"], shards[view], facts[view])
    rows = {(view, part): _read(shards[view], part, facts["base"]) for view in needed for part in SPLITS}
    with stage_output(manifest, out_dir) as folder:
        for part in SPLITS:
            table = _joined(rows, part, known, facts["base"])
            manifest.rows[part] = _write(folder / part, table, stored["base"].facts["rows_per_shard"])
        for side in ("user", "item"):
            table = _entities(shards, side, known, facts["base"])
            manifest.rows[f"{side}s"] = _write(folder / "entities" / f"{side}s", table, 1 << 17)
        names = Path(shards[known.views["content"][0][0]]) / "categories.txt"
        (folder / names.name).write_bytes(names.read_bytes())
        manifest.facts = stored["base"].facts
    return manifest


def _read(shards_dir: Path, part: str, facts: ShardFacts) -> pa.Table:
    """The rows of a part by user and item, so that those of two views stand beside each other."""
    table = read_table(shards_dir / part, facts.row_schema()).combine_chunks()
    order = np.lexsort((table["item"].to_numpy(), table["user"].to_numpy()))
    return table.append_column("place", pa.array(np.arange(len(order)))).take(order)


def _joined(rows: Mapping[tuple[str, str], pa.Table], part: str, known: Known, facts: ShardFacts) -> pa.Table:
    """The rows of a part of `base` in their order, with the columns of the views that are to be taken."""
    table = rows["base", part]
    dense = _matrix(table["dense"])
    columns = {name: table[name] for name in facts.row_schema().names}
    for kind, (training, others) in known.views.items():
        at = training if part == "train" else (others or ("base", part))
        source = _same_rows(table, rows[at])
        for name in _row_columns(kind, facts):
            columns[name] = source[name].combine_chunks()
        chosen = [k for k, name in enumerate(_dense_columns(facts)) if name in _dense_of(kind)]
        dense[:, chosen] = _matrix(source["dense"])[:, chosen]
    columns["dense"] = lists(dense)
    back = np.argsort(table["place"].to_numpy())
    schema = facts.row_schema()
    return pa.table([_array(columns[name]) for name in schema.names], schema=schema).take(back)


def _same_rows(table: pa.Table, source: pa.Table) -> pa.Table:
    """The rows of `source` that are `table`'s, both sorted by user and item; of a pair that comes more often
    in `source`, the first."""
    keys = [t["user"].to_numpy().astype(np.int64) << 32 | t["item"].to_numpy() for t in (table, source)]
    first = np.searchsorted(keys[0], keys[0])
    at = np.searchsorted(keys[1], keys[0]) + np.arange(len(first)) - first  # the n-th copy is the n-th copy
    if len(at) and not np.array_equal(keys[1][np.minimum(at, len(keys[1]) - 1)], keys[0]):
        raise DataError("leaks: the shards to be joined are not of the same rows; make all of them again")
    return source.take(at)


def _entities(shards: Mapping[str, Path], side: str, known: Known, facts: ShardFacts) -> pa.Table:
    """The entity table of `base` with what `known` takes from `all`: what contrastive terms draw from."""
    kind = facts.entity_schema(side)
    tables = {view: read_table(shards[view] / "entities" / f"{side}s", kind) for view in shards}
    table = tables["base"]
    vectors = [modality.name for modality in facts.modalities if modality.side == side]
    for group, (training, others) in known.views.items():
        if others is None:
            continue
        names = [*_ENTITY[group], *(vectors if group == "content" else [])]
        for name in (name for name in names if name in kind.names):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, kind.field(name), tables[training[0]][name])
    return table


def _row_columns(kind: str, facts: ShardFacts) -> list[str]:
    if kind == "content":
        return ["category", *facts.in_rows]
    return ["user_positives", "item_positives"] if kind == "positives" and facts.positives else []


def _dense_of(kind: str) -> tuple[str, ...]:
    return {"content": _CONTENT, "means": _MEANS}.get(kind, ())


def _dense_columns(facts: ShardFacts) -> list[str]:
    return [name for name in facts.dense for _ in range(DENSE_FEATURES[name])]


def _check_same(base_dir: Path, base: ShardFacts, other_dir: Path, other: ShardFacts) -> None:
    """Raise DataError unless users, items and columns of two views are the same."""
    for folder, facts in ((base_dir, base), (other_dir, other)):
        if facts.affinity:
            raise DataError(f"{folder}: has affinity features; leaks are measured with prepare.affinity off")
    if base.row_schema() != other.row_schema() or (base.modalities != other.modalities):
        raise DataError(f"{other_dir}: has other columns than {base_dir}; make both again")
    for side in ("user", "item"):
        ids = [
            read_table(d / "entities" / f"{side}s", base.entity_schema(side), ["id"])
            for d in (base_dir, other_dir)
        ]
        if not ids[0].equals(ids[1]):
            raise DataError(f"{other_dir}: has other {side}s than {base_dir}; make both again")


def _write(folder: Path, table: pa.Table, rows_per_part: int) -> int:
    folder.parent.mkdir(parents=True, exist_ok=True)
    table = table.combine_chunks()
    write_parts(
        folder,
        table.schema,
        table.num_rows,
        rows_per_part,
        lambda start, stop: table.slice(start, stop - start),
        lambda done: None,
    )
    return table.num_rows


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """The numbers of a column of lists of one length, a copy [N, width]."""
    array = column.combine_chunks()
    return np.array(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), array.type.list_size)


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
