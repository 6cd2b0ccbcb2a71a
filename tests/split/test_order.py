"""`--method last`: the last review is tested, the one before it chooses."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrrec_torchrec.split.stage import DROPPED, TEST, TRAIN, VAL, assign_parts


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_last_two_reviews_of_a_user_are_held_out(data):
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=12, unique=True).filter(
            lambda rows: max(np.bincount([u for u, _ in rows])) > 4
        )
    )
    user, item = (np.array(column) for column in zip(*sorted(pairs), strict=True))
    time = np.array(data.draw(st.permutations(range(len(user)))))
    share = data.draw(st.sampled_from([0.1, 1.0]))
    ids = {"min_reviews": 1, "val_share": share, "timestamp": time}
    try:
        part, _ = assign_parts(user, item, method="last", strict=True, **ids)
    except Exception as error:  # too few rows for every part
        assert "no val row is left" in str(error) or "no test row is left" in str(error)
        return
    rest = (part != TEST) & (part != DROPPED)
    assert (part == VAL).sum() <= round(share * len(user))
    for code in np.unique(user):
        mine = np.flatnonzero(user == code)
        mine = mine[np.argsort(time[mine])]
        assert not set(mine[:-1]) & set(np.flatnonzero(part == TEST))
        held_out = [row for row in mine if part[row] == VAL]
        assert len(held_out) <= 1
        assert all(time[row] > time[other] for row in held_out for other in mine if part[other] == TRAIN)
    assert rest.any()


def test_of_reviews_at_one_time_a_random_one_is_the_last():
    users = 400
    user = np.repeat(np.arange(users), 3)
    item = np.tile(np.arange(3), users)
    part, _ = assign_parts(
        user, item, method="last", strict=True, timestamp=np.zeros(3 * users), val_share=0.0, min_reviews=1
    )
    tested = np.bincount(item[part == TEST])
    assert (tested > 0.25 * users).all()
