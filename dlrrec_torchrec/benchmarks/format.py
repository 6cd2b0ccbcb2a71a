"""Results as text tables, and those of embedding tables and training steps as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PASSES = {"forward": "forward", "backward": "backward + update"}


def varied(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which the cases differ, in the order of the flags."""
    return [key for key in results[0]["case"] if len({r["case"][key] for r in results}) > 1]


def spread(quantiles: Mapping[str, float], form: str, factor: float = 1.0) -> str:
    """The median of a `timing.summary`, and in brackets p10 to p90, each times `factor`."""
    low, middle, high = (form.format(factor * quantiles[k]) for k in ("p10", "median", "p90"))
    return f"{middle} ({low} to {high})"


def format_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Medians in milliseconds; the ratio to torch with its p10 to p90; the share of the copy's bandwidth.

    The share counts the minimum of bytes that must move (`traffic`, "unique").
    """
    keys = varied(results)
    header = [*keys, "lookups", "unique"]
    with_torch = any("torch" in r["sides"] for r in results)
    for name in PASSES.values():
        header += [f"{name} ms", *(["torch ms", "ratio (p10 to p90)"] if with_torch else []), "of copy"]
    rows = [[*header, "copy GB/s"]]
    for result in results:
        row = [str(result["case"][key]) for key in keys]
        row += [f"{result['requests'][key]:,.0f}" for key in ("lookups", "unique")]
        for phase in PASSES:
            fbgemm = result["sides"]["fbgemm"][phase]
            row.append(f"{1e3 * fbgemm['seconds']['median']:.3f}")
            if "torch" in result["sides"]:
                row.append(f"{1e3 * result['sides']['torch'][phase]['seconds']['median']:.3f}")
                row.append(spread(result["ratio"][phase], "{:.2f}"))
            elif with_torch:
                row += ["-", "-"]
            row.append(f"{fbgemm['share']['unique']:.1%}")
        rows.append([*row, f"{result['copy']['bandwidth'] / 1e9:.1f}"])
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of right-aligned columns."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture: milliseconds of both sides above, shares of the copy's bandwidth below; bars p10 to p90."""
    from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, plt

    keys = varied(results) or ["pooling"]
    names = ["\n".join(str(result["case"][key]) for key in keys) for result in results]
    looks = {"fbgemm": ("FBGEMM", OKABE_ITO[0]), "torch": ("torch.nn.EmbeddingBag", OKABE_ITO[1])}
    width = max(7.0, 2.5 + 0.9 * len(results))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(2 * width, 8), sharex=True, layout="constrained")
        for column, (phase, title) in enumerate(PASSES.items()):
            above, below = grid[:, column]
            for number, (side, (legend, colour)) in enumerate(looks.items()):
                places = [k for k, r in enumerate(results) if side in r["sides"]]
                if not places:
                    continue
                at = [k + 0.4 * (number - 0.5) for k in places]
                timings = [results[k]["sides"][side][phase] for k in places]
                middle, low, high = (
                    [1e3 * f["seconds"][quantile] for f in timings] for quantile in ("median", "p10", "p90")
                )
                error_bars = [
                    [m - p for m, p in zip(middle, low, strict=True)],
                    [p - m for m, p in zip(middle, high, strict=True)],
                ]
                above.bar(at, middle, 0.36, yerr=error_bars, color=colour, label=legend, error_kw={"lw": 1})
                below.bar(at, [100 * f["share"]["unique"] for f in timings], 0.36, color=colour)
                if side == "torch":
                    for k, x, top in zip(places, at, high, strict=True):
                        text = f"×{results[k]['ratio'][phase]['median']:.2f}"
                        above.annotate(text, (x, top), (0, 3), textcoords="offset points", ha="center")
            above.set(yscale="log", ylabel="milliseconds (log)", title=title[0].upper() + title[1:])
            above.margins(y=0.15)
            above.grid(axis="x", visible=False)
            below.grid(axis="x", visible=False)
            below.set(ylabel="share of the copy's bandwidth, %", ylim=(0, None))
            below.set_xticks(range(len(names)), names)
            below.set_xlabel(", ".join(keys))
            above.legend()
        figure.savefig(path)
        plt.close(figure)


def draw_training(report: Mapping[str, Any], path: Path) -> None:
    """A picture: samples per second of each side, with bars p10 to p90; the parts of a step."""
    from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, plt

    sides, parts = report["sides"], report["parts"]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
        for place, (name, side) in enumerate(sides.items()):
            low, middle, high = (side["samples_per_second"][key] for key in ("p10", "median", "p90"))
            colour = OKABE_ITO[int(name.startswith("plain"))]
            left.bar(place, middle, 0.6, yerr=[[middle - low], [high - middle]], color=colour)
            text = f"{middle:,.0f}"
            if name in report["ratio"]:
                text += f"\n×{report['ratio'][name]['median']:.2f} of plain torch"
            left.annotate(text, (place, high), (0, 3), textcoords="offset points", ha="center")
        left.set_xticks(range(len(sides)), list(sides))
        left.set(ylabel="samples per second", title="Whole step")
        left.margins(y=0.2)
        left.grid(axis="x", visible=False)
        right.barh(list(parts), [100 * part["share"] for part in parts.values()], color=OKABE_ITO[0])
        right.invert_yaxis()
        right.set(xlabel="share of a step, %", title="Parts of a step with the contrastive terms")
        right.grid(axis="y", visible=False)
        figure.savefig(path)
        plt.close(figure)
