"""A table of methods and metrics: for a terminal, for Markdown, for the HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich import box
from rich.table import Table

Metrics = Mapping[str, Mapping[str, Any]]  # metric -> {"mean", "sd", "seeds"}


@dataclasses.dataclass(frozen=True)
class Column:
    """How a metric is shown."""

    title: str
    form: str  # as of `format`
    goal: str | None  # whether "high" or "low" is best; None: neither
    meaning: str


def cell(value: Mapping[str, Any], form: str = ".3f", between: str = " ± ") -> str:
    """A metric's mean and, with several seeds, its standard deviation; a dash where it is undefined."""
    if value["mean"] is None:
        return "–"
    text = format(value["mean"], form)
    return text if value["sd"] is None else f"{text}{between}{format(value['sd'], form)}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows of metrics in groups.

    Attributes:
        columns: metric -> how it is shown; only those with a value in some row are.
        groups: "models", "baselines", ... -> name -> metrics.
        beside: groups whose rows do not compete for the best of a column, in the same form.
    """

    columns: Mapping[str, Column]
    groups: Mapping[str, Mapping[str, Metrics]]
    beside: Mapping[str, Mapping[str, Metrics]] = dataclasses.field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, str, Metrics]]:
        """(group, name, metrics) of every row."""
        for group, methods in (*self.groups.items(), *self.beside.items()):
            for name, metrics in methods.items():
                yield group, name, metrics

    def shown(self) -> list[str]:
        """The metrics that get a column."""
        return [
            key
            for key in self.columns
            if any(key in metrics and metrics[key]["mean"] is not None for _, _, metrics in self.rows())
        ]

    def best(self, key: str) -> set[tuple[str, str]]:
        """(group, name) of the best mean of a metric; none for a metric without a best."""
        goal = self.columns[key].goal
        means = {
            (group, name): metrics[key]["mean"]
            for group, methods in self.groups.items()
            for name, metrics in methods.items()
            if metrics[key]["mean"] is not None
        }
        if goal is None or not means:
            return set()
        top = max(means.values()) if goal == "high" else min(means.values())
        return {row for row, mean in means.items() if mean == top}

    def text(self) -> Table:
        """For a terminal; the best of a column has a star."""
        columns = self.shown()
        best = {key: self.best(key) for key in columns}
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        table.add_column("", overflow="fold")
        for key in columns:
            table.add_column(self.columns[key].title, justify="right", no_wrap=True)
        last = None
        for group, name, metrics in self.rows():
            if last not in (None, group):
                table.add_section()
            last = group
            cells = []
            for key in columns:
                mean, *deviation = cell(metrics[key], self.columns[key].form, "|").split("|")
                mark = "*" if (group, name) in best[key] else " "
                cells.append(mean + mark + "".join(f"\n±{d} " for d in deviation))
            table.add_row(name, *cells)
        return table

    def markdown(self) -> list[str]:
        """The lines of a Markdown table; the best of a column is bold."""
        columns = self.shown()
        lines = ["| | " + " | ".join(self.columns[k].title for k in columns) + " |"]
        lines.append("|---|" + "---:|" * len(columns))
        for group, name, metrics in self.rows():
            cells = [cell(metrics[key], self.columns[key].form) for key in columns]
            marked = [
                f"**{text}**" if (group, name) in self.best(key) else text
                for key, text in zip(columns, cells, strict=True)
            ]
            lines.append(f"| {name} | " + " | ".join(marked) + " |")
        return lines

    def html(self) -> str:
        """An HTML table; the best of a column has the class `best`."""
        columns = self.shown()
        best = {key: self.best(key) for key in columns}
        head = "".join(
            f'<th title="{escape(self.columns[k].meaning)}">{escape(self.columns[k].title)}</th>'
            for k in columns
        )
        lines, last = [], None
        for group, name, metrics in self.rows():
            if group != last:
                lines.append(f'<tr class="group"><td colspan="{len(columns) + 1}">{escape(group)}</td></tr>')
            last = group
            cells = ""
            for key in columns:
                mark = ' class="best"' if (group, name) in best[key] else ""
                mean, *deviation = cell(metrics[key], self.columns[key].form, "|").split("|")
                small = f"<small>± {deviation[0]}</small>" if deviation else ""
                cells += f"<td{mark}>{mean}{small}</td>"
            lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
        return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
