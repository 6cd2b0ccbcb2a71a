"""Extraction on a Ray cluster of three nodes on this machine: a head without cores and two that work.

Run by tests/extract/cluster/test_cases.py, in a process of their own.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray")
import psutil  # noqa: E402  Ray brings it along
from ray.cluster_utils import Cluster  # noqa: E402

from dlrrec_torchrec.config import ExtractConfig, PicturesConfig  # noqa: E402
from dlrrec_torchrec.extract import stage  # noqa: E402
from dlrrec_torchrec.extract.cache import embed_cached  # noqa: E402
from dlrrec_torchrec.extract.cluster import actors as pool  # noqa: E402
from dlrrec_torchrec.extract.cluster import cluster_encoder  # noqa: E402
from dlrrec_torchrec.extract.cluster.cluster_captioner import ClusterCaptioner  # noqa: E402
from dlrrec_torchrec.extract.cluster.cluster_encoder import ClusterEncoder  # noqa: E402
from dlrrec_torchrec.extract.cluster.connection import RayCluster  # noqa: E402
from dlrrec_torchrec.extract.encoder import SentenceEncoder  # noqa: E402
from dlrrec_torchrec.extract.pictures.blip2 import Blip2Captioner  # noqa: E402
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore  # noqa: E402
from dlrrec_torchrec.extract.pictures.captions import caption_pictures  # noqa: E402
from dlrrec_torchrec.extract.pictures.opening import Opener  # noqa: E402
from dlrrec_torchrec.store.errors import DataError  # noqa: E402
from tests.extract.test_encoder import TEXTS, encode  # noqa: E402
from tests.helpers.encoders import random_encoder  # noqa: E402
from tests.helpers.pictures import picture, tiny_blip2  # noqa: E402

NODE = {"object_store_memory": 80 << 20, "include_dashboard": False}  # the smallest store that Ray takes
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}  # a lost node, within seconds
MANY = [f"{text} {number}" for number in range(40) for text in TEXTS]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(cluster_encoder, "PROCESS_CHARACTERS", 1000)  # so that both nodes have work
        cluster = Cluster()
        cluster.add_node(num_cpus=0, _system_config=NOTICE, **NODE)
        for _ in range(2):
            cluster.add_node(num_cpus=1, memory=2 << 30, **NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    random_encoder(root / "small", width=64, heads=4, layers=2)
    random_encoder(root / "cls", width=64, heads=4, pooling="cls")
    tiny_blip2(root / "blip2")
    return root


@pytest.fixture(scope="module")
def local(folders):
    """The vectors of MANY as this process makes them."""
    return encode(SentenceEncoder(str(folders / "small"), 200, device="cpu", processes=1), MANY)


def workers() -> list[psutil.Process]:
    """The processes of actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::_Worker"):
                found.append(process)
        except (psutil.Error, IndexError):
            pass
    return found


class Watched(pool.Actors):
    """Remembers itself, and calls `accident` when so many batches are done."""

    made: list = []
    accident, after = None, 20

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made.append(self)

    def map(self, batches):
        for number, done in enumerate(super().map(batches)):
            if number == self.after and self.accident:
                Watched.accident, accident = None, Watched.accident
                accident(self)
            yield done


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(pool, "Actors", Watched)
    monkeypatch.setattr(Watched, "made", [])
    return Watched


@pytest.mark.parametrize("name", ["small", "cls"])
def test_the_bits_are_the_local_ones(folders, watched, name):
    here = SentenceEncoder(str(folders / name), 200, device="cpu", processes=1)
    there = ClusterEncoder(RayCluster(), str(folders / name), 200)
    assert there.identity == here.identity and there.device == "cpu"
    texts = MANY[:400]
    np.testing.assert_array_equal(encode(there, texts), encode(here, texts))
    (actors,) = watched.made
    assert actors.most > 1 and actors.redone == 0
    assert not actors._actors  # all gone


def test_a_killed_process_costs_only_its_batches(folders, local, watched, monkeypatch):
    def kill(actors):
        victim = next(iter(workers()))
        victim.send_signal(signal.SIGSTOP)  # what it is at now, it does not finish
        victim.kill()

    monkeypatch.setattr(watched, "accident", kill)
    there = ClusterEncoder(RayCluster(), str(folders / "small"), 200)
    np.testing.assert_array_equal(encode(there, MANY), local)
    assert watched.made[0].redone >= 1 and watched.accident is None
