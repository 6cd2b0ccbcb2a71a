"""The graphs that are measured: published adjacency lists, and power laws of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from swing.config import SwingError

USERS_PER_EDGE, ITEMS_PER_EDGE = 0.1, 0.025
USER_SKEW, ITEM_SKEW = 1.3, 2.0
CHUNK = 1 << 22


def power_law(
    path: Path,
    edges: int,
    users: int | None = None,
    items: int | None = None,
    strings: bool = False,
    seed: int = 0,
) -> Path:
    """Write `edges` interactions to `path` (Parquet), unless they are there: user N·x^1.3, item N·x^2.0.

    x is uniform in [0, 1); N is `users` and `items`, by default a user for 10 edges and an item for 40.
    Repeated pairs stay, as in a log. Ids are i64, or strings such as "user-0012345".
    """
    users, items = users or int(edges * USERS_PER_EDGE), items or int(edges * ITEMS_PER_EDGE)
    if path.exists():
        return path
    draw = np.random.default_rng(seed)
    kind = pa.string() if strings else pa.int64()
    schema = pa.schema({"user_id": kind, "item_id": kind})
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for begin in range(0, edges, CHUNK):
            count = min(CHUNK, edges - begin)
            columns = {
                "user_id": (users * draw.random(count) ** USER_SKEW).astype(np.int64),
                "item_id": (items * draw.random(count) ** ITEM_SKEW).astype(np.int64),
            }
            table = pl.DataFrame(columns)
            if strings:
                table = table.select(
                    pl.format(f"{c[:4]}-{{}}", pl.col(c).cast(str).str.zfill(9)).alias(c) for c in columns
                )
            writer.write_table(table.to_arrow().cast(schema))
    temporary.rename(path)
    return path


def published_size(folder: Path) -> Path:
    """An adjacency list of a power law with about the edges of the published test half of Gowalla."""
    path = folder / "powerlaw-217k.txt"
    if not path.exists():
        draw = np.random.default_rng(0)
        users, items = 30_000 * draw.random(217_242) ** USER_SKEW, 40_000 * draw.random(217_242) ** ITEM_SKEW
        rows: dict[int, set[int]] = {}
        for user, item in zip(users.astype(int).tolist(), items.astype(int).tolist(), strict=True):
            rows.setdefault(user, set()).add(item)
        lines = (" ".join(map(str, (user, *sorted(rows[user])))) for user in sorted(rows))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def adjacency(path: Path) -> pl.DataFrame:
    """`user_id`, `item_id` i64 from lines "user item item ...", as LightGCN's authors publish graphs.

    Raises SwingError for a file that is not of this form.
    """
    users: list[np.ndarray] = []
    items: list[np.ndarray] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            numbers = np.array(line.split(), np.int64)
            users.append(np.repeat(numbers[:1], max(0, len(numbers) - 1)))
            items.append(numbers[1:])
    except (OSError, ValueError) as error:
        raise SwingError(f"{path}: not a graph of lines 'user item item ...': {error}") from None
    return pl.DataFrame({"user_id": np.concatenate(users), "item_id": np.concatenate(items)})
