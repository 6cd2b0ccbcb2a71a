"""The results of an experiment as Markdown, HTML and CSV."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from dlrrec_torchrec.experiments.dots import draw_cells
from dlrrec_torchrec.experiments.findings import findings, interval_text, varying_factors, where
from dlrrec_torchrec.experiments.gathered import Outcome, Results
from dlrrec_torchrec.experiments.measures import COSTS, METRICS
from dlrrec_torchrec.report.css import CSS
from dlrrec_torchrec.store.folders import write_text_atomic

FIGURE = "cells.png"
PUBLISHED = "published"
_INTERVALS = (
    "In brackets: 95 % interval of the mean difference over the seeds, by drawing the test users again, each "
    "with her rows of all seeds; beside it the deviation of the seeds' own differences."
)


def write_results(results: Results, out: Path, command: str) -> str:
    """Write OUT/{table.md, index.html, cells.csv, differences.csv, cells.png}; returns the Markdown.

    Args:
        command: that made it, for the pages.
    """
    caption = draw_cells(results, out / FIGURE)
    text = markdown(results, command, caption)
    write_text_atomic(out / "table.md", text)
    write_text_atomic(out / "index.html", html(results, command, caption and (out / FIGURE, caption)))
    write_text_atomic(out / "cells.csv", _csv(cell_rows(results)))
    write_text_atomic(out / "differences.csv", _csv(difference_rows(results)))
    return text


def table(results: Results) -> tuple[list[str], list[list[str]], int]:
    """Titles of the columns, rows of text, and how many columns from the left are words.

    A row for each cell and protocol: its levels, its metrics as mean ± deviation each with the published
    number beside it where any cell has one, and its costs.
    """
    factors = varying_factors(results)
    metrics = [*dict.fromkeys((*results.experiment.metrics, *COSTS))]
    known = {metric for outcome in results.outcomes for metric in outcome.published}
    titles = list(factors)
    for metric in metrics:
        titles += [METRICS[metric].title, *([PUBLISHED] if metric in known else [])]
    rows = []
    for outcome in results.outcomes:
        row = [outcome.levels.get(name, "") for name in factors]
        for metric in metrics:
            row.append(value_text(outcome, metric))
            if metric in known:
                number = outcome.published.get(metric)
                row.append("" if number is None else f"{number:.4g}")
        rows.append(row)
    return titles, rows, len(factors)


def table_text(results: Results) -> str:
    """The table and the findings for a terminal."""
    titles, rows, words = table(results)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if place < words else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(
        [headline(results), *lines, "", *findings(results), *map("note: {}".format, _notes(results))]
    )


def value_text(outcome: Outcome, metric: str) -> str:
    """Mean ± deviation of the seeds; of costs the mean alone; a dash where nothing is defined."""
    mean, deviation, form = outcome.mean(metric), outcome.deviation(metric), METRICS[metric].form
    if not np.isfinite(mean):
        return "–"
    if metric in COSTS or not np.isfinite(deviation):
        return format(mean, form)
    return f"{mean:{form}} ± {deviation:{form}}"


def headline(results: Results) -> str:
    """Seeds and cells of the table."""
    seeds = {len(outcome.folders) for outcome in results.outcomes}
    fewest, most = min(seeds), max(seeds)
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    what = "seed" if most == 1 else "seeds, mean ± standard deviation"
    return f"{len(results.outcomes)} cells, {number} {what}"


def markdown(results: Results, command: str, caption: str | None = None) -> str:
    """Title, command, table, findings, differences and notes."""
    experiment = results.experiment
    titles, rows, words = table(results)
    lines = [f"## {experiment.title}", "", experiment.question, "", "```text", command, "```", ""]
    lines += [headline(results), "", _row(titles), "|" + "---|" * words + "---:|" * (len(titles) - words)]
    lines += [_row(row) for row in rows]
    lines += ["", " ".join(findings(results)), ""]
    lines += [f"![{caption}]({FIGURE})", ""] if caption else []
    if results.differences:
        heads, found = difference_table(results)
        lines += ["<details><summary>Differences</summary>", "", _row(heads), "|" + "---|" * len(heads)]
        lines += [*(_row(row) for row in found), "", _INTERVALS, "", "</details>", ""]
    return "\n".join(lines + [f"- {note}" for note in _notes(results)]) + "\n"


def difference_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of text of all differences."""
    varying = varying_factors(results)
    rows = []
    for found in results.differences:
        deviation = f" ± {found.deviation:.3f}" if len(found.seeds) > 1 else ""
        rows.append(
            [
                f"{found.level} less {found.base}",
                where(found.levels, varying, [found.factor]),
                METRICS[found.metric].title,
                interval_text(found) + deviation,
                found.verdict,
            ]
        )
    return ["difference", "where", "metric", "mean [interval] ± deviation", "verdict"], rows


