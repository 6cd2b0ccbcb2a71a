"""The report for terminals, as Markdown, and as an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from dlrrec_torchrec.report.comparison import cell
from dlrrec_torchrec.report.results import (
    LISTS,
    RATINGS,
    all_difference_lines,
    content_alone,
    lists,
    lists_headline,
    ratings,
    verdict,
)
from dlrrec_torchrec.store.manifest import Manifest

_BRACKETS = (
    "In brackets: 95 % interval of the difference, by drawing the test users again; better or worse only "
    "where it excludes zero."
)
_CONTENT = (
    "By content alone: no id of an item counts. List head: its logits; likes: cosines of the reduced vectors "
    "with those of the items that the user liked."
)
_CSS = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#5b6575; --line:#dde2ea; --page:#f6f7f9; --card:#fff;
  --accent:#0072b2; --best:#e3f0f9; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#9aa5b5; --line:#333b48; --page:#14181f;
  --card:#1c222b; --accent:#56b4e9; --best:#1d3a4f; } }
* { box-sizing:border-box } body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1080px; margin:0 auto; padding:2.2rem 1.2rem 4rem }
h1 { font-size:1.7rem; margin:0 } h2 { font-size:1.15rem; margin:2.4rem 0 .7rem }
.soft, figcaption, small { color:var(--soft) } .verdict { font-size:1.08rem; margin:1.1rem 0 }
summary { cursor:pointer; margin:.8rem 0 .4rem }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.4rem 1rem;
  overflow-x:auto }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th,td { padding:.42rem .6rem; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child,td:first-child,td.text,th.text { text-align:left } td.text { white-space:normal }
tr:last-child td { border-bottom:0 } th { font-weight:600; color:var(--soft); font-size:.87rem }
tr.group td { color:var(--soft); font-size:.8rem; text-transform:uppercase; letter-spacing:.06em; border:0;
  padding-top:.9rem }
td.best { background:var(--best); font-weight:600; border-radius:4px } td small { display:block }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr)); gap:1rem }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.8rem }
figure.wide { grid-column:1/-1 }
img { width:100%; height:auto; background:#fff; border-radius:6px; display:block }
figcaption { font-size:.87rem; padding-top:.5rem } ul { padding-left:1.2rem; margin:.4rem 0 }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.3rem 1.2rem; margin:.6rem 0 }
dt { font-weight:600 } dd { margin:0; color:var(--soft) }
h3 { font-size:.87rem; color:var(--soft); margin:.9rem 0 .2rem }
dl.facts { display:block; columns:17rem; column-gap:2.5rem; margin:.4rem 0 }
dl.facts div { display:flex; justify-content:space-between; gap:1rem; break-inside:avoid;
  border-bottom:1px solid var(--line); padding:.15rem 0 }
dl.facts dt { font-weight:400; color:var(--soft) } dl.facts dd { color:var(--ink); text-align:right }
"""


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
    lines += ["", _BRACKETS, ""] if of_ratings or of_lists else [""]
    return "\n".join(lines + [f"- {note}" for note in summary["notes"]]) + "\n"


def html_page(
    summary: Mapping[str, Any], stages: Mapping[str, Sequence[Manifest]], figures: Mapping[Path, str]
) -> str:
    """The whole report in one file: no links to anything outside it, images embedded.

    Args:
        stages: stage -> the manifest of each seed.
        figures: PNG file -> caption.
    """
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary["notes"])
    images = "".join(_figure(path, caption) for path, caption in figures.items())
    terms = "".join(
        f"<dt>{escape(column.title)}</dt><dd>{escape(column.meaning)}</dd>"
        for column in (*RATINGS.values(), *LISTS.values())
    )
    of_ratings, of_lists = all_difference_lines(summary)
    top_n = ""
    if lists(summary).shown():
        top_n = (
            f'<h2>Lists of items</h2><p class="soft">{escape(lists_headline(summary))}</p>'
            f'<div class="card">{lists(summary).html()}</div>{_items(of_lists)}'
        )
    for number, (head, table, differences) in enumerate(content_alone(summary)):
        title = "" if number else f'<h2>Lists by content alone</h2><p class="soft">{_CONTENT}</p>'
        top_n += f'{title}<p>{escape(head)}</p><div class="card">{table.html()}</div>{_items(differences)}'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>DLRREC report</title><style>{_CSS}</style></head><body><main>"
        f'<h1>DLRREC report</h1><div class="soft">{escape(headline(summary))}</div>'
        f'<p class="verdict">{escape(verdict(summary))}</p>'
        f'<h2>Results on the test rows</h2><div class="card">{ratings(summary).html()}</div>'
        f"{_items(of_ratings)}{top_n}<p class=soft>{_BRACKETS}</p><ul class=soft>{notes}</ul>"
        f'<h2>Figures</h2><div class="figures">{images}</div>'
        f"<h2>Data</h2>{_data(stages)}"
        f'<h2>Cost of each stage</h2><div class="card">{_costs(stages)}</div>'
        f'<h2>What the numbers mean</h2><div class="card"><dl>{terms}</dl></div>'
        "<p class=soft>Protocol <b>strict</b>: filters, vocabularies, features and the model's selection see "
        "no test row; the test rows are read once. Protocol <b>paper</b>: the best epoch is selected on the "
        "test rows, as published, so its numbers are optimistic. Numbers of different protocols must not be "
        "compared.</p>"
        "</main></body></html>\n"
    )


