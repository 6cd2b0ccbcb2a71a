"""Do the training rows' features carry their own labels? A tree that learns from them tells.

A gradient-boosted tree fitted on one half of the training rows must rank the other half no better than rows
that were never trained on, if every row's features were made without its label. Where features leave out only
the row itself, or a prior holds all labels, they differ between the rows of one entity by exactly what those
labels differ in; the tree reads that, and finds nothing of the kind in validation and test rows.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dlrrec_torchrec.features.dense import DENSE_FEATURES
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table
from dlrrec_torchrec.store.shard_facts import ShardFacts

HALVES = ("rows", "users", "items")  # how the halves are drawn: see `halves`
MIN_LABELS = 30  # rows of the rarer label, in the training rows and outside them
COMPONENTS = 16  # principal components of each kind of vector
TREES = 100  # of a boosted tree
SAMPLES = 200  # of the bootstrap
STRATA = 6  # by the number of training rows of the user, and of the item: 1, 2, 3 to 4, 5 to 8, 9 to 16, more


@dataclasses.dataclass(frozen=True)
class Table:
    """N rows of one part: what the audit looks at."""

    label: np.ndarray  # bool [N]
    user: np.ndarray  # i64 [N]
    item: np.ndarray  # i64 [N]
    features: np.ndarray  # f32 [N, C]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the trees found, AUC means over all draws of halves.

    Attributes:
        train_auc: of training rows that the tree has not seen, weighted to be like the outside rows.
        outside_auc: of validation and test rows.
        excess: their difference; low, high: its 95 % interval (users drawn with replacement).
        by_halves: excess by how the halves are drawn.
        rows: training rows; outside: validation and test rows.
        gains: features by their share of the trees' gain, most first.
        tolerance: how much excess is not called leakage.
    """

    train_auc: float
    outside_auc: float
    excess: float
    low: float
    high: float
    by_halves: dict[str, float]
    rows: int
    outside: int
    gains: list[tuple[str, float]]
    tolerance: float

    @property
    def leaks(self) -> bool:
        return self.low > self.tolerance


def audit_shards(
    shards_dir: str | os.PathLike, *, all_features: bool = False, draws: int = 3, tolerance: float = 0.02
) -> Finding:
    """Audit prepared shards. `all_features`: with vectors and categories, not only the dense columns.

    Raises DataError where the shards cannot be read or have too few rows to tell (`audit`).
    """
    facts = ShardFacts.read(shards_dir)
    parts, names = read_features(shards_dir, facts, all_features)
    outside = [table for name, table in parts.items() if name != "train"]
    pooled = Table(
        *(np.concatenate([getattr(t, f.name) for t in outside]) for f in dataclasses.fields(Table))
    )
    return audit(parts["train"], pooled, names, draws=draws, tolerance=tolerance)


