"""`dlrrec bench`: the group of benchmark commands. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

from dlrrec_torchrec.benchmarks.cases import EmbeddingCase, parse_sweeps, product
from dlrrec_torchrec.schema import DataError, write_text_atomic

EMBEDDINGS_EXAMPLE = """examples:
  dlrrec bench embeddings --sweep pooling=1,11,50
  dlrrec bench embeddings --sweep distribution=uniform,zipf --sweep rows=100000,1000000 --optimizer sgd
  dlrrec bench embeddings --world-size 2 --sharding table_wise"""


def add_bench(commands: Any) -> None:
    """Add `bench` and its sub-commands to the `dlrrec` parser's sub-commands."""
    bench = commands.add_parser("bench", help="measure parts of the system on this machine")
    parts = bench.add_subparsers(title="benchmarks", metavar="PART", required=True)
    _add_embeddings(parts)


def _add_embeddings(parts: Any) -> None:
    line = "embedding tables: FBGEMM's beside torch.nn.EmbeddingBag and a plain memory copy"
    command = parts.add_parser(
        "embeddings",
        help=line,
        description="E" + line[1:] + ".",
        epilog=EMBEDDINGS_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(EmbeddingCase)
    for known in dataclasses.fields(EmbeddingCase):
        command.add_argument(
            "--" + known.name.replace("_", "-"),
            type=hints[known.name],
            default=known.default,
            choices=known.metadata["choices"],
            metavar=None if known.metadata["choices"] else known.name.upper(),
            help=known.metadata["help"].replace("%", "%%") + f" (default: {known.default})",
        )
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=V1,V2,...",
        help="measure with each of these values; several sweeps: with each combination",
    )
    command.add_argument("--out", default="runs/bench", help="folder of the results (default: runs/bench)")
    command.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    command.set_defaults(action=_embeddings)


def _embeddings(arguments: argparse.Namespace) -> int:
    given = {known.name: getattr(arguments, known.name) for known in dataclasses.fields(EmbeddingCase)}
    cases = product(given, parse_sweeps(arguments.sweep))
    from dlrrec_torchrec.benchmarks.embeddings import run
    from dlrrec_torchrec.benchmarks.machine import describe_machine
    from dlrrec_torchrec.benchmarks.report import draw, format_table

    first = int(os.environ.get("RANK", "0")) == 0
    out = Path(arguments.out)
    if first:
        _make_folder(out)
    machine = describe_machine()
    quiet = arguments.json or not first
    results = run(cases, say=lambda line: None) if quiet else run(cases, say=print)
    if not first:
        return 0
    text = json.dumps({"benchmark": "embeddings", "machine": machine, "results": results}, indent=2)
    write_text_atomic(out / "embeddings.json", text + "\n")
    draw(results, out / "embeddings.png")
    if arguments.json:
        print(text)
    else:
        print(format_table(results))
        print("ratio: torch's time / FBGEMM's. of copy: the bytes that must move at least, against a copy's.")
        print(f"written: {out / 'embeddings.json'}, {out / 'embeddings.png'}")
    return 0


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {path}: {error.strerror}") from None
