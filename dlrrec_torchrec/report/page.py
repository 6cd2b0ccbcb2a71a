"""The report for terminals, as Markdown, and as an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from dlrrec_torchrec.report.about import Origin, data_html, origin_html
from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.css import CSS
from dlrrec_torchrec.report.examples import examples_html
from dlrrec_torchrec.report.in_words import sentences
from dlrrec_torchrec.report.results import (
    LISTS,
    RATINGS,
    all_difference_lines,
    content_alone,
    lists,
    lists_headline,
    ratings,
)
from dlrrec_torchrec.report.space_quality import space_html, space_sentences
from dlrrec_torchrec.report.swing_quality import swing_html
from dlrrec_torchrec.store.manifest import Manifest

_BRACKETS = (
    "In brackets: 95 % interval of the difference, by drawing the test users again; better or worse only "
    "where it excludes zero."
)
_CONTENT = (
    "By content alone: no id of an item counts. List head: its logits; likes: cosines of the reduced vectors "
    "with those of the items that the user liked."
)


def headline(summary: Mapping[str, Any]) -> str:
    """One line: protocol, seeds, rows, share of positives, reachable and attainable AUC."""
    seeds = "1 seed" if summary["seeds"] == 1 else f"{summary['seeds']} seeds, mean ± standard deviation"
    rows, positives = sum(summary["rows"]), sum(summary["positives"])
    parts = [f"protocol {summary['protocol']}", seeds, f"{round(rows / summary['seeds']):,} test rows"]
    if rows:
        parts.append(f"{positives / rows:.1%} positive")
    for name in ("reachable", "attainable"):
        if summary[f"{name}_auc"]["mean"] is not None:
            parts.append(f"{name} AUC {cell(summary[f'{name}_auc'])}")
    return " · ".join(parts)


def text_table(summary: Mapping[str, Any]) -> str:
    """The results for a terminal: headline, test rows, lists, differences, notes."""
    tables = ratings(summary), lists(summary)
    columns = max(len(table.shown()) for table in tables)
    console = Console(file=io.StringIO(), width=40 + 14 * columns, color_system=None, markup=False)
    of_ratings, of_lists = all_difference_lines(summary)
    console.print(headline(summary), soft_wrap=True)
    console.print(tables[0].text())
    console.print("* best of the column. FPR at a threshold of 0.5; never judge by it alone.", soft_wrap=True)
    for line in of_ratings:
        console.print(line, soft_wrap=True)
    if tables[1].shown():
        console.print(f"\nlists: {lists_headline(summary)}", soft_wrap=True)
        console.print(tables[1].text())
        for line in of_lists:
            console.print(line, soft_wrap=True)
    for head, table, differences in content_alone(summary):
        console.print(f"\n{head}", soft_wrap=True)
        console.print(table.text())
        for line in differences:
            console.print(line, soft_wrap=True)
    if of_ratings or of_lists:
        console.print(_BRACKETS, soft_wrap=True)
    for note in summary["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    of_ratings, of_lists = all_difference_lines(summary)
    lines = [headline(summary), "", *ratings(summary).markdown()]
    lines += ["", "Bold: best of the column. Never judge by the false-positive rate (FPR) alone.", ""]
    lines += [f"- {line}" for line in of_ratings]
    if lists(summary).shown():
        lines += ["", f"Lists: {lists_headline(summary)}", "", *lists(summary).markdown(), ""]
        lines += [f"- {line}" for line in of_lists]
    for head, table, differences in content_alone(summary):
        lines += ["", head, "", *table.markdown(), "", *(f"- {line}" for line in differences)]
    told = space_sentences(summary["space"])
    lines += ["", "The reduced space:", "", *(f"- {line}" for line in told)] if told else []
    lines += ["", _BRACKETS, ""] if of_ratings or of_lists else [""]
    return "\n".join(lines + [f"- {note}" for note in summary["notes"]]) + "\n"


def html_page(
    summary: Mapping[str, Any],
    stages: Mapping[str, Sequence[Manifest]],
    figures: Mapping[Path, str],
    origin: Origin,
    examples: Mapping[str, Any] | None = None,
) -> str:
    """The whole report in one file: no links to anything outside it, images embedded.

    Args:
        stages: stage -> the manifest of each seed.
        figures: PNG file -> caption, in order; those of the differences and of the space stand with these.
        examples: as `evaluation.samples.example_lists` returns.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary["notes"])
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(summary))
    first = [_figure(path, caption) for path, caption in figures.items() if path.stem == "differences"]
    of_space = {p: text for p, text in figures.items() if p.stem.startswith(("space_", "swing_"))}
    others = {p: t for p, t in figures.items() if p not in of_space and p.stem != "differences"}
    images = "".join(_figure(path, text) for path, text in others.items())
    terms = "".join(
        f"<dt>{escape(column.title)}</dt><dd>{escape(column.meaning)}</dd>"
        for column in (*RATINGS.values(), *LISTS.values())
    )
    of_ratings, of_lists = all_difference_lines(summary)
    top_n = ""
    if lists(summary).shown():
        top_n = (
            f'<h2>Lists of items</h2><p class="soft">{escape(lists_headline(summary))}</p>'
            f'<div class="card">{lists(summary).html()}</div>'
        )
    for number, (head, table, gaps) in enumerate(content_alone(summary)):
        title = "" if number else f'<h2>Lists by content alone</h2><p class="soft">{_CONTENT}</p>'
        top_n += f'{title}<p>{escape(head)}</p><div class="card">{table.html()}</div>{_items(gaps)}'
    differences = ""
    if first:
        differences = (
            f'<h2>Differences from the best other method</h2><div class="figures">{first[0]}'
            f"<div>{_items([*of_ratings, *of_lists])}<p class=soft>{_BRACKETS}</p></div></div>"
        )
    shown = f"<h2>Examples of recommendations</h2>{examples_html(examples)}" if examples else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>DLRREC report</title><style>{CSS}</style></head><body><main>"
        f'<h1>DLRREC report</h1><div class="soft">{escape(headline(summary))}</div>'
        f'<div class="verdict">{told}</div>{origin_html(origin, stages)}'
        f'<h2>Results on the test rows</h2><div class="card">{ratings(summary).html()}</div>'
        f"{top_n}{differences}"
        f"{f'<h2>Notes</h2><ul class=soft>{notes}</ul>' if notes else ''}{shown}{_space(summary, of_space)}"
        f'<h2>Figures</h2><div class="figures">{images}</div>'
        f"<h2>Data</h2>{_data(stages, origin)}"
        f'<h2>Cost of each stage</h2><div class="card">{_costs(stages)}</div>'
        f'<h2>What the numbers mean</h2><div class="card"><dl>{terms}</dl></div>'
        "<p class=soft>Protocol <b>strict</b>: filters, vocabularies, features and the model's selection see "
        "no test row; the test rows are read once. Protocol <b>paper</b>: the best epoch is selected on the "
        "test rows, as published, so its numbers are optimistic. Numbers of different protocols must not be "
        "compared.</p>"
        "</main></body></html>\n"
    )


