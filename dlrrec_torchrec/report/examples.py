"""Examples of recommendations: what a user has rated best beside what the model recommends."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

MARKS = {"liked": "✓ liked in a test row", "not liked": "✗ not liked in a test row"}


def examples_html(examples: Mapping[str, Any]) -> str:
    """The users of `evaluation.samples.example_lists`, the history left and the list right of it."""
    if not examples["users"]:
        return f'<p class="soft">No examples: {escape(examples["note"])}.</p>'
    return (
        f'<p class="soft">The users with the most training reviews. Left: their best rated training items. '
        f"Right: the first of what {escape(examples['variant'])} recommends out of the items that they have "
        "no training or validation row of, with the probability that they like it.</p>"
        + "".join(map(_user, examples["users"]))
    )


def _user(user: Mapping[str, Any]) -> str:
    best = "".join(
        f'<li><span>{escape(item["title"])}</span><span class="soft">{item["rating"]:g}</span></li>'
        for item in user["best_rated"]
    )
    listed = "".join(
        f"<li><span>{escape(item['title'])}{_mark(item['test_row'])}</span>"
        f'<span class="soft">{item["probability"]:.0%}</span></li>'
        for item in user["recommended"]
    )
    return (
        f'<div class="card example"><h3>User {escape(user["user"])}, {user["training_rows"]:,} training '
        f'reviews</h3><div class="sides"><div><b>Rated best</b><ol>{best}</ol></div>'
        f"<div><b>Recommended</b><ol>{listed}</ol></div></div></div>"
    )


def _mark(said: str | None) -> str:
    return f' <small class="mark">{MARKS[said]}</small>' if said in MARKS else ""