def facts_html(facts: Mapping[str, Any], title: str = "") -> str:
    """A stage's facts: plain values as a list, mappings of mappings with equal keys as a table."""
    plain = {k: v for k, v in facts.items() if not isinstance(v, Mapping)}
    lines = "".join(f"<div><dt>{_words(k)}</dt><dd>{_fact(v)}</dd></div>" for k, v in plain.items())
    head = f"<h3>{title}</h3>" if title else ""
    parts = [f'{head}<dl class="facts">{lines}</dl>'] if plain else []
    for key, value in facts.items():
        if not isinstance(value, Mapping) or not value:
            continue
        name = f"{title} · {_words(key)}" if title else _words(key)
        inner = list(value.values())
        same_keys = all(isinstance(v, Mapping) and list(v) == list(inner[0]) for v in inner)
        if same_keys and not any(isinstance(x, Mapping) for v in inner for x in v.values()):
            columns = "".join(f"<th>{_words(k)}</th>" for k in inner[0])
            rows = "".join(
                f"<tr><td>{_words(k)}</td>{''.join(f'<td>{_fact(x)}</td>' for x in v.values())}</tr>"
                for k, v in value.items()
            )
            parts.append(f"<h3>{name}</h3><table><tr><th></th>{columns}</tr>{rows}</table>")
        else:
            parts.append(facts_html(value, name))
    return "".join(parts)


def _words(key: Any) -> str:
    return escape(str(key).replace("_", " "))


def _fact(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        short = len(value) <= 12 and not any(isinstance(v, (Mapping, list, tuple)) for v in value)
        return ", ".join(map(_fact, value)) if short else f"{len(value):,} values"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _data(stages: Mapping[str, Sequence[Manifest]]) -> str:
    """Rows and facts of the stages before training, of the first seed."""
    parts = []
    for name in ("ingest", "split", "extract", "swing", "prepare"):
        if name not in stages:
            continue
        manifest = stages[name][0]
        rows = facts_html({"rows": manifest.rows}) if manifest.rows else ""
        seed = " <small>(first seed)</small>" if len(stages[name]) > 1 else ""
        parts.append(
            f"<details open><summary><b>{escape(name)}</b>{seed}</summary>"
            f'<div class="card">{rows}{facts_html(manifest.facts)}</div></details>'
        )
    return "".join(parts) or '<p class="soft">No manifest of an earlier stage was found.</p>'


def _costs(stages: Mapping[str, Sequence[Manifest]]) -> str:
    """Seconds (mean) and peak memory (largest) of every stage."""
    lines = []
    for name, manifests in stages.items():
        seconds = sum(m.seconds for m in manifests) / len(manifests)
        memory = max(m.peak_memory_mib for m in manifests)
        rows = ", ".join(f"{v:,} {k}" for k, v in manifests[0].rows.items())
        lines.append(
            f"<tr><td>{escape(name)}</td><td>{seconds:,.1f}</td><td>{memory:,.0f}</td>"
            f'<td class="text">{escape(rows)}</td></tr>'
        )
    head = '<th>stage</th><th>seconds</th><th>peak memory (MiB)</th><th class="text">rows</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    wide = ' class="wide"' if path.stem in ("learning_curves", "swing_scores", "confusion") else ""
    text = escape(caption)
    return (
        f'<figure{wide}><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
