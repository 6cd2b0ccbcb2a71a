"""The report's table for terminals and Markdown, and its HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dlrrec_torchrec.store.manifest import Manifest

# metric -> column title, format, whether high or low is best (None: no best value)
COLUMNS = {
    "auc": ("AUC", ".3f", "high"),
    "reachable_share": ("of reachable", ".0%", "high"),
    "attainable_share": ("of attainable", ".0%", "high"),
    "user_auc": ("user AUC", ".3f", "high"),
    "auprc": ("AUPRC", ".3f", "high"),
    "accuracy": ("accuracy", ".3f", "high"),
    "fpr": ("FPR", ".3f", None),
    "loss": ("loss", ".3f", "low"),
    "ne": ("NE", ".3f", "low"),
    "calibration": ("calibration", ".3f", None),
}
DEFINITIONS = {
    "AUC": "Share of (positive, negative) pairs that are ranked correctly; 0.5 is chance.",
    "of reachable": "(AUC − 0.5) / (reachable AUC − 0.5). The reachable AUC is that of ranking by the true "
    "probabilities, which are known in a synthetic world only; no data tell them for sure.",
    "of attainable": "(AUC − 0.5) / (attainable AUC − 0.5). The attainable AUC is that of the synthetic "
    "world's own formula with each user's and item's hidden numbers estimated from the training rows.",
    "user AUC": "AUC within each user who has test rows of both labels, weighted by rows.",
    "AUPRC": "Average precision. A constant reaches the share of positives, so compare with that.",
    "accuracy": "Share of rows on the right side of 0.5. Compare with the majority class.",
    "FPR": "False positives / all negatives at 0.5. Never judge by it alone: a model that says “no” to "
    "everything has rate 0, one that says “yes” to everything has rate 1.",
    "loss": "Mean binary cross-entropy in nats; lower is better.",
    "NE": "Normalised entropy: loss / entropy of the test rows' base rate; below 1 beats that constant.",
    "calibration": "Sum of probabilities / number of positives; 1 is best.",
}
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


def cell(value: Mapping[str, Any], form: str = ".3f", between: str = " ± ") -> str:
    """A metric's mean and, with several seeds, its standard deviation; a dash where it is undefined."""
    if value["mean"] is None:
        return "–"
    text = format(value["mean"], form)
    return text if value["sd"] is None else f"{text}{between}{format(value['sd'], form)}"


def shown_columns(summary: Mapping[str, Any]) -> list[str]:
    """The metrics that get a column: those with a value in some row."""
    rows = [m for _, _, m in _rows(summary)]
    return [key for key in COLUMNS if any(row[key]["mean"] is not None for row in rows)]


def best_names(summary: Mapping[str, Any], key: str) -> set[str]:
    """The models and baselines with the best mean of the metric `key`; none for a metric without a best."""
    goal = COLUMNS[key][2]
    means = {n: m[key]["mean"] for n, m in (summary["models"] | summary["baselines"]).items()}
    means = {n: v for n, v in means.items() if v is not None}
    if goal is None or not means:
        return set()
    worth = {n: v if goal == "high" else -v for n, v in means.items()}
    return {n for n, v in worth.items() if v == max(worth.values())}


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


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence: the first model's AUC against the best baseline's."""
    name, metrics = next(iter(summary["models"].items()))
    baselines = {n: m["auc"]["mean"] for n, m in summary["baselines"].items() if m["auc"]["mean"] is not None}
    if metrics["auc"]["mean"] is None or not baselines:
        return f"The AUC of {name} cannot be compared with a baseline on these test rows."
    rival = max(baselines, key=baselines.get)
    gain = metrics["auc"]["mean"] - baselines[rival]
    side = "above" if gain > 0 else "below"
    shares = {name: metrics[f"{name}_share"]["mean"] for name in ("reachable", "attainable")}
    told = [f"{share:.0%} to the {name} AUC" for name, share in shares.items() if share is not None]
    reached = f" (of the way from chance, {' and '.join(told)})" if told else ""
    return (
        f"{name} has AUC {cell(metrics['auc'])}{reached}; that is {abs(gain):.3f} {side} the best baseline, "
        f"{rival} ({cell(summary['baselines'][rival]['auc'])})."
    )


def text_table(summary: Mapping[str, Any]) -> str:
    """The results for a terminal: headline, models, baselines, notes."""
    columns = shown_columns(summary)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for key in columns:
        table.add_column(COLUMNS[key][0], justify="right", no_wrap=True)
    last = None
    for group, name, metrics in _rows(summary):
        if last not in (None, group):
            table.add_section()
        last = group
        cells = []
        for key in columns:
            mean, *deviation = cell(metrics[key], COLUMNS[key][1], "|").split("|")
            mark = "*" if name in best_names(summary, key) else " "
            cells.append(mean + mark + "".join(f"\n±{d} " for d in deviation))
        table.add_row(name, *cells)
    console = Console(file=io.StringIO(), width=40 + 14 * len(columns), color_system=None, markup=False)
    console.print(headline(summary), soft_wrap=True)
    console.print(table)
    console.print("* best of the column. FPR at a threshold of 0.5; never judge by it alone.", soft_wrap=True)
    for note in summary["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    columns = shown_columns(summary)
    lines = [headline(summary), "", "| | " + " | ".join(COLUMNS[k][0] for k in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for _, name, metrics in _rows(summary):
        cells = [cell(metrics[k], COLUMNS[k][1]) for k in columns]
        marked = [
            f"**{c}**" if name in best_names(summary, k) else c for k, c in zip(columns, cells, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(marked) + " |")
    lines += ["", "Bold: best of the column. Never judge by the false-positive rate (FPR) alone.", ""]
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
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>DLRREC report</title><style>{_CSS}</style></head><body><main>"
        f'<h1>DLRREC report</h1><div class="soft">{escape(headline(summary))}</div>'
        f'<p class="verdict">{escape(verdict(summary))}</p>'
        f'<h2>Results on the test rows</h2><div class="card">{_results(summary)}</div>'
        f"<ul class=soft>{notes}</ul>"
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


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(group, name, metrics) of every row of the results."""
    for group in ("models", "baselines"):
        for name, metrics in summary[group].items():
            yield group, name, metrics
    if summary["truth"]:
        yield "reachable", "true probabilities", summary["truth"]
    if summary["attainable"]:
        yield "reachable", "true form, estimated", summary["attainable"]


def _results(summary: Mapping[str, Any]) -> str:
    columns = shown_columns(summary)
    head = "".join(f'<th title="{escape(DEFINITIONS[COLUMNS[k][0]])}">{COLUMNS[k][0]}</th>' for k in columns)
    lines, last = [], None
    for group, name, metrics in _rows(summary):
        if group != last:
            lines.append(f'<tr class="group"><td colspan="{len(columns) + 1}">{group}</td></tr>')
        last = group
        cells = ""
        for key in columns:
            mark = ' class="best"' if name in best_names(summary, key) else ""
            mean, *deviation = cell(metrics[key], COLUMNS[key][1], "|").split("|")
            small = f"<small>± {deviation[0]}</small>" if deviation else ""
            cells += f"<td{mark}>{mean}{small}</td>"
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


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
