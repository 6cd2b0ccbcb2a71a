"""The quality of the reduced space: what `evaluation.space` has measured, in words, tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from dlrrec_torchrec.report.about import plain_table
from dlrrec_torchrec.report.results import over_seeds
from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, new_figure, save

Space = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # variant -> side -> the facts of each seed
CONTENT = "content vectors"
PLURAL = {"user": "users", "item": "items"}
MEANING = {
    "distance to neighbours": "Cosine distance (1 - cosine) to the entity's SWING neighbours, mean.",
    "to others' ones": "The same to neighbours of random other entities that are none of its own.",
    "to random ones": "The same to entities at random that are none of its neighbours.",
    "neighbour nearer": "Share of the pairs of an own neighbour and another's whose own is the nearer one; "
    "50 % is chance. In brackets the 95 % interval over entities.",
    "effective rank": "exp of the entropy of the singular values of a tower's vectors over their sum (Roy "
    "and Vetterli 2007): the directions in use, of the tower's width R.",
    "uniformity": "ln of the mean of exp(-2 distance^2) of pairs on the unit sphere (Wang and Isola 2020); 0 "
    "is one point, lower is more evenly spread.",
    "content kept": "Share of the content vectors' variance that is linear in the reduced ones, and the most "
    "that so many numbers can keep (principal components).",
}


def gather_space(found: Sequence[Mapping[str, Any]], variants: Sequence[str]) -> dict[str, Any]:
    """The part "space" of all seeds' evaluations in one: variant -> side -> the facts of each seed."""
    return {
        name: {side: [one[name][side] for one in found] for side in found[0][name]}
        for name in variants
        if all(name in one and one[name].keys() == found[0][name].keys() for one in found)
    }


def space_sentences(space: Space) -> list[str]:
    """For users and for items, how often an own neighbour is nearer than one of another entity."""
    lines = []
    for side, rows in _by_side(space).items():
        shares = {label: value[0] for label, value in _nearer(rows).items() if value is not None}
        if not shares:
            lines.append(
                f"{PLURAL[side].capitalize()}: none with content has a SWING neighbour with content."
            )
            continue
        told = ", ".join(f"{share:.0%} by the vectors of {name}" for name, share in shares.items())
        told = told.replace(f"by the vectors of {CONTENT}", "by the content vectors before the towers")
        lines.append(
            f"{PLURAL[side].capitalize()}: of an own SWING neighbour and one of another {side} the own is "
            f"the nearer one in {told}."
        )
        for name, seeds in rows.items():
            known = [one["less"] for one in seeds if one.get("less") and one["less"]["low"] is not None]
            if known:
                mean, low, high, _ = over_seeds(known)
                first = next(iter(rows))
                lines.append(
                    f"{PLURAL[side].capitalize()}: how often the own neighbour is nearer, {first} less "
                    f"{name}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]."
                )
    return lines


def space_html(space: Space) -> str:
    """A table for users and one for items, and what their columns mean; "" without any."""
    parts = []
    for side, rows in _by_side(space).items():
        before = next(iter(rows.values()))
        lines = [[CONTENT, *_distances(before, "before"), _ranks(before, "content_rank"), "–", "–"]]
        for name, seeds in rows.items():
            kept = f"{_share(seeds, 'kept')} of {_share(seeds, 'kept_most')}"
            ranks, uniform = _ranks(seeds, "effective_rank"), _number(_mean(seeds, "uniformity"), ".2f")
            lines.append([name, *_distances(seeds, "after"), ranks, uniform, kept])
        number, paired = (_mean(before, key) for key in ("entities", "with_neighbours"))
        head = f"{PLURAL[side].capitalize()}: {number:,.0f}, {paired:,.0f} with a SWING neighbour"
        parts.append(f"<h3>{head}</h3>{plain_table(['vectors', *MEANING], lines)}")
    if not parts:
        return ""
    terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in MEANING.items())
    return "".join(parts) + f"<details><summary>What the columns mean</summary><dl>{terms}</dl></details>"


