"""A map of items: their reduced vectors in two dimensions, coloured by category."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq

from dlrrec_torchrec.report.style import OKABE_ITO, STYLE, new_figure, save

FEWEST = 10  # items, below which there is no map
OTHERS = "other or none"


def item_map(vectors: Path, path: Path) -> int:
    """t-SNE (van der Maaten and Hinton 2008) of the items in `vectors`, the file of `evaluation.samples`.

    The most common first categories get a colour each, all others are grey. Returns how many items are
    drawn; 0, and no file, where there are fewer than FEWEST.
    """
    table = pq.read_table(vectors)
    points = np.array(table["vector"].to_pylist(), np.float32).reshape(table.num_rows, -1)
    present = np.abs(points).sum(1) > 0  # no content, no place
    points, categories = points[present], np.array(table["category"].to_pylist(), object)[present]
    if len(points) < FEWEST:
        return 0
    place = project(points)
    counts = Counter(categories.tolist())
    common = [name for name, _ in counts.most_common() if name][: len(OKABE_ITO)]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = new_figure(5.2)
        rest = ~np.isin(categories, common)
        groups = [(OTHERS, rest, "#c4c4c4")] if rest.any() else []
        groups += [(name, categories == name, c) for name, c in zip(common, OKABE_ITO, strict=False)]
        for name, chosen, colour in groups:
            axes.scatter(
                *place[chosen].T, s=12, color=colour, lw=0, alpha=0.8, label=f"{name} ({chosen.sum()})"
            )
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[], title="Items by their reduced vectors (t-SNE)")
        figure.legend(loc="outside lower center", ncols=2, markerscale=2)
        save(figure, path)
    return len(points)


def project(points: np.ndarray) -> np.ndarray:
    """Vectors [N, R] in two dimensions, f32 [N, 2]; the same for the same vectors."""
    from sklearn.manifold import TSNE

    standard = (points - points.mean(0)) / np.maximum(points.std(0), 1e-6)
    perplexity = min(30, (len(points) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0, max_iter=500).fit_transform(standard)
