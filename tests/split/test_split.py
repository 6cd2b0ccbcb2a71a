"""The split: presence, filters, exact sizes, determinism and the protocols' drops."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.config import SplitConfig
from dlrrec_torchrec.split.stage import (
    COLD,
    DROPPED,
    SHOWN,
    TEST,
    TRAIN,
    VAL,
    active_rows,
    assign_parts,
    keep_all,
    known_test_rows,
    latest_rows,
    split,
)
from dlrrec_torchrec.store.errors import DataError
from dlrrec_torchrec.store.files import read_table, write_table
from dlrrec_torchrec.store.manifest import Manifest
from dlrrec_torchrec.store.schema import REVIEWS, SPLIT, SPLITS
from tests.helpers.reviews import random_rows, write_reviews

quick = settings(max_examples=150)
METHODS = ("random", "last", "time", "folds", "published")


@st.composite
def graphs(draw, users=12, items=8, min_edges=4, max_edges=60):
    """User and item codes of distinct pairs."""
    cells = draw(st.sets(st.integers(0, users * items - 1), min_size=min_edges, max_size=max_edges))
    cells = np.asarray(sorted(cells))
    return np.unique(cells // items, return_inverse=True)[1], np.unique(cells % items, return_inverse=True)[1]


def _assign(user, item, method, strict, **options):
    rng = np.random.default_rng(9)
    extra = {
        "last": {"timestamp": rng.integers(0, 5, len(user))},
        "time": {"timestamp": rng.integers(0, 20, len(user))},
        "published": {"published_test": rng.random(len(user)) < 0.3},
    }.get(method, {})
    return assign_parts(user, item, method=method, strict=strict, **extra, **options)


# --- items set apart


@pytest.mark.parametrize("strict", [True, False])
@given(graph=graphs(min_edges=20), method=st.sampled_from(METHODS), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_items_that_are_set_apart_are_in_no_other_part(strict, graph, method, seed):
    user, item = graph
    try:
        part, facts = _assign(user, item, method, strict, min_reviews=1, cold_items=0.3, seed=seed)
    except DataError:
        assume(False)
    cold = np.unique(item[(part == COLD) | (part == SHOWN)])
    assert set(part[np.isin(item, cold)]) <= {COLD, SHOWN, DROPPED} and (part == COLD).any()
    assert set(user[part == COLD]) <= set(user[part == TRAIN])
    for code in cold:
        shown, rows = (part[item == code] == SHOWN).sum(), (item == code).sum()
        assert shown == min(3, rows - 1)
    assert facts["dropped"]["cold_unknown_user"] >= (part == DROPPED)[np.isin(item, cold)].sum()


# --- filter


def _filter_by_hand(user, item, min_reviews):
    rows = list(zip(user.tolist(), item.tolist(), strict=True))
    while True:
        users, items = [u for u, _ in rows], [i for _, i in rows]
        stay = [(u, i) for u, i in rows if users.count(u) >= min_reviews and items.count(i) >= min_reviews]
        if stay == rows:
            return set(rows)
        rows = stay


@given(graphs(), st.integers(1, 4))
@quick
def test_filter_equals_dropping_by_hand_until_stable(graph, min_reviews):
    active = active_rows(*graph, min_reviews)
    pairs = list(zip(graph[0][active].tolist(), graph[1][active].tolist(), strict=True))
    assert set(pairs) == _filter_by_hand(*graph, min_reviews)


# --- the test part under `paper`


def _most_test_rows(user, item):
    """The largest number of rows without which every id still has a row, by trying all subsets."""
    rows = range(len(user))
    for size in range(len(user) + 1):
        for training in itertools.combinations(rows, size):
            if len(set(user[list(training)])) == len(set(user)) and len(set(item[list(training)])) == len(
                set(item)
            ):
                return len(user) - size
    return 0


@given(graphs(users=5, items=5, max_edges=10), st.integers(0, 10), st.integers(0, 100))
@quick
def test_test_part_has_the_wanted_size_whenever_any_choice_has(graph, limit, seed):
    user, item = graph
    rows = np.arange(len(user))
    candidates = np.random.default_rng(seed).permutation(rows)
    test = known_test_rows(user, item, rows, candidates, limit, exact=True)
    assert len(set(test.tolist())) == len(test) == min(limit, _most_test_rows(user, item))
    remaining = np.setdiff1d(rows, test)
    assert set(user[remaining]) == set(user) and set(item[remaining]) == set(item)


# --- properties of every method and protocol


@pytest.mark.parametrize("method", METHODS)
@given(
    graph=graphs(min_edges=30), strict=st.booleans(), min_reviews=st.integers(1, 2), seed=st.integers(0, 50)
)
@quick
def test_parts_are_complete_known_and_active(method, graph, strict, min_reviews, seed):
    user, item = graph
    try:
        part, facts = _assign(user, item, method, strict, min_reviews=min_reviews, val_share=0.2, seed=seed)
    except DataError:
        assume(False)
    train = part == TRAIN
    for code in (VAL, TEST):
        assert set(user[part == code]) <= set(user[train])
        assert set(item[part == code]) <= set(item[train])
    assert sum(facts["dropped"].values()) == (part == DROPPED).sum()
    assert facts["test_wanted"] == (part == TEST).sum() + facts["kept_for_training"] + sum(
        count for reason, count in facts["dropped"].items() if reason.startswith("test")
    )
    if strict or method == "published":
        assert active_rows(user[train], item[train], min_reviews).all()
        assert facts["kept_for_training"] == 0
    else:  # the filter saw all rows; nothing is dropped after it
        assert (part != DROPPED).tolist() == active_rows(user, item, min_reviews).tolist()
    if not strict:
        assert not (part == VAL).any()


@given(graph=graphs(), min_reviews=st.integers(1, 2), seed=st.integers(0, 50))
@quick
def test_folds_test_every_row_at_most_once(graph, min_reviews, seed):
    user, item = graph
    tested = np.zeros(len(user), int)
    for fold in range(3):
        try:
            part, _ = _assign(
                user, item, "folds", False, min_reviews=min_reviews, seed=seed, folds=3, fold=fold
            )
        except DataError:
            continue
        tested += part == TEST
    assert tested.max() <= 1


def test_shares_are_of_all_rows_and_of_the_rest():
    user, item = (axis.ravel() for axis in np.indices((40, 50)))  # dense: nothing is dropped
    part, _ = assign_parts(user, item, method="random", strict=True, test_share=0.25, val_share=0.1)
    assert np.bincount(part).tolist() == [1350, 150, 500]
    part, facts = assign_parts(user, item, method="random", strict=False, test_share=0.31)
    assert np.bincount(part).tolist() == [1380, 0, 620] and facts["test_wanted"] == 620


def test_strict_assignment_does_not_look_at_activity():
    """Under `strict` the rows that become test rows are drawn before any filter."""
    rng = np.random.default_rng(0)
    cells = rng.choice(60 * 30, 500, replace=False)
    user, item = cells // 30, cells % 30
    strictly, _ = assign_parts(user, item, method="random", strict=True, min_reviews=1, seed=3)
    harder, facts = assign_parts(user, item, method="random", strict=True, min_reviews=4, seed=3)
    in_both = harder != DROPPED
    assert in_both.sum() < len(in_both) and facts["dropped"]["min_reviews"] > 0
    assert (harder[in_both & (strictly != DROPPED)] == strictly[in_both & (strictly != DROPPED)]).all()


# --- the stage


def _parts(folder: Path) -> dict[str, pa.Table]:
    return {name: read_table(folder / name, SPLIT) for name in SPLITS}


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@given(order=st.randoms(use_true_random=False))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_row_order_of_the_source_does_not_matter(protocol, order, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("order")
    rows = random_rows()
    shuffled = order.sample(rows, len(rows))
    split(SplitConfig(), protocol, write_reviews(rows, tmp_path / "a"), tmp_path / "a-split")
    split(SplitConfig(), protocol, write_reviews(shuffled, tmp_path / "b"), tmp_path / "b-split")
    first, second = _parts(tmp_path / "a-split"), _parts(tmp_path / "b-split")
    assert all(first[name].equals(second[name]) for name in SPLITS)


def test_files_hold_labels_in_order_and_facts_count_them(tmp_path):
    rows = random_rows()
    manifest = split(
        SplitConfig(positive_rating=3.5), "strict", write_reviews(rows, tmp_path / "r"), tmp_path / "s"
    )
    rating = {(u, i): r for u, i, r in rows}
    rows_in_parts = 0
    for name, table in _parts(tmp_path / "s").items():
        pairs = list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
        assert pairs == sorted(pairs)
        labels = [float(rating[pair] >= 3.5) for pair in pairs]
        assert table["label"].to_pylist() == labels
        assert manifest.rows[name] == len(pairs)
        assert manifest.facts["parts"][name] == {
            "rows": len(pairs),
            "users": len({u for u, _ in pairs}),
            "items": len({i for _, i in pairs}),
            "positives": sum(labels),
        }
        rows_in_parts += len(pairs)
    assert manifest.rows["reviews"] == len(rows) == rows_in_parts + sum(manifest.facts["dropped"].values())


def test_stage_is_reused_for_the_same_settings_only(tmp_path):
    reviews, out = write_reviews(random_rows(), tmp_path / "r"), tmp_path / "s"
    assert not split(SplitConfig(), "strict", reviews, out).reused
    first = _parts(out)
    assert split(SplitConfig(), "strict", reviews, out).reused
    assert not split(SplitConfig(seed=1), "strict", reviews, out).reused
    assert not first["test"].equals(_parts(out)["test"])
    assert not split(SplitConfig(seed=1), "paper", reviews, out).reused


def test_last_review_by_time_is_tested(tmp_path):
    rows = [("a", "x", 5), ("a", "y", 4), ("a", "z", 1), ("b", "x", 3), ("b", "y", 2), ("c", "z", 5)]
    times = [30, 10, 20, 7, 8, 1]  # c: a single review is no test row
    reviews = write_reviews(rows, tmp_path / "r", timestamp=times)
    config = SplitConfig(method="last", min_reviews=1, val_share=0.0)
    split(config, "paper", reviews, tmp_path / "s")
    test = _parts(tmp_path / "s")["test"]
    assert list(zip(test["user_id"].to_pylist(), test["item_id"].to_pylist(), strict=True)) == [
        ("a", "x"),
        ("b", "y"),
    ]


def test_last_row_of_an_item_stays_in_training_under_paper_and_is_dropped_under_strict(tmp_path):
    rows = [("a", "x", 5), ("a", "only", 4), ("b", "x", 3), ("b", "y", 2), ("c", "y", 5), ("c", "x", 5)]
    reviews = write_reviews(rows, tmp_path / "r", timestamp=[1, 2, 1, 2, 2, 3])
    config = SplitConfig(method="last", min_reviews=1, val_share=0.0)
    facts = split(config, "paper", reviews, tmp_path / "s").facts
    assert (facts["test_wanted"], facts["kept_for_training"], facts["parts"]["test"]["rows"]) == (3, 1, 2)
    facts = split(config, "strict", reviews, tmp_path / "s").facts
    assert facts["dropped"]["test_unknown_item"] == 1 and facts["parts"]["test"]["rows"] == 2


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 0.95))
@quick
def test_the_latest_rows_are_cut_off_at_the_time_nearest_to_the_share(times, share):
    times = np.asarray(times)
    late = latest_rows(times, share)
    wanted = round(share * len(times))
    possible = [times > t for t in np.unique(times)]
    assert any((late == cut).all() for cut in possible)
    assert abs(late.sum() - wanted) == min(abs(cut.sum() - wanted) for cut in possible)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_one_cut_in_time_separates_the_parts(tmp_path, protocol):
    rows = random_rows()
    times = np.random.default_rng(2).permutation(len(rows))  # each its own: the shares are exact
    reviews = write_reviews(rows, tmp_path / "r", timestamp=times.tolist())
    config = SplitConfig(method="time", min_reviews=1)
    facts = split(config, protocol, reviews, tmp_path / "s").facts
    parts = _parts(tmp_path / "s")
    train, val, test = (parts[name]["timestamp"].to_numpy() for name in SPLITS)
    cut = len(rows) - round(0.25 * len(rows))
    assert facts["test_wanted"] == len(rows) - cut and test.min() >= cut
    if protocol == "strict":
        assert train.max() < val.min() and val.max() < cut
        assert len(train) == cut - round(0.1 * cut)
    else:  # what is later and trained on is the last row of its user or item
        assert not len(val) and (train >= cut).sum() == facts["kept_for_training"]


def test_all_reviews_can_be_training_rows(tmp_path):
    """Also of users and items with one review, which every method but this one drops."""
    rows = [*random_rows(), ("once", "i0", 4.0), ("u0", "rare", 1.0)]
    reviews = write_reviews(rows, tmp_path / "r")
    manifest = keep_all(4.0, reviews, tmp_path / "s")
    parts = _parts(tmp_path / "s")
    train = parts["train"]
    assert sorted(zip(*(train[c].to_pylist() for c in ("user_id", "item_id", "rating")), strict=True)) == (
        sorted(rows)
    )
    assert train["label"].to_pylist() == [float(r >= 4) for r in train["rating"].to_pylist()]
    assert not parts["val"].num_rows and not parts["test"].num_rows
    assert manifest.rows == {"reviews": len(rows), "train": len(rows), "val": 0, "test": 0}
    assert keep_all(4.0, reviews, tmp_path / "s").reused
    assert not keep_all(3.0, reviews, tmp_path / "s").reused


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_published_split_is_kept_and_filtered_in_training_only(tmp_path, protocol):
    rows = [
        ("a", "x", 5),
        ("a", "y", 4),
        ("b", "x", 3),
        ("b", "y", 2),
        ("c", "x", 1),
        ("d", "x", 4),
        ("a", "z", 4),
    ]
    parts = ["train"] * 5 + ["test", "test"]
    rows.append(("c", "y", 2))
    parts.append("test")
    rows.append(("b", "w", 2))
    parts.append("train")
    rows.append(("a", "v", 2))
    parts.append("test")
    rows += [("b", "u", 5), ("a", "u", 1), ("e", "x", 5), ("e", "y", 1), ("e", "u", 3)]
    parts += ["train", "train", "train", "train", "test"]
    config = SplitConfig(method="published", val_share=0.0)
    manifest = split(config, protocol, write_reviews(rows, tmp_path / "r", split=parts), tmp_path / "s")
    train, test = _parts(tmp_path / "s")["train"], _parts(tmp_path / "s")["test"]
    assert set(train["item_id"].to_pylist()) == {"x", "y", "u"}  # w has one training row
    assert set(train["user_id"].to_pylist()) == {"a", "b", "e"}  # so has c
    assert [(t["user_id"], t["item_id"]) for t in test.to_pylist()] == [("e", "u")]
    dropped = manifest.facts["dropped"]
    assert dropped["min_reviews"] == 2
    assert dropped["test_unknown_user"] == 2 and dropped["test_unknown_item"] == 2


def test_reviews_that_are_left_out_are_told(tmp_path, capsys):
    """24 users of one review each beside 6 of eight."""
    rows = [(f"u{u}", f"i{i}", 4.0) for u in range(6) for i in range(8)] + [
        (f"once{n}", f"i{n % 8}", 4.0) for n in range(24)
    ]
    write_sparse(rows, tmp_path / "reviews")
    split(SplitConfig(), "strict", tmp_path / "reviews", tmp_path / "split")
    said = capsys.readouterr().err
    dropped = Manifest.read(tmp_path / "split").facts["dropped"]
    unknown = dropped["test_unknown_user"] + dropped["test_unknown_item"] + dropped["test_unknown_both"]
    assert dropped["min_reviews"] > 4 and unknown > 1
    assert f"note: {dropped['min_reviews']:,} of 72 reviews are left out" in said and "--min-reviews" in said
    assert f"note: {unknown:,} of 18 test rows are left out" in said
    split(SplitConfig(min_reviews=1), "strict", tmp_path / "reviews", tmp_path / "all")
    assert "reviews are left out" not in capsys.readouterr().err


def write_sparse(rows, folder):
    users, items, ratings = zip(*rows, strict=True)
    n = len(rows)
    columns = {"user_id": users, "item_id": items, "rating": np.asarray(ratings, np.float32)}
    columns |= {field.name: pa.nulls(n, field.type) for field in REVIEWS if field.name not in columns}
    write_table(pa.table(columns, schema=REVIEWS), folder)
    Manifest("ingest", {"rows": n}, {}).write(folder)