def _space(summary: Mapping[str, Any], figures: Mapping[Path, str]) -> str:
    """The section on the reduced space and on SWING; "" where nothing is known of either."""
    tables = [space_html(summary["space"]), swing_html(summary.get("swing", {}))]
    if not any(tables) and not figures:
        return ""
    images = "".join(_figure(path, text) for path, text in figures.items())
    return (
        f"<h2>The reduced space, and SWING</h2>{_items(space_sentences(summary['space']))}{tables[0]}"
        f'{tables[1]}<div class="figures">{images}</div>'
    )


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _data(stages: Mapping[str, Sequence[Manifest]], origin: Origin) -> str:
    """The tables of `about.data_html`, with a word on which seed they are of."""
    several = any(len(manifests) > 1 for manifests in stages.values())
    seed = "<p class=soft>Of the first seed.</p>" if several else ""
    tables = data_html(stages, origin)
    return seed + tables if tables else '<p class="soft">No manifest of an earlier stage was found.</p>'


def _costs(stages: Mapping[str, Sequence[Manifest]]) -> str:
    """Seconds (mean) and peak memory (largest) of every stage."""
    lines = []
    for name, manifests in stages.items():
        seconds = sum(m.seconds for m in manifests) / len(manifests)
        memory = max(m.peak_memory_mib for m in manifests)
        lines.append(
            f"<tr><td>{escape(name)}</td><td>{seconds:,.1f}</td><td>{memory:,.0f}</td>"
            f'<td class="text">{escape(manifests[0].rows_text)}</td></tr>'
        )
    head = '<th>stage</th><th>seconds</th><th>peak memory (MiB)</th><th class="text">rows</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