def html(results: Results, command: str, figure: tuple[Path, str] | None) -> str:
    """One page with everything, the figure embedded."""
    experiment = results.experiment
    titles, rows, words = table(results)
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in findings(results))
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(results))
    heads, differences = difference_table(results)
    meanings = "".join(
        f"<dt>{escape(METRICS[name].title)}</dt><dd>{escape(METRICS[name].meaning)}</dd>"
        for name in dict.fromkeys((*experiment.metrics, *COSTS))
    )
    image = ""
    if figure:
        data = base64.b64encode(figure[0].read_bytes()).decode()
        image = (
            f'<div class="figures"><figure><img alt="{escape(figure[1])}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(figure[1])}</figcaption></figure></div>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(experiment.title)}</title><style>{CSS}</style></head><body><main>"
        f"<h1>{escape(experiment.title)}</h1><p class=soft>{escape(experiment.question)}</p>"
        f"<p><code>{escape(command)}</code></p><div class=verdict>{told}</div>"
        f"<h2>Cells</h2><p class=soft>{escape(headline(results))}</p>"
        f"{_html_table(titles, rows, words)}{image}"
        f"<h2>Differences</h2>{_html_table(heads, differences, len(heads))}"
        f"<p class=soft>{escape(_INTERVALS)}</p>"
        f"<h2>Notes</h2><ul>{notes}</ul><h2>Columns</h2><dl>{meanings}</dl></main></body></html>\n"
    )


def cell_rows(results: Results) -> list[dict[str, object]]:
    """A row for each cell and seed, with every metric; and the published numbers."""
    rows = []
    for outcome in results.outcomes:
        for place, seed in enumerate(outcome.folders):
            values = {name: numbers[place] for name, numbers in outcome.values.items()}
            published = {f"{PUBLISHED}_{name}": number for name, number in outcome.published.items()}
            rows.append(dict(outcome.levels) | {"seed": seed} | values | published)
    return rows


def difference_rows(results: Results) -> list[dict[str, object]]:
    """A row for each difference."""
    return [
        {
            **{name: level for name, level in found.levels.items() if name != found.factor},
            "factor": found.factor,
            "level": found.level,
            "base": found.base,
            "metric": found.metric,
            "difference": found.mean,
            "low": found.interval.low,
            "high": found.interval.high,
            "deviation": found.deviation,
            "seeds": len(found.seeds),
            "verdict": found.verdict,
        }
        for found in results.differences
    ]


def _notes(results: Results) -> list[str]:
    missing = [f"{title}: not in the table: {why}" for title, why in results.missing.items()]
    return [*results.experiment.notes, *missing]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    def kind(place: int) -> str:
        return ' class="text"' if place < words else ""

    head = "".join(f"<th{kind(place)}>{escape(title)}</th>" for place, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(place)}>{escape(text)}</td>" for place, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<div class=card><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _csv(rows: Sequence[dict[str, object]]) -> str:
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
