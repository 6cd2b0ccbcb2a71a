"""Users' items in time, against plain lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.data import sequences as module
from dlrrec_torchrec.data.listing import recent_ranges
from dlrrec_torchrec.data.sequences import Sequences
from dlrrec_torchrec.evaluation.peers.transitions import by_transitions, transitions
from dlrrec_torchrec.prepare.histories_in_time import histories, later_share
from dlrrec_torchrec.prepare.inputs import SplitRows

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=8, unique=True), min_size=1, max_size=5)


def of(lists):
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])])
    return Sequences(offsets, np.array([code for items in lists for code in items], np.int32))


@given(LISTS, st.integers(1, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_places_and_what_comes_before(lists, window, data):
    known = of(lists)
    user = np.array(data.draw(st.lists(st.integers(-1, len(lists) - 1), min_size=1, max_size=6)))
    item = np.array(data.draw(st.lists(st.integers(-1, 9), min_size=len(user), max_size=len(user))))
    whole, module.WINDOW = module.WINDOW, window  # so that some items lie before it
    try:
        place = known.place(user, item)
    finally:
        module.WINDOW = whole
    mine = [lists[u] if u >= 0 else [] for u in user]
    assert place.tolist() == [m.index(i) if i in m else len(m) for m, i in zip(mine, item, strict=True)]
    assert known.number(user).tolist() == [len(m) for m in mine]
    rows, items = known.latest(user, window)
    assert [items[rows == r].tolist() for r in range(len(user))] == [m[-window:] for m in mine]
    for first, last in recent_ranges(5):
        rows, items, lengths = known.before(user, place, first, last)
        expected = [m[max(p - last, 0) : max(p - first, 0)] for m, p in zip(mine, place, strict=True)]
        assert [items[rows == r].tolist() for r in range(len(user))] == expected
        assert lengths.tolist() == [len(e) for e in expected]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)),
        min_size=1,
        unique_by=lambda t: t[:2],
    )
)
@settings(max_examples=40, deadline=None)
def test_histories_are_in_time(rows):
    user, item, time = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    ones = np.ones(len(user), np.float32)
    lists = histories(SplitRows(user, item, ones, ones, time.astype(np.int64)), 4)
    at = {(u, i): t for u, i, t in rows}
    for code, items in enumerate(lists.to_pylist()):
        assert sorted(items) == sorted(item[user == code].tolist())
        times = [at[code, i] for i in items]
        assert times == sorted(times)
    unknown = histories(SplitRows(user, item, ones, ones), 4)
    assert [sorted(x) for x in unknown.to_pylist()] == [sorted(x) for x in lists.to_pylist()]
    assert isinstance(lists, pa.ListArray)


def test_items_of_one_time_are_not_in_the_order_of_their_codes():
    item = np.arange(200, dtype=np.int32)
    zeros = np.zeros(200)
    rows = SplitRows(zeros.astype(np.int32), item, zeros, zeros, zeros.astype(np.int64))
    found = histories(rows, 1)[0].as_py()
    assert abs(np.corrcoef(item, found)[0, 1]) < 0.3


def test_share_of_rows_that_come_later():
    def rows(user, time):
        codes = np.array(user, np.int32)
        return SplitRows(codes, codes, codes, codes, None if time is None else np.array(time, np.int64))

    train = rows([0, 0, 1], [5, 7, 3])
    assert later_share(train, rows([0, 1, 0, 1], [8, 2, 7, 4])) == 0.75
    assert later_share(train, rows([1, 0, 1, 0], [3, 7, 3, 6])) == 0.25  # all of user 1's have one time
    assert later_share(rows([0, 0, 1], [5, 5, 5]), rows([0, 1], [5, 5])) == 0
    assert later_share(train, rows([], [])) == 0 == later_share(train, rows([0], None))
    assert later_share(rows([0], None), rows([0], [1])) == 0


@given(LISTS, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_transitions_against_loops(lists, window):
    counts = np.zeros((10, 10))
    for items in lists:
        for first, i in enumerate(items):
            for step, j in enumerate(items[first + 1 : first + 1 + window], 1):
                counts[i, j] += 1 / step
    follows = transitions(of(lists), 10, window)
    np.testing.assert_allclose(follows.toarray(), counts / (counts.sum(1, keepdims=True) + 10), rtol=1e-6)
    scores = by_transitions(of(lists), follows, 2.0)(np.arange(len(lists)))
    for row, items in enumerate(lists):
        weights = np.exp(-np.arange(len(items)) / 2.0)
        expected = sum(
            (w * follows.toarray()[i] for w, i in zip(weights, items[::-1], strict=True)), np.zeros(10)
        )
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5, atol=1e-7)