def audit(
    train: Table, outside: Table, names: Sequence[str], *, draws: int = 3, tolerance: float = 0.02
) -> Finding:
    """Compare held-out training rows with rows outside training.

    For each way to draw halves, `draws` times, a tree is fitted on one half. Its AUC on the other half is
    weighted so that the rows' users and items have as many other training rows as those of `outside` have
    training rows: a feature of a user with many reviews is worth more, whoever reads it, and the two kinds of
    rows need not have the same share of such users (a split by time, a filter on activity). Validation and
    test rows are pooled: leakage from training labels shows against both, and the interval is narrower.

    The interval draws users with replacement, the same for all trees and both kinds of rows.

    Args:
        names: of the C feature columns; columns of one name are one feature.
        tolerance: the interval must lie above it to be called leakage.

    Raises DataError where there are fewer than MIN_LABELS rows of a label in `train` or `outside`.
    """
    for kind, table in (("training", train), ("validation and test", outside)):
        fewest = min(int(table.label.sum()), int((~table.label).sum()))
        if fewest < MIN_LABELS:
            raise DataError(
                f"audit: the {kind} rows have {fewest} of one label, {MIN_LABELS} are needed to tell leakage "
                "from chance; audit a run with more reviews"
            )
    weights = matched_weights(train, outside)
    users = int(max(train.user.max(), outside.user.max())) + 1
    resampled = np.random.default_rng(0).multinomial(users, np.full(users, 1 / users), SAMPLES)
    counts = np.concatenate([np.ones((1, users)), resampled])  # first all users once: the estimate itself

    gains = np.zeros(len(names))
    excess: dict[str, list[np.ndarray]] = {way: [] for way in HALVES}
    inside_auc, outside_auc = [], []
    for seed in range(draws):
        for way in HALVES:
            half = halves(way, train, np.random.default_rng([seed, HALVES.index(way)]))
            score, gain = _tree(train.features[half], train.label[half], names, seed)
            gains += gain
            inside = Auc(train.label[~half], score(train.features[~half]))
            beyond = Auc(outside.label, score(outside.features))
            user, weight = train.user[~half], weights[~half]
            inside_auc.append(np.array([inside.weighted(c[user] * weight) for c in counts]))
            outside_auc.append(np.array([beyond.weighted(c[outside.user]) for c in counts]))
            excess[way].append(inside_auc[-1] - outside_auc[-1])
    mean = np.mean([e for way in HALVES for e in excess[way]], axis=0)
    low, high = np.nanquantile(mean[1:], [0.025, 0.975])
    totals = {name: sum(g for n, g in zip(names, gains, strict=True) if n == name) for name in set(names)}
    whole = max(sum(totals.values()), 1e-12)
    return Finding(
        train_auc=float(np.mean([a[0] for a in inside_auc])),
        outside_auc=float(np.mean([a[0] for a in outside_auc])),
        excess=float(mean[0]),
        low=float(low),
        high=float(high),
        by_halves={way: float(np.mean([e[0] for e in excess[way]])) for way in HALVES},
        rows=len(train.label),
        outside=len(outside.label),
        gains=sorted(((n, float(g / whole)) for n, g in totals.items()), key=lambda x: (-x[1], x[0])),
        tolerance=tolerance,
    )


def halves(way: str, train: Table, rng: np.random.Generator) -> np.ndarray:
    """Which training rows the tree learns from, bool [N], half of them.

    "rows": at random; most entities have rows in both halves. "users", "items": every other row of each user
    or item, in random order, so that all with two rows or more are in both halves: what differs between the
    rows of one entity can then be read for each of them.
    """
    order = rng.permutation(len(train.label))
    if way != "rows":
        order = order[np.argsort(getattr(train, way[:-1])[order], kind="stable")]
    half = np.zeros(len(order), bool)
    half[order[int(rng.integers(2)) :: 2]] = True
    return half


def matched_weights(train: Table, outside: Table) -> np.ndarray:
    """Weights f64 [N] with which training rows are spread over strata as the rows outside are.

    A stratum is a pair of classes: of the number of training rows of the row's user, and of its item, a
    training row not counting itself. Rows of a stratum that the other kind of rows lacks weigh nothing.
    """
    classes = {}
    for name in ("user", "item"):
        codes = getattr(train, name), getattr(outside, name)
        number = np.bincount(codes[0], minlength=int(max(c.max() for c in codes)) + 1)
        for kind, code, own in (("train", codes[0], 1), ("outside", codes[1], 0)):
            others = number[code] - own
            stratum = np.where(others > 0, 1 + np.ceil(np.log2(np.maximum(others, 1))), 0)
            classes[kind, name] = np.minimum(stratum, STRATA).astype(int)
    cells = STRATA + 1
    inside, beyond = (classes[k, "user"] * cells + classes[k, "item"] for k in ("train", "outside"))
    have, want = (np.bincount(c, minlength=cells**2) / len(c) for c in (inside, beyond))
    return np.divide(want, have, out=np.zeros(cells**2), where=have > 0)[inside]


class Auc:
    """The AUC of fixed scores under changing weights of the rows, each in O(N) after one sort."""

    def __init__(self, label: np.ndarray, score: np.ndarray):
        self._order = np.argsort(score, kind="stable")
        ordered = score[self._order]
        self._group = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        self._label = label[self._order].astype(bool)

    def weighted(self, weight: np.ndarray) -> float:
        """Weighted share of (positive, negative) pairs in order, ties half; NaN without a pair."""
        weight = weight[self._order]
        positive = np.bincount(self._group, weight * self._label)
        negative = np.bincount(self._group, weight * ~self._label)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / pairs) if pairs > 0 else float("nan")


