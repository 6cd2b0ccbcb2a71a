"""`python -m swing items|users|audit`: neighbours from a table of interactions, and how good they are."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from swing import audit
from swing.config import PRESETS, SIMILARITIES, SwingError, preset
from swing.job import run
from swing.tables import Filters

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
  python -m swing users --input 'logs/*.csv' --user-column who --item-column sku --output similar --top-k 20
  python -m swing items --input clicks/ --output flink --preset flink --max-item-users 500 --threads 8
  python -m swing items --input clicks/ --min-rating 4 --since 2024-01-01 --output liked
  python -m swing items --input clicks/ --similarity cosine --output cosine
  python -m swing items --input shared/clicks/ --output shared/neighbors --engine ray --address auto
  python -m swing audit neighbors --other cosine
"""
FORM = """\
output: part-*.parquet with id, neighbors (best first, ties by id), scores; manifest.json with the parameters,
counts, coverage, seconds and peak memory. The result is the same for any number of threads and either engine.
A killed run, started again, continues where it stopped.
"""
ROLES = """\
By default those of the preset; 0 lifts a limit. For 'users', swap users and items in these texts."""
FLAGS = {
    "alpha": (float, "smoothing of the overlap"),
    "user_alpha": (float, "smoothing of a user's activity in the weight"),
    "user_beta": (float, "exponent of the user weight; 0: every user weighs 1"),
    "top_k": (int, "neighbours kept for each id"),
    "min_user_items": (int, "ignore users with fewer items"),
    "max_user_items": (int, "ignore users with more items"),
    "sample_user_items": (int, "sample this many items of a user who has more"),
    "max_item_users": (int, "sample this many users of an item that has more"),
    "seed": (int, "seed of the samples"),
}


def build_parser() -> argparse.ArgumentParser:
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m swing", description=DESCRIPTION, epilog=EXAMPLES, **raw)
    commands = parser.add_subparsers(dest="side", required=True, metavar="{items,users,audit}")
    for side, through in (("items", "users"), ("users", "items")):
        text = f"find the neighbours of {side} through the {through} they share"
        _add_flags(commands.add_parser(side, help=text, description=f"{text}\n\n{FORM}", **raw))
    text = "judge a finished run: coverage, scores, popularity bias, agreement with another run"
    audit.add_arguments(commands.add_parser("audit", help=text, description=audit.__doc__, **raw))
    return parser


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", required=True, help="Parquet, CSV or TSV file, folder of them, or quoted glob"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace another run's output")

    group = parser.add_argument_group("what counts as an interaction")
    group.add_argument("--user-column", default="user_id", metavar="NAME", help="default: user_id")
    group.add_argument("--item-column", default="item_id", metavar="NAME", help="default: item_id")
    group.add_argument("--min-rating", type=float, metavar="X", help="only rows rated X or better")
    group.add_argument("--rating-column", default="rating", metavar="NAME", help="default: rating")
    group.add_argument(
        "--since", metavar="T", help="only rows from this date or number on, such as 2024-01-31 (UTC)"
    )
    group.add_argument("--until", metavar="T", help="only rows before this date or number")
    group.add_argument("--time-column", default="timestamp", metavar="NAME", help="default: timestamp")

    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="default: all cores; with ray: of each task, 1"
    )
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this machine, or a Ray cluster whose nodes share the folder of --output",
    )
    group.add_argument(
        "--address",
        help="of the Ray cluster: HOST:PORT or 'auto'; default: $RAY_ADDRESS, else a new one on this machine",
    )

    group = parser.add_argument_group("parameters", f"{ROLES}\n\n{_preset_table()}")
    group.add_argument(
        "--preset", default="dlrrec", metavar="NAME", help="published variant; default: dlrrec"
    )
    group.add_argument(
        "--similarity", choices=SIMILARITIES, help="default: swing; the others count single shared users"
    )
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


def _preset_table() -> str:
    lines = []
    for name, config in PRESETS.items():
        values = dataclasses.asdict(config)
        parameters = (
            f"{k}={v:g}"
            for k, v in values.items()
            if isinstance(v, (int, float)) and v is not False and k != "seed"
        )
        lines.append(f"{name:8s} {' '.join(parameters)}")
    return "\n".join(lines)


class Bar:
    """A progress bar on stderr for reading, then for scoring: share done, speed, time left."""

    def __init__(self):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("reading", total=None, speed="")
        self.edges, self.started = 0, 0.0

    def reading(self, rows: int, total: int | None) -> None:
        self.progress.update(self.task, total=total, completed=rows, speed=f"{rows:,} rows")

    def __call__(self, step: dict) -> None:
        self.edges += step["edges"]
        if not self.started:
            self.started = time.monotonic()
            self.progress.reset(self.task, description="scoring")
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.progress.update(
            self.task,
            total=step["total_steps"],
            advance=step["steps"],
            speed=f"{self.edges / seconds:,.0f} edges/s",
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()


def find(options: argparse.Namespace) -> int:
    """Run the job of `items` or `users`."""
    names = (*FLAGS, "count_anchor", "normalize", "similarity")
    config = preset(options.preset, **{name: getattr(options, name) for name in names})
    filters = Filters(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Filters)})
    with Bar() as bar:
        manifest = run(
            options.input,
            options.output,
            config,
            options.side,
            user=options.user_column,
            item=options.item_column,
            filters=filters,
            threads=options.threads,
            engine=options.engine,
            address=options.address,
            overwrite=options.overwrite,
            progress=bar,
            reading=bar.reading,
        )
    rows = manifest["input"]["rows"]
    for name, text in LEFT_OUT.items():
        if count := manifest["input"].get(name):
            print(f"swing: {count} of {rows} rows {text} and were left out", file=sys.stderr)
    for warning in manifest["warnings"]:
        print(f"swing: {warning}", file=sys.stderr)
    if manifest.get("reused"):
        print("swing: this output was already there, from the same input and parameters", file=sys.stderr)
    print(json.dumps(manifest, indent=2))
    return 0


LEFT_OUT = {
    "null_rows": "have a null id",
    "rows_below_min_rating": "are rated lower, or not at all",
    "rows_outside_time_window": "are outside the time window",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after a message on stderr for unusable input."""
    options = build_parser().parse_args(arguments)
    try:
        return audit.main(options) if options.side == "audit" else find(options)
    except SwingError as error:
        print(f"swing: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
