"""The leak detector: planted leaks are found, clean features pass, rows are compared fairly."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dlrrec_torchrec.cli import main
from dlrrec_torchrec.experiments.leakage import (
    HALVES,
    Auc,
    Table,
    audit,
    describe_finding,
    halves,
    matched_weights,
    read_features,
)
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.shard_facts import ShardFacts
from tests.helpers.shards import write_shards

NAMES = ["user_count", "item_count", "user_mean", "item_mean"]


def world(seed, *, leak, rows=1200, outside=800, users=80, items=40):
    """Training and outside rows whose features are counts and mean labels; users and items differ in them.

    With `leak` they are made of the training rows, a training row's without its own label alone; else of as
    many other rows of the same users and items.
    """
    rng = np.random.default_rng(seed)
    taste, quality = rng.normal(size=users), rng.normal(size=items)

    def draw(n):
        user, item = rng.integers(users, size=n), rng.integers(items, size=n)
        return rng.random(n) < 1 / (1 + np.exp(-1 - taste[user] - quality[item])), user, item

    label, user, item = draw(rows)
    past = draw(rows)  # clean features are made of these

    def features(source, of_user, of_item, own=None):
        left_out = (0, 0.0) if own is None else (1, own)
        columns = []
        for code, of, n in ((source[1], of_user, users), (source[2], of_item, items)):
            count = np.bincount(code, minlength=n)[of] - left_out[0]
            total = np.bincount(code, source[0], n)[of] - left_out[1]
            columns.append((count, (total + 0.5) / (count + 1)))
        (users_count, user_mean), (items_count, item_mean) = columns
        return np.stack([users_count, items_count, user_mean, item_mean], 1).astype(np.float32)

    source = (label, user, item) if leak else past
    train = Table(label, user, item, features(source, user, item, label.astype(float) if leak else None))
    beyond = draw(outside)
    return train, Table(*beyond, features(source, *beyond[1:]))


# --- what it finds


def test_a_mean_without_the_own_row_alone_is_a_leak():
    finding = audit(*world(0, leak=True), NAMES, draws=1)
    assert (
        finding.leaks
        and finding.low > 0.1
        and finding.excess == pytest.approx(finding.train_auc - finding.outside_auc)
    )
    assert {name for name, _ in finding.gains[:2]} == {"user_mean", "item_mean"}
    words = "\n".join(describe_finding(finding))
    assert "LEAK" in words and "user_mean" in words and f"{finding.excess:+.3f}" in words


def test_a_column_that_tells_little_is_found_by_its_differences():
    """Equal for all rows of a user but for the last digits, which depend on the label."""
    train, outside = world(1, leak=False)
    trace = np.float32(1) + 1e-6 * train.label.astype(np.float32)
    column = np.r_[trace, np.ones(len(outside.label), np.float32)][:, None]
    train, outside = (
        dataclasses.replace(t, features=np.c_[t.features, c])
        for t, c in ((train, column[: len(trace)]), (outside, column[len(trace) :]))
    )
    finding = audit(train, outside, [*NAMES, "price"], draws=1)
    assert finding.leaks and finding.gains[0][0] == "price" and finding.train_auc > 0.95


def test_clean_features_pass_whatever_the_seed():
    findings = [audit(*world(seed, leak=False), NAMES, draws=1) for seed in range(12)]
    assert sum(f.leaks for f in findings) <= 1
    assert abs(np.mean([f.excess for f in findings])) < 0.02
    assert all(f.outside_auc > 0.6 for f in findings)  # there is something to find in the features
    words = "\n".join(describe_finding(findings[0]))
    assert "no leak" in words and "LEAK" not in words


def test_more_reviewed_users_outside_are_no_leak():
    """Training rows of well-known users are easier to rank; the rows outside are of others."""
    train, outside = world(3, leak=False, users=60, rows=3000)
    rng = np.random.default_rng(0)
    known = train.user < 20
    keep = known | (rng.random(len(known)) < 0.1)
    noise = np.where(train.user < 20, 0, 9)  # means of little-known users are noise
    train = dataclasses.replace(
        train, features=train.features + rng.normal(size=train.features.shape) * noise[:, None]
    )
    train = Table(train.label[keep], train.user[keep], train.item[keep], train.features[keep])
    outside_noise = np.where(outside.user < 20, 0, 9)[:, None] * rng.normal(size=outside.features.shape)
    outside = dataclasses.replace(outside, features=outside.features + outside_noise)
    finding = audit(train, outside, NAMES, draws=1)
    unmatched = _plain_auc(train, outside)
    assert unmatched > 0.05 and finding.excess < unmatched - 0.04 and not finding.leaks


def _plain_auc(train, outside):
    """Held-out training rows less rows outside, without weights."""
    from lightgbm import LGBMClassifier

    half = halves("rows", train, np.random.default_rng(0))
    tree = LGBMClassifier(verbosity=-1, n_jobs=1).fit(train.features[half], train.label[half])
    aucs = [
        roc_auc_score(label, tree.predict_proba(x)[:, 1])
        for label, x in ((train.label[~half], train.features[~half]), (outside.label, outside.features))
    ]
    return aucs[0] - aucs[1]


def test_too_few_rows_are_said():
    train, outside = world(0, leak=False, outside=60)
    with pytest.raises(DataError, match="validation and test rows have .* of one label, 30 are needed"):
        audit(train, outside, NAMES, draws=1)


def test_without_lightgbm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(DataError, match=r"pip install 'dlrrec-torchrec\[audit\]'"):
        audit(*world(0, leak=False), NAMES, draws=1)


# --- its parts


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 3)),
        min_size=2,
        max_size=40,
    )
)
@settings(max_examples=50, deadline=None)
def test_weighted_auc_is_scikit_learns(rows):
    label, score, weight = (np.asarray(c) for c in zip(*rows, strict=True))
    value = Auc(label, score).weighted(weight)
    if not weight[label].sum() or not weight[~label].sum():
        assert np.isnan(value)
    else:
        assert value == pytest.approx(roc_auc_score(label, score, sample_weight=weight))


@pytest.mark.parametrize("way", HALVES)
def test_halves_are_halves(way):
    train, _ = world(0, leak=False)
    half = halves(way, train, np.random.default_rng(0))
    assert half.sum() == len(half) // 2
    if way != "rows":
        code = getattr(train, way[:-1])
        both = np.bincount(code, half), np.bincount(code, ~half)
        assert np.abs(both[0] - both[1]).max() <= 1  # every entity has as many rows in one as in the other
    assert not np.array_equal(half, halves(way, train, np.random.default_rng(1)))


def test_weights_spread_training_rows_as_the_rows_outside():
    train, outside = world(0, leak=False)
    weight = matched_weights(train, outside)
    number = np.bincount(train.user, minlength=100)
    mean = np.average(number[train.user] - 1, weights=weight), np.mean(number[outside.user])
    assert mean[0] == pytest.approx(mean[1], rel=0.1) and weight.mean() == pytest.approx(1, abs=0.05)


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("leakage") / "run"
    write_shards(root / "shards", rows=(700, 300, 300), signal=False, dims={"user_text": 24, "item_text": 24})
    return root


def test_command_passes_clean_shards_with_all_features(run, capsys):
    assert main(["audit", "leakage", "--run-dir", str(run), "--all-features", "--draws", "1"]) == 0
    assert "no leak" in capsys.readouterr().out


def test_command_fails_shards_with_a_planted_leak(run, tmp_path, capsys):
    facts = ShardFacts.read(run / "shards")
    table = read_table(run / "shards" / "train", facts.row_schema())
    dense = np.stack(table["dense"].to_pylist())
    dense[:, facts.dense.index("item_mean")] += 0.01 * table["label"].to_numpy()
    column = pa.FixedSizeListArray.from_arrays(dense.astype(np.float32).reshape(-1), facts.dense_width)
    place = table.schema.get_field_index("dense")
    copy = tmp_path / "leaky" / "shards"
    copy.mkdir(parents=True)
    for path in (run / "shards").iterdir():
        if path.name != "train":
            (copy / path.name).symlink_to(path)
    write_table(table.set_column(place, table.schema.field("dense"), column), copy / "train")
    assert main(["audit", "leakage", "--run-dir", str(tmp_path / "leaky"), "--draws", "1", "--json"]) == 1
    finding = json.loads(capsys.readouterr().out)
    assert finding["leaks"] and finding["gains"][0][0] == "item_mean"


def test_all_features_are_named_and_numbered(run):
    facts = ShardFacts.read(run / "shards")
    tables, names = read_features(run / "shards", facts, all_features=True)
    assert set(tables) == {"train", "val", "test"}
    assert all(t.features.shape == (len(t.label), len(names)) for t in tables.values())
    assert names.count("price") == 3 and names.count("user_text") == 16
    assert names.count("categories") == facts.category_types
    vectors = tables["train"].features[:, [n == "item_image" for n in names]]
    spread = vectors.var(0)
    assert (np.diff(spread) <= 1e-6).all() and spread[0] > 0  # strongest first
