"""Small outputs of SWING's job for the tests of its audit."""

import json

import polars as pl
from pyarrow import feather

from swing.audit import figures

WORLD = {"a": [("b", 2.0), ("c", 1.0)], "b": [("a", 2.0)], "c": [("a", 1.0), ("b", 0.5)], "d": [], "e": []}
DEGREES = {"a": 4, "b": 3, "c": 2, "d": 1, "e": 0}
OTHER = {"a": [("c", 1.0), ("b", 0.9)], "b": [("c", 1.0)], "c": [("a", 1.0)], "f": [("a", 1.0)]}


def write(folder, world, degrees=None, kind=pl.String, parts=2, parameters=None, **manifest):
    """An output of the job: `world` {id: [(neighbour, score)]}, or such pairs where ids repeat."""
    world = list(world.items()) if isinstance(world, dict) else world
    folder.mkdir(parents=True)
    table = pl.DataFrame(
        {
            "id": [i for i, _ in world],
            "neighbors": [[j for j, _ in row] for _, row in world],
            "scores": [[s for _, s in row] for _, row in world],
        },
        schema={"id": kind, "neighbors": pl.List(kind), "scores": pl.List(pl.Float32)},
    )
    step = -(-len(table) // parts)
    for number in range(parts):
        table[number * step : (number + 1) * step].write_parquet(folder / f"part-{number:05d}.parquet")
    covered = sum(bool(row) for _, row in world)
    facts = {
        "fingerprint": "of a test",
        "side": "items",
        "parameters": {"similarity": "swing", "top_k": 100, "normalize": False} | (parameters or {}),
        "input": {"rows": 10},
        "ids": len(world),
        "covered": covered,
        "coverage": round(covered / len(world), 6),
        "neighbors": sum(len(row) for _, row in world),
        "parts": parts,
    }
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))
    if degrees is not None:
        schema = {"id": kind, "degree": pl.Int32}
        frame = pl.DataFrame(list(degrees.items()), schema=schema, orient="row")
        feather.write_feather(frame.to_arrow(), folder / "degrees.arrow")
    return folder


def skip_figures(monkeypatch):
    for name in ("coverage", "scores", "popularity", "agreement"):
        monkeypatch.setattr(figures, name, lambda *_: None)