def read_features(
    shards_dir: str | os.PathLike, facts: ShardFacts, all_features: bool
) -> tuple[dict[str, Table], list[str]]:
    """The parts of the shards ("train", and "val" and "test" where they have rows), and the columns' names.

    With `all_features`: vectors as their first COMPONENTS principal components of the training rows, and one
    column for each category type.
    """
    chosen = facts.row_modalities if all_features else ()
    columns = ["label", "user", "item", "dense", *(["category"] if all_features else [])]
    columns += [modality.name for modality in chosen]
    names = _dense_names(facts) + list(facts.affinity)
    raw = {}
    for part in ("train", "val", "test"):
        if not (Path(shards_dir) / part).exists():
            continue
        table = read_table(Path(shards_dir) / part, facts.row_schema(chosen), columns).combine_chunks()
        if len(table) or part == "train":
            raw[part] = {name: _values(table[name]) for name in columns}
    blocks = {part: [values["dense"]] for part, values in raw.items()}
    if all_features:
        names += ["categories"] * facts.category_types
        for part, values in raw.items():
            present = np.zeros((len(values["label"]), facts.category_types + 1), np.float32)
            np.put_along_axis(present, values["category"].astype(np.int64), 1, axis=1)
            blocks[part].append(present[:, :-1])
        for modality in chosen:
            basis = _principal(raw["train"][modality.name])
            names += [modality.name] * basis.shape[1]
            for part, values in raw.items():
                blocks[part].append(values[modality.name].astype(np.float32) @ basis)
    tables = {
        part: Table(
            values["label"] > 0,
            values["user"].astype(np.int64),
            values["item"].astype(np.int64),
            np.concatenate(blocks[part], axis=1, dtype=np.float32),
        )
        for part, values in raw.items()
    }
    return tables, names


def _values(column) -> np.ndarray:
    """A column as an array [N], or [N, V] where its values are lists."""
    column = column.combine_chunks()
    if not hasattr(column.type, "list_size"):
        return column.to_numpy()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _dense_names(facts: ShardFacts) -> list[str]:
    """The name of each dense column; a feature that is not known has one."""
    return [name for name in facts.dense for _ in range(DENSE_FEATURES.get(name, 1))]


def _principal(vectors: np.ndarray) -> np.ndarray:
    """The first principal axes of the rows, f32 [V, at most COMPONENTS]."""
    vectors = vectors.astype(np.float32)
    centred = vectors - vectors.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(axes[:, ::-1][:, :COMPONENTS])


def _tree(
    features: np.ndarray, label: np.ndarray, names: Sequence[str], seed: int
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """A fitted tree's scoring of rows [n, C] and its gain from each column [C].

    Features of one to three columns (the dense ones) get many bins: what a label leaves in a mean is small.
    Leaves may be as small as five rows, about an item's or a user's rows in half of the training rows.
    """
    try:
        import lightgbm
    except ImportError:
        raise DataError(
            "audit: LightGBM is not installed; `pip install 'dlrrec-torchrec[audit]'` brings it"
        ) from None
    parameters = {
        "objective": "binary",
        "learning_rate": 0.1,
        "num_leaves": 31,
        "min_data_in_leaf": 5,
        "min_data_in_bin": 1,
        "max_bin_by_feature": [1023 if names.count(name) <= 3 else 63 for name in names],
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    tree = lightgbm.train(parameters, lightgbm.Dataset(features, label), TREES)
    return lambda rows: tree.predict(rows, raw_score=True), tree.feature_importance("gain")


def describe_finding(finding: Finding) -> Iterator[str]:
    """The finding in plain words, a line each."""
    interval = f"{finding.excess:+.3f} (95 % interval {finding.low:+.3f} to {finding.high:+.3f})"
    yield (
        f"AUC of trees on training rows that they have not seen {finding.train_auc:.3f} "
        f"({finding.rows:,} rows), on validation and test rows {finding.outside_auc:.3f} "
        f"({finding.outside:,} rows)"
    )
    ways = ", ".join(f"{way} {value:+.3f}" for way, value in finding.by_halves.items())
    yield f"excess {interval}; by how the halves were drawn: {ways}"
    if finding.leaks:
        yield (
            "LEAK: the features of training rows tell their own labels (the interval lies above the "
            f"tolerance of {finding.tolerance:g}); a model that learns from them does worse on new rows"
        )
    else:
        yield f"no leak: the interval does not lie above the tolerance of {finding.tolerance:g}"
        if finding.high > finding.tolerance + 0.05:
            yield f"note: with this few rows a leak of up to {finding.high:.3f} AUC would not show"
    top = ", ".join(f"{name} {share:.0%}" for name, share in finding.gains[:5])
    yield f"the trees gained most from: {top}"
