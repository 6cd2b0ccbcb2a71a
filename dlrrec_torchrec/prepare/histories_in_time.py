"""Each user's training items in the order of time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dlrrec_torchrec.prepare.inputs import SplitRows

_TIES = 0  # seed of the order of rows of one time


def histories(train: SplitRows, users: int) -> pa.ListArray:
    """For each user the codes of its training items, the latest last; in random order where times are not
    known. Items of one time are in random order too: that of their ids could tell something.

    Args:
        users: how many there are.
    """
    order = np.random.default_rng(_TIES).permutation(len(train.user))
    if train.time is not None:
        order = order[np.argsort(train.time[order], kind="stable")]
    order = order[np.argsort(train.user[order], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(train.user, minlength=users))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(train.item[order], pa.int32()))


def later_share(train: SplitRows, held_out: SplitRows) -> float:
    """Share of the held-out rows that come after a training row of their user and before none; 0 without rows
    or where times are not known. A row of the one time that all of them have is in no order with them.
    """
    if train.time is None or held_out.time is None or not len(held_out.time):
        return 0.0
    ends = np.iinfo(np.int64)
    users = int(train.user.max()) + 1
    earliest, latest = np.full(users, ends.max), np.full(users, ends.min)
    np.minimum.at(earliest, train.user, train.time)
    np.maximum.at(latest, train.user, train.time)
    user, time = held_out.user, held_out.time
    return float(((time >= latest[user]) & (time > earliest[user])).mean())
