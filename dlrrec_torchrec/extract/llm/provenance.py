"""The table beside the content that says where it came from."""

from __future__ import annotations

import pyarrow as pa

NO_WORDS = "no review has words"
FOLDER, DROPPED = "provenance", "dropped_categories.parquet"
# One row for each version of a user or item and each prompt about it.
PROVENANCE = pa.schema(
    [
        ("side", pa.string()),
        ("id", pa.string()),
        ("fold", pa.int16()),
        ("prompt", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("library", pa.string()),
        ("prompt_hash", pa.string()),
        ("input_hash", pa.string()),  # of the texts as they were sent
        ("calls", pa.list_(pa.string())),  # keys of the answers, of all attempts and parts, the last one last
        ("reviews", pa.int32()),  # with words
        ("parts", pa.int32()),
        ("left_out", pa.int32()),  # reviews that were not read
        ("cut_tokens", pa.int32()),  # tokens that were not read
        ("reason", pa.string()),  # why there is no answer, or only a part of one; null: there is
    ]
)
