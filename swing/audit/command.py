"""The command: its arguments, and the report as a short table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from swing.audit.report import audit
from swing.config import SwingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `main`."""
    parser.add_argument("directory", metavar="DIR", help="output of `python -m swing items` or `users`")
    parser.add_argument("--other", metavar="DIR", help="a second output, to compare the lists with")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for audit.json and the figures, default: DIR-audit"
    )
    parser.add_argument(
        "-k", type=int, default=10, metavar="N", help="compare the first N neighbours, default: 10"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        action="append",
        metavar="X",
        help="count the neighbours with a greater score; may be repeated. Default: quantiles of the scores",
    )


def main(options: argparse.Namespace) -> int:
    """Audit, print the table; returns the exit status: 0, 1 for problems, 2 for unusable input."""
    try:
        report = audit(
            options.directory,
            options.output,
            other=options.other,
            k=options.k,
            threshold=options.threshold,
        )
    except SwingError as error:
        print(f"swing: {error}", file=sys.stderr)
        return 2
    print(table(report))
    return 1 if report["problems"] else 0


def table(report: dict[str, Any]) -> str:
    """The report for a terminal, at most 100 columns where names are not longer."""
    blocks = [_overview(report), _by_degree(report), _thresholds(report), _agreement(report)]
    blocks += [_listed("problems", report["problems"]), _listed("notes", report["notes"])]
    return "\n\n".join(filter(None, [*blocks, f"audit.json and figures: {report['output']}"]))


def _overview(report: dict[str, Any]) -> str:
    cover, lists, scores, popularity = (report[k] for k in ("coverage", "lists", "scores", "popularity"))
    similarity = report["parameters"].get("similarity", "swing")
    rows = [
        ("output", f"{report['directory']}: neighbours of {report['side']}, by {similarity}"),
        ("coverage", f"{_percent(cover['share'])}: {cover['covered']:,} of {cover['ids']:,} ids have a list"),
    ]
    if not lists["neighbors"]:
        return _aligned(rows)
    full = "" if lists["full"] is None else f", {lists['full']:,} full"
    rows.append(
        (
            "lists",
            f"{lists['neighbors']:,} neighbours; mean {lists['mean_of_covered']:.1f} a list, median "
            f"{lists['median_of_covered']:g}, longest {lists['max']}{full}",
        )
    )
    for name, key in (("scores", "all"), ("best scores", "best")):
        if (values := scores[key])["count"]:
            middle = values["quantiles"]["0.5"]
            rows.append((name, f"{values['min']:.4g} to {values['max']:.4g}, median {middle:.4g}"))
    gini = f"Gini {_number(popularity['gini'])}"
    if "gini_of_degrees" in popularity:
        gini += f" (degrees {_number(popularity['gini_of_degrees'])})"
    rows.append(
        (
            "appearances",
            f"{_percent(popularity['appearing_share'])} of the ids are a neighbour of another; {gini}",
        )
    )
    for top in popularity.get("top", ()):
        name = f"top {top['of_ids']:.0%} by degree"
        rows.append(
            (
                name,
                f"{_percent(top['appearances_share'])} of the appearances, {_percent(top['edges_share'])} of "
                "the edges",
            )
        )
    if "arp" in popularity:
        rows += [
            ("neighbours' degree", _degrees(popularity)),
            ("degree ~ appearances", f"Spearman {_number(popularity['spearman'])}"),
        ]
    rows.append(("reciprocity", f"{_percent(popularity['reciprocity'])} of the neighbours name the id back"))
    return _aligned(rows)


def _degrees(popularity: dict[str, Any]) -> str:
    return (
        f"mean {_number(popularity['arp'])}; of all ids {_number(popularity['mean_degree'])}, by edge "
        f"{_number(popularity['mean_degree_by_edge'])}"
    )


def _by_degree(report: dict[str, Any]) -> str:
    rows = [
        [
            str(row["from"]) if row["from"] == row["to"] else f"{row['from']}-{row['to']}",
            f"{row['ids']:,}",
            _percent(row["coverage"]),
            f"{row['neighbors'] / row['ids']:.1f}",
            f"{row['appearances'] / row['ids']:.1f}",
        ]
        for row in report["by_degree"]
    ]
    return _columns(["degree", "ids", "coverage", "neighbours an id", "appearances an id"], rows)


def _thresholds(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['threshold']:.4g}",
            f"{row['neighbors']:,}",
            _percent(row["neighbors_share"]),
            f"{row['ids']:,}",
            _percent(row["ids_share"]),
        ]
        for row in report["thresholds"]
    ]
    return _columns(["score above", "neighbours", "share", "ids with one", "share of ids"], rows)


def _agreement(report: dict[str, Any]) -> str:
    if not (agreement := report.get("agreement")):
        return ""
    ids, cover, k = agreement["ids"], agreement["coverage"], agreement["k"]
    rows = [
        ("compared with", agreement["other"]),
        *((name, f"{a} here, {b} there") for name, (a, b) in agreement["parameters"].items()),
        *((name, f"{a} here, {b} there") for name, (a, b) in agreement["filters"].items()),
        *((f"input {name}", f"{a} here, {b} there") for name, (a, b) in agreement["input"].items()),
        ("ids", f"{ids['both']:,} in both; {ids['this']:,} here, {ids['other']:,} there"),
        ("coverage", f"{_percent(cover['this'])} here, {_percent(cover['other'])} there"),
        ("ids with lists in both", f"{agreement['lists_in_both']:,}"),
    ]
    if agreement["lists_in_both"]:
        rows += [
            (f"overlap@{k}", _number(agreement["overlap"])),
            (f"Jaccard@{k}", _number(agreement["jaccard"])),
            ("rank-biased overlap", _number(agreement["rbo"])),
            (f"same first {k}", _percent(agreement["identical"])),
        ]
    return _aligned(rows)


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _columns(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