def draw_distances(space: Space, path: Path) -> bool:
    """Distances to own and to others' neighbours, and how often the own is nearer, before and after.

    Returns False, without a file, where nothing is known."""
    sides = {side: rows for side, rows in _by_side(space).items() if any(_nearer(rows).values())}
    if not sides:
        return False
    labels = max(len(rows) for rows in sides.values()) + 1
    with plt.rc_context(STYLE):
        figure, grid = new_figure(
            len(sides) * (1.1 + 0.27 * labels), nrows=len(sides), ncols=2, squeeze=False, sharey="row"
        )
        for (left, right), (side, rows) in zip(grid, sides.items(), strict=True):
            names = [CONTENT, *rows]
            found = [(next(iter(rows.values())), "before"), *((seeds, "after") for seeds in rows.values())]
            heights = np.arange(len(names))[::-1]
            for kind, colour, words in (
                ("neighbours", OKABE_ITO[0], "to own SWING neighbours"),
                ("others", OKABE_ITO[1], "to others' ones"),
                ("random", "#8a8a8a", "to random ones"),
            ):
                values = [_of(seeds, when, kind) for seeds, when in found]
                left.plot(values, heights, "o", ms=5, color=colour, label=words)
            left.set(
                yticks=heights, yticklabels=names, xlabel="cosine distance", ylim=(-0.6, len(names) - 0.4)
            )
            left.set_title(PLURAL[side].capitalize(), loc="left")
            for height, value in zip(heights, _nearer(rows).values(), strict=True):
                if value is not None:
                    mean, low, high = value
                    right.plot([low, high], [height, height], color=OKABE_ITO[0], lw=2)
                    right.plot(mean, height, "o", ms=5, color=OKABE_ITO[0])
            right.axvline(0.5, color="#999999", lw=1)
            right.set(xlabel="own neighbour nearer")
        handles, words = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=3)
        save(figure, path)
    return True


def _by_side(space: Space) -> dict[str, dict[str, Sequence[Mapping[str, Any]]]]:
    """side -> variant -> facts of each seed."""
    sides: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for name, found in space.items():
        for side, seeds in found.items():
            sides.setdefault(side, {})[name] = seeds
    return sides


def _nearer(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[float, ...] | None]:
    """Mean share and its interval, of the content vectors and of each variant's; None where undefined."""
    found = {CONTENT: [one["before"]["nearer"] for one in next(iter(rows.values()))]}
    found |= {name: [one["after"]["nearer"] for one in seeds] for name, seeds in rows.items()}
    known = {name: [one for one in seeds if one["low"] is not None] for name, seeds in found.items()}
    return {name: over_seeds(seeds)[:3] if seeds else None for name, seeds in known.items()}


def _distances(seeds: Sequence[Mapping[str, Any]], when: str) -> list[str]:
    means = [_number(_of(seeds, when, kind), ".3f") for kind in ("neighbours", "others", "random")]
    known = [one[when]["nearer"] for one in seeds if one[when]["nearer"]["low"] is not None]
    if not known:
        return [*means, "–"]
    mean, low, high, _ = over_seeds(known)
    return [*means, f"{mean:.1%} [{low:.1%}, {high:.1%}]"]


def _ranks(seeds: Sequence[Mapping[str, Any]], which: str) -> str:
    """Of each tower, with its width where that bounds it."""
    told = []
    for modality, tower in seeds[0]["towers"].items():
        text = _number(_mean([one["towers"][modality] for one in seeds], which), ".1f")
        kind = modality.partition("_")[2]
        told.append(f"{kind} {text}" + (f" of {tower['width']}" if which == "effective_rank" else ""))
    return ", ".join(told) or "–"


def _share(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
    return _number(_mean(seeds, key), ".0%")


def _of(seeds: Sequence[Mapping[str, Any]], when: str, kind: str) -> float:
    return _mean([one[when] for one in seeds], kind)


def _mean(seeds: Sequence[Mapping[str, Any]], key: str) -> float:
    """NaN where no seed has it."""
    known = [one[key] for one in seeds if one[key] is not None]
    return float(np.mean(known)) if known else np.nan


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)
