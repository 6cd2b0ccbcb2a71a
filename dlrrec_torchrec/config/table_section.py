"""Settings of one embedding table, and what makes a setting."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

MOST_SEED = 2_000_000_000  # torch, NumPy and the peers take it, with the number of a repetition added


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: tuple[str, ...] = (),
    of: type | None = None,
) -> Any:
    """A dataclass field with its help text and the values it may have.

    Args:
        choices: where they are few, the allowed values.
        least, most: the bounds of a number, or of each number of a list; these themselves are allowed.
        above, below: bounds that are not allowed themselves.
        of: type of a list's elements (default: that of the default's first one, else str).
        also: further names of its flag on `dlrrec run`, where the field's own name is another section's too.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    metadata = {
        "help": help,
        "choices": choices,
        "also": also,
        "of": of,
        "bounds": {k: v for k, v in bounds.items() if v is not None},
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


SHARDING_TYPES = (
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
)
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching", "key_value", "dense")


@dataclasses.dataclass
class TableConfig:
    """One embedding table: its size, its numbers, and what the planner may do with it.

    Also given as text: `rows,dim,pooling,KEY=VALUE,...`, each part optional, as `1e9,64,1,sharding=row_wise`.
    """

    rows: int | None = option(None, "rows (default: as many as the shards have ids)", least=1)
    dim: int | None = option(None, "columns (default: model.embedding_dim, or as the vectors)", least=1)
    pooling: float | None = option(
        None, "ids that an example looks up, on average (for predictions)", above=0
    )
    dtype: str | None = option(
        None,
        "numbers of the weights (default: fp32; fp16 of content vectors); bf16 is for plans only",
        ("fp32", "fp16", "bf16"),
    )
    sharding: list = option(
        [],
        "sharding types the planner may choose from (default: all except grid_shard and data_parallel, on "
        "CPUs those by tables and columns; data_parallel where the optimizer is not fused; row_wise of "
        "managed ids)",
        SHARDING_TYPES,
    )
    kernels: list = option([], "compute kernels the planner may choose from (default: fused)", KERNELS)
    cache: float = option(
        0.2, "fused_uvm_caching, key_value: share of the rows cached on the device", above=0, most=1
    )
    min_columns: int = option(
        128, "narrowest part that column_wise, table_column_wise, grid_shard cut", least=1
    )
    ssd: str = option("", "key_value: folder on a local SSD (default: a temporary one)")
    ids: str = option(
        "code",
        "user, item: an id's row is its code, or code's hash modulo rows, or one given to it while it is "
        "frequent (managed: without collisions)",
        ("code", "hash", "managed"),
    )
    evict: str = option(
        "lfu", "managed: whose row another id gets, when all are taken", ("lfu", "lru", "distance_lfu")
    )
    admit: int = option(1, "managed: give rows to new ids every N steps", least=1)
