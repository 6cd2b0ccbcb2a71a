"""Maps of users and of items: their reduced vectors in two dimensions, one panel a variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq

from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, new_figure, save

FEWEST = 10  # entities, below which there is no map
OTHERS = "other or none"
WITH, WITHOUT = "dlrrec", "bce"  # the default variants: with and without contrastive terms


def mapped(variants: Sequence[str]) -> list[str]:
    """The two variants whose maps stand side by side: with and without the contrastive terms where both
    exist, else the first two."""
    return [WITH, WITHOUT] if {WITH, WITHOUT} <= set(variants) else list(variants[:2])


def space_map(files: Mapping[str, Path], kind: str, path: Path) -> int:
    """t-SNE (van der Maaten and Hinton 2008) of the vectors in `files`: variant -> file of
    `evaluation.space`.

    The most common groups get a colour each, the same in all panels, all others are grey.

    Args:
        kind: "users" or "items", for the title.

    Returns how many entities the first panel has; 0, and no file, where one has fewer than FEWEST.
    """
    panels = {}
    for name, file in files.items():
        table = pq.read_table(file)
        vectors = np.array(table["vector"].to_pylist(), np.float32).reshape(table.num_rows, -1)
        present = np.abs(vectors).sum(1) > 0  # no content, no place
        panels[name] = vectors[present], np.array(table["group"].to_pylist(), object)[present]
    if not panels or min(len(vectors) for vectors, _ in panels.values()) < FEWEST:
        return 0
    counts = Counter(name for _, group in panels.values() for name in group.tolist())
    common = [name for name, _ in counts.most_common() if name][: len(OKABE_ITO)]
    looks = dict(zip(common, OKABE_ITO, strict=False))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, grid = new_figure(4.4 if len(panels) > 1 else 5.2, ncols=len(panels), squeeze=False)
        for axes, (name, (vectors, group)) in zip(grid.flat, panels.items(), strict=True):
            place = project(vectors)
            rest = ~np.isin(group, common)
            groups = [(OTHERS, rest, "#c4c4c4")] if rest.any() or axes is grid.flat[0] else []
            groups += [(label, group == label, colour) for label, colour in looks.items()]
            for label, chosen, colour in groups:
                axes.scatter(*place[chosen].T, s=10, color=colour, lw=0, alpha=0.8, label=label)
            axes.spines[:].set_visible(False)
            axes.set(xticks=[], yticks=[], title=name)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=2)
        figure.suptitle(f"{kind.capitalize()} by their reduced vectors (t-SNE)", fontsize=11)
        save(figure, path)
    return len(next(iter(panels.values()))[0])


def project(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, R] in two dimensions, f32 [N, 2]; the same for the same vectors. Near is what has a high
    cosine, as the contrastive terms compare."""
    from sklearn.manifold import TSNE

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    perplexity = min(30, (len(unit) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0, max_iter=500).fit_transform(unit)
