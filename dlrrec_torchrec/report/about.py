"""What a report was made of: the data, the command and the settings, and what the stages left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlrrec_torchrec.store.manifest import Manifest

Stages = Mapping[str, Sequence[Manifest]]  # stage -> the manifest of each seed
SHOWN_ROWS = 5  # rejected rows that are shown
DROPPED = {
    "min_reviews": "users or items with too few reviews (split.min_reviews)",
    "val_unknown_user": "validation rows of users without a training row",
    "val_unknown_item": "validation rows of items without a training row",
    "val_unknown_both": "validation rows of users and items without a training row",
    "test_unknown_user": "test rows of users without a training row",
    "test_unknown_item": "test rows of items without a training row",
    "test_unknown_both": "test rows of users and items without a training row",
}
PARTS = {"train": "training", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """How the run was made.

    Attributes:
        made: date and time of the report.
        command: what makes this run again, "" where unknown.
        settings: "train.epochs" -> value, those that differ from the defaults; None where unknown.
        items: manifest of the item table, None without one.
        rejected: "reviews" and "items" -> the first rejected rows: `file`, `line`, `reason`, `row`.
    """

    made: str = ""
    command: str = ""
    settings: Mapping[str, Any] | None = None
    items: Manifest | None = None
    rejected: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)


def first_rejected(folder: Path) -> list[dict[str, Any]]:
    """The first rows of `rejected.jsonl` in a folder of ingest; none without the file."""
    path = folder / "rejected.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line, _ in zip(stream, range(SHOWN_ROWS), strict=False)]


def data_line(stages: Stages) -> str:
    """One line: source, reviews, users, items, share of likes."""
    if "ingest" not in stages:
        return ""
    manifest = stages["ingest"][0]
    settings, facts = manifest.config, manifest.facts
    source = str(settings.get("source", ""))
    if source == "synthetic":
        source = f"synthetic world, size {settings.get('size')}"
    elif settings.get("reviews"):
        source += f", {settings['reviews']}"
    parts = [source] if source else []
    parts += [f"{manifest.rows['reviews']:,} reviews"] if "reviews" in manifest.rows else []
    parts += [f"{facts[key]:,} {key}" for key in ("users", "items") if key in facts]
    split = stages["split"][0].facts if "split" in stages else {}
    kept = split.get("parts", {}).values()
    if rows := sum(part["rows"] for part in kept):
        liked = sum(part["positives"] for part in kept) / rows
        from_rating = f" (from {split['positive_rating']:g})" if "positive_rating" in split else ""
        parts.append(f"{liked:.0%} of those kept liked{from_rating}")
    return " · ".join(parts)


def origin_html(origin: Origin, stages: Stages) -> str:
    """A definition list: data set, date, command, settings."""
    rows = {"Data set": escape(data_line(stages)), "Report made": escape(origin.made)}
    rows["Command"] = f"<code>{escape(origin.command)}</code>" if origin.command else ""
    if origin.settings is not None:
        listed = [
            f"<li><code>{escape(k)}: {escape(_value(v))}</code></li>" for k, v in origin.settings.items()
        ]
        rows["Settings other than the defaults"] = f"<ul>{''.join(listed)}</ul>" if listed else "none"
    filled = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows.items() if text)
    return f'<dl class="about">{filled}</dl>' if filled else ""


def rejected_html(origin: Origin, stages: Stages) -> str:
    """What ingest did not take: how many rows for which reason, and the first of them."""
    found = {"reviews": stages["ingest"][0] if "ingest" in stages else None, "items": origin.items}
    lines = []
    for kind, manifest in found.items():
        reasons = manifest.facts.get("rejected", {}) if manifest else {}
        read = (manifest.facts.get("read") if manifest else 0) or 0
        for reason, count in reasons.items():
            share = f"{count / read:.2%}" if read else "–"
            lines.append([kind, reason, f"{count:,}", share])
    if not lines:
        known = [kind for kind, manifest in found.items() if manifest]
        return f"<p>No row of {' or '.join(known)} was rejected.</p>" if known else ""
    table = plain_table(["table", "reason", "rows", "of those read"], lines, texts=2)
    samples = [
        [kind, row.get("file", ""), row.get("line", ""), row.get("reason", ""), _cut(row.get("row"))]
        for kind, rows in origin.rejected.items()
        for row in rows
    ]
    if samples:
        head = ["table", "file", "line", "reason", "row"]
        rows = plain_table(head, samples, texts=5)
        table += f"<details><summary>The first rejected rows</summary>{rows}</details>"
    return table


def data_html(stages: Stages, origin: Origin) -> str:
    """Rejected rows, the split, the content and the neighbours, of the first seed."""
    parts = [f"<h3>Rejected at ingest</h3>{rejected_html(origin, stages)}"] if "ingest" in stages else []
    manifests = {name: rows[0] for name, rows in stages.items()}
    if "ingest" in manifests and (ratings := manifests["ingest"].facts.get("ratings")):
        total = sum(ratings.values()) or 1
        rows = [[f"{float(k):g}", f"{v:,}", f"{v / total:.0%}"] for k, v in ratings.items()]
        parts.append(f"<h3>Ratings</h3>{plain_table(['rating', 'reviews', 'share'], rows)}")
    if "split" in manifests and (split := manifests["split"].facts.get("parts")):
        rows = [
            [PARTS.get(name, name), f"{p['rows']:,}", f"{p['users']:,}", f"{p['items']:,}",
             f"{p['positives'] / p['rows']:.1%}" if p["rows"] else "–"]
            for name, p in split.items()
        ]  # fmt: skip
        parts.append(f"<h3>Split</h3>{plain_table(['part', 'rows', 'users', 'items', 'liked'], rows)}")
    if "split" in manifests:
        dropped = manifests["split"].facts.get("dropped", {})
        rows = [[DROPPED.get(key, key.replace("_", " ")), f"{n:,}"] for key, n in dropped.items() if n]
        if rows:
            parts.append(f"<h3>Left out by the split</h3>{plain_table(['what', 'reviews'], rows, texts=1)}")
    parts += [_content(manifests["extract"])] if "extract" in manifests else []
    if "swing" in manifests:
        rows = [
            [kind, f"{f['ids']:,}", f"{f['coverage']:.0%}", f"{f['neighbors']:,}"]
            for kind, f in manifests["swing"].facts.items()
            if isinstance(f, Mapping) and {"ids", "coverage", "neighbors"} <= f.keys()
        ]
        if rows:
            head = ["of", "entities", "with a neighbour", "neighbours kept"]
            parts.append(f"<h3>SWING neighbours</h3>{plain_table(head, rows)}")
    parts += [_coverage(manifests["prepare"])] if "prepare" in manifests else []
    return "".join(part for part in parts if part)


def _content(manifest: Manifest) -> str:
    facts = manifest.facts
    known = {
        "encoder": "encoder of the texts",
        "model": "writer of summaries, tags and captions",
        "texts": "texts to be embedded",
        "reviews_with_words": "training reviews with words",
        "reviews_with_pictures": "training reviews with pictures",
    }
    rows = [[text, _value(facts[key])] for key, text in known.items() if key in facts]
    for part, text in (("price", "price tags"), ("categories", "first 5 categories")):
        score = (
            facts.get("agreement", {}).get(part, {}).get("macro_f1" if part == "price" else "macro_f1_at_5")
        )
        score = score["extracted"] if isinstance(score, Mapping) else score
        if score is not None:
            rows.append([f"agreement of {text} with the source's (macro-F1)", f"{score:.3f}"])
    return f"<h3>Content</h3>{plain_table(['', ''], rows, texts=2)}" if rows else ""


def _coverage(manifest: Manifest) -> str:
    covered = manifest.facts.get("coverage")
    if not covered:
        return ""
    names = list(dict.fromkeys(key for values in covered.values() for key in values))
    rows = [
        [
            _of_rows(name),
            *(f"{v[name]:.0%}" if name in v else "–" for v in covered.values()),
        ]
        for name in names
    ]
    head = ["rows that have", *(PARTS.get(part, part) for part in covered)]
    return f"<h3>What the rows have</h3>{plain_table(head, rows)}"


def _of_rows(name: str) -> str:
    """What a column of the rows holds, in words: `item_text`, `user_positives`."""
    return name.replace("_positives", "'s SWING neighbours").replace("_", " ")


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """An HTML table; the first `texts` columns are words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if k < texts else "" for k in range(len(cells))]
        return "".join(f"<{tag}{k}>{escape(str(c))}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    top = f"<thead><tr>{line(head, 'th')}</tr></thead>" if any(head) else ""
    return f'<div class="card"><table>{top}<tbody>{body}</tbody></table></div>'


def _value(value: Any) -> str:
    """A setting or fact as a reader writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cut(row: Any, most: int = 120) -> str:
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"
