"""Groups and ranks: what a launcher says, and groups that live as long as the default one."""

import os

import pytest
import torch.distributed as dist

from dlrrec_torchrec.distributed import launcher
from dlrrec_torchrec.distributed.lockstep import host_group
from dlrrec_torchrec.distributed.ranks import process_group


def test_a_group_is_made_once_for_each_purpose():
    with process_group("cpu"):
        purposes = [f"purpose {n}" for n in range(5)]
        groups = [host_group(purpose) for purpose in purposes]
        assert len(set(map(id, groups))) == 5
        again = [host_group(purpose) for purpose in purposes]
        assert all(a is b for a, b in zip(groups, again, strict=True))


def test_groups_end_with_the_default_group():
    with process_group("cpu"):
        first = host_group("batches")
    with process_group("cpu"):
        second = host_group("batches")
        assert second is not first
        dist.barrier(group=second)


@pytest.mark.parametrize(
    "environment, launched, first, on_node",
    [
        ({}, False, True, 0),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True, True, 0),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, True, False, 1),
    ],
)
def test_what_a_launcher_says(monkeypatch, environment, launched, first, on_node):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ | environment)
    assert launcher.is_launched() == launched
    assert launcher.is_first_rank() == first
    assert launcher.rank_on_node() == on_node
