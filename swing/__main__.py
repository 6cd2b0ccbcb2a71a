"""`python -m swing items|users`: neighbours from a table of interactions, as Parquet."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from swing.config import PRESETS, SwingError, preset
from swing.job import run

DESCRIPTION = """\
Exact SWING neighbours of items (through the users they share) or of users (through the items they share).

  s(i, j) = sum over pairs of users u < v who both have i and j of
            w_u w_v / (alpha + number of items that u and v share)
  w_u     = (user_alpha + number of items of u) ^ -user_beta

Two items are similar when pairs of users who agree on little else agree on both. An id that shares fewer than
two users with every other id has no neighbours: its lists are empty.
"""
EXAMPLES = """\
examples:
  python -m swing items --input reviews.parquet --output neighbors
  python -m swing users --input 'logs/*.csv' --user-column who --item-column sku --output alike --top-k 20
  python -m swing items --input clicks/ --output flink --preset flink --max-item-users 500 --threads 8

output: part-*.parquet with id, neighbors (best first, ties by id), scores; manifest.json with the parameters,
counts, coverage, seconds and peak memory. The result is the same for any number of threads. A killed run,
started again, goes on where it stopped.
"""
ROLES = """\
Where not given, the preset's; 0 lifts a limit. For 'users', read items for users and users for items."""
FLAGS = {
    "alpha": (float, "smoothing of the overlap"),
    "user_alpha": (float, "smoothing of a user's activity in the weight"),
    "user_beta": (float, "exponent of the user weight; 0: every user weighs 1"),
    "top_k": (int, "neighbours kept for each id"),
    "min_user_items": (int, "ignore users with fewer items"),
    "max_user_items": (int, "ignore users with more items"),
    "sample_user_items": (int, "sample so many items of a user who has more"),
    "max_item_users": (int, "sample so many users of an item that has more"),
    "seed": (int, "seed of the samples"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m swing", None, DESCRIPTION, EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=("items", "users"), help="what to find neighbours of")
    parser.add_argument(
        "--input", required=True, help="Parquet, CSV or TSV file, folder of them, or quoted glob"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--user-column", default="user_id", metavar="NAME", help="default: user_id")
    parser.add_argument("--item-column", default="item_id", metavar="NAME", help="default: item_id")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--overwrite", action="store_true", help="replace another run's output")
    group = parser.add_argument_group("parameters", f"{ROLES}\n\n{_preset_table()}")
    group.add_argument("--preset", default="dlrrec", help="published variant, default: dlrrec")
    for name, (kind, text) in FLAGS.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="X", help=text)
    group.add_argument(
        "--count-anchor",
        action=argparse.BooleanOptionalAction,
        help="whether the overlap of two users counts the item they are compared for",
    )
    group.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="divide each id's scores by its best"
    )
    return parser


def _preset_table() -> str:
    lines = []
    for name, config in PRESETS.items():
        values = dataclasses.asdict(config)
        shown = (f"{k}={v:g}" for k, v in values.items() if k != "seed" and v is not None and v is not False)
        lines.append(f"{name:8s} {' '.join(shown)}")
    return "\n".join(lines)


class Bar:
    """A progress bar on stderr: share of the work done, edges per second, time left."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("scoring"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("scoring", total=None, speed="")
        self.edges, self.started = 0, 0.0

    def __call__(self, done: dict) -> None:
        self.edges += done["edges"]
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.progress.update(
            self.task,
            total=done["total_steps"],
            advance=done["steps"],
            speed=f"{self.edges / seconds:,.0f} edges/s",
        )

    def __enter__(self) -> Bar:
        self.started = time.monotonic()
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after a message on stderr for unusable input."""
    options = build_parser().parse_args(arguments)
    names = (*FLAGS, "count_anchor", "normalize")
    try:
        config = preset(options.preset, **{name: getattr(options, name) for name in names})
        with Bar() as bar:
            manifest = run(
                options.input,
                options.output,
                config,
                options.side,
                user=options.user_column,
                item=options.item_column,
                threads=options.threads,
                overwrite=options.overwrite,
                progress=bar,
            )
    except SwingError as error:
        print(f"swing: {error}", file=sys.stderr)
        return 2
    if nulls := manifest["input"]["null_rows"]:
        print(
            f"swing: {nulls} of {manifest['input']['rows']} rows have a null id and were left out",
            file=sys.stderr,
        )
    if manifest.get("reused"):
        print("swing: this output was already there, from the same input and parameters", file=sys.stderr)
    print(json.dumps(manifest, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
