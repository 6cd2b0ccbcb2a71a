"""`python -m swing.benchmark`: what SWING costs here, both sides of each comparison from one run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from swing.benchmark import measure, passes
from swing.benchmark.graphs import power_law, published_size
from swing.config import SwingError
from swing.machine import available_cores

DESCRIPTION = """\
Measures SWING on this machine. Every figure of a comparison comes from the same run; each measured job runs
in a process of its own, which gives its peak memory. Seconds vary with the machine's load: compare ratios.

sections:
  recfarm   scoring beside LibRecommender's Rust kernel (pip install recfarm==0.2.1): seconds, memory, and
            whether all pairs and scores are the same
  powerlaw  from a Parquet file to written neighbours, by number of edges; the slope; 10 billion on paper
  threads   scoring with 1, 2, ... threads
  passes    where the time goes, and how far the walk is from what this machine's memory can do
  ray       the whole job on a local Ray cluster beside the local engine (pip install ray)
"""
SECTIONS = ("recfarm", "powerlaw", "threads", "passes", "ray")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m swing.benchmark",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all"
    )
    parser.add_argument(
        "--graph",
        action="append",
        type=Path,
        metavar="FILE",
        help="graph for recfarm, one line a user: 'user item item ...'; may be repeated; default: a power "
        "law of 217 thousand edges",
    )
    parser.add_argument(
        "--edges",
        nargs="+",
        type=float,
        default=[5.0, 20.0],
        metavar="MILLIONS",
        help="sizes of the power laws, default: 5 20; the other sections use the second to last",
    )
    for side, ratio in (("users", "one for 10 edges"), ("items", "one for 40 edges")):
        parser.add_argument(
            f"--{side}", type=float, metavar="MILLIONS", help=f"of the power laws, default: {ratio}"
        )
    parser.add_argument(
        "--ids", choices=("integers", "strings"), default="integers", help="of the power laws"
    )
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the short comparisons, alternating")
    parser.add_argument(
        "--folder", type=Path, help="where to write the graphs, which stay there; default: a temporary folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; returns 0, 1 where two sides disagree, or 2 after a message on stderr."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))} (known: {', '.join(SECTIONS)})")
    console = Console(width=max(120, Console().width))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="swing-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    report: dict = {"machine": {"cores": available_cores(), "threads": options.threads}}
    try:
        for section in options.sections or SECTIONS:
            report[section], table = RUN[section](options, folder)
            console.print(table)
    except SwingError as error:
        print(f"swing.benchmark: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["same"] for row in report.get("recfarm", []) + report.get("ray", [])) else 1


def recfarm(options: argparse.Namespace, folder: Path) -> tuple[list[dict], Table]:
    table = _table(
        f"scoring, {options.threads} threads, preset recfarm, all pairs kept (median of {options.repeats})",
        "graph, edges, pairs, recfarm s, swing s, times, recfarm MiB, swing MiB, same, graph s, compile s",
    )
    rows = []
    for path in options.graph or [published_size(folder)]:
        sides: dict[str, list[dict]] = {"ours": [], "theirs": []}
        for turn in range(options.repeats):
            for side, function in (("theirs", measure.theirs), ("ours", measure.ours)):
                keep = folder / f"{path.stem}-{side}.npz" if turn == 0 else None
                sides[side].append(measure.alone(function, path, options.threads, keep))
        check = measure.compare(*(folder / f"{path.stem}-{side}.npz" for side in ("ours", "theirs")))
        ours, theirs = (
            {k: float(np.median([run[k] for run in runs])) for k in runs[0]} for runs in sides.values()
        )
        row = {
            "graph": path.stem,
            "ours": sides["ours"],
            "theirs": sides["theirs"],
            "times": theirs["seconds"] / ours["seconds"],
            "same": bool(check["same_pairs"] and check["largest_difference"] < 1e-5),
            **check,
        }
        rows.append(row)
        table.add_row(
            path.stem, f"{ours['edges']:,.0f}", f"{ours['pairs']:,.0f}", f"{theirs['seconds']:.3f}",
            f"{ours['seconds']:.4f}", f"{row['times']:.0f}",
            f"{theirs['peak_mib']:.0f}", f"{ours['peak_mib']:.0f}",
            f"{row['same']} ({check['largest_difference']:.0e})", f"{ours['graph']:.2f}",
            f"{ours['compile']:.1f}",
        )  # fmt: skip
    return rows, table


def powerlaw(options: argparse.Namespace, folder: Path) -> tuple[dict, Table]:
    table = _table(
        f"from Parquet ({options.ids} as ids) to written neighbours, {options.threads} threads",
        "edges, read s, build s, score and write s, whole s, edges/s, peak MiB, pair updates, slope",
    )
    rows: list[dict] = []
    for millions in options.edges:
        source = _graph(options, folder, millions)
        shutil.rmtree(folder / "out", ignore_errors=True)
        run = measure.alone(measure.job, source, folder / "out", options.threads)
        edges, parts = run["manifest"]["input"]["rows"], run["manifest"]["seconds"]
        slope = ""
        if rows:
            previous = rows[-1]
            slope = np.log(run["seconds"] / previous["seconds"]) / np.log(edges / previous["edges"])
        rows.append({"edges": edges, "slope": slope or None, **run})
        table.add_row(
            f"{edges:,}", *(f"{parts[name]:.1f}" for name in ("read", "build", "score_and_write")),
            f"{run['seconds']:.1f}", f"{edges / run['seconds']:,.0f}", f"{run['peak_mib']:,.0f}",
            f"{run['manifest']['pair_updates']:,}", f"{slope:.2f}" if slope else "",
        )  # fmt: skip
    paper = on_paper(rows, options.threads)
    table.caption = "10 billion edges, on paper: " + ", ".join(f"{k} {v}" for k, v in paper.items())
    return {"runs": rows, "on_paper": paper}, table


def on_paper(rows: list[dict], threads: int, edges: float = 1e10, nodes: int = 16, cores: int = 32) -> dict:
    """What `edges` edges would take on a Ray cluster, by the growth from the first to the last measured size.

    Each part grows as edges^slope, memory in proportion. Where users and items grow with the edges, an edge
    costs the same except for cache misses, which the slope shows.
    """
    first, last = rows[0], rows[-1]
    times = edges / last["edges"]

    def hours(part: str) -> float:
        last_seconds, first_seconds = (max(row["manifest"]["seconds"][part], 1e-3) for row in (last, first))
        slope = (
            np.log(last_seconds / first_seconds) / np.log(last["edges"] / first["edges"])
            if first is not last
            else 1.0
        )
        return last_seconds * times ** max(1.0, slope) / 3600

    ids = last["manifest"]["input"]["users"] + last["manifest"]["input"]["items"]
    graph = (2 * 4 * last["edges"] + 2 * 8 * ids) * times / 1e9
    base = (first["peak_mib"], first["edges"]) if first is not last else (0.0, 0)
    memory = (last["peak_mib"] - base[0]) / (last["edges"] - base[1]) * edges / 1000
    return {
        "nodes": f"{nodes} of {cores} cores",
        "driver reads and builds in": f"{hours('read') + hours('build'):.1f} h",
        "with memory": f"{memory:,.0f} GB",
        "all score in": f"{hours('score_and_write') * threads / (nodes * cores) * 60:.1f} min",
        "graph": f"{graph:,.0f} GB once a node",
        "moved": f"{graph * (nodes - 1) / 1000:.1f} TB",
    }


def threads(options: argparse.Namespace, folder: Path) -> tuple[dict, Table]:
    counts = sorted({1, 2, options.threads})
    result = measure.alone(measure.scoring, _graph(options, folder), counts, options.repeats)
    table = _table(
        f"scoring alone, {result['edges']:,} edges (median of {options.repeats}, alternating)",
        "threads, seconds, times 1 thread, pair updates/s, steps/s",
    )
    seconds = {count: float(np.median(result["seconds"][count])) for count in counts}
    for count in counts:
        table.add_row(
            f"{count}", f"{seconds[count]:.2f}", f"{seconds[1] / seconds[count]:.2f}",
            f"{result['updates'] / seconds[count]:,.0f}", f"{result['steps'] / seconds[count]:,.0f}",
        )  # fmt: skip
    return result, table


def ray(options: argparse.Namespace, folder: Path) -> tuple[list[dict], Table]:
    source = _graph(options, folder, options.edges[-1])
    table = _table(
        f"the whole job, local beside a Ray cluster on this machine, {options.edges[-1]:g} million edges",
        "engine, start s, read s, build s, score and write s, peak MiB, of a worker, same bytes",
    )
    runs, digests = [], []
    for engine, function in (("local", measure.job), ("ray", measure.job_on_ray)):
        shutil.rmtree(folder / "out", ignore_errors=True)
        runs.append(
            {
                "engine": engine,
                "start": 0.0,
                **measure.alone(function, source, folder / "out", options.threads),
            }
        )
        digests.append(measure.digest(folder / "out"))
    for run, digest in zip(runs, digests, strict=True):
        run["same"] = digest == digests[0]
        manifest, seconds = run["manifest"], run["manifest"]["seconds"]
        table.add_row(
            run["engine"], f"{run['start']:.1f}", f"{seconds['read']:.1f}", f"{seconds['build']:.1f}",
            f"{seconds['score_and_write']:.1f}", f"{run['peak_mib']:,.0f}",
            f"{manifest['workers']['peak_memory_mib']:,.0f}", f"{run['same']}",
        )  # fmt: skip
    return runs, table


def spent(options: argparse.Namespace, folder: Path) -> tuple[dict, Table]:
    result = measure.alone(passes.shares, _graph(options, folder), folder / "out")
    table = _table(
        f"where the time goes, {result['edges']:,} edges, scoring in one thread",
        "pass, seconds, share, of what, rate",
    )
    for name, row in result["passes"].items():
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['share']:.0%}", row["of"], row["rate"])
    table.caption = result["limit"]
    return result, table


def _graph(options: argparse.Namespace, folder: Path, millions: float | None = None) -> Path:
    """The power law of `millions` edges; None: of the second to last size."""
    if millions is None:
        millions = options.edges[max(0, len(options.edges) - 2)]
    users, items = (int(1e6 * n) if n else None for n in (options.users, options.items))
    path = folder / f"powerlaw-{millions:g}-{users or ''}-{items or ''}-{options.ids}.parquet"
    return power_law(path, int(millions * 1e6), users, items, options.ids == "strings")


def _table(title: str, columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in columns.split(", "):
        table.add_column(name, justify="right", overflow="fold")
    return table


RUN = {"recfarm": recfarm, "powerlaw": powerlaw, "threads": threads, "passes": spent, "ray": ray}

if __name__ == "__main__":
    sys.exit(main())
