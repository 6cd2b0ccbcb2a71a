"""Extraction on a Ray cluster of three nodes on this machine: a head without cores and two that work.

Run by tests/extract/cluster/test_cases.py, in a process of their own.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray")
import psutil  # noqa: E402  Ray brings it along
from ray.cluster_utils import Cluster  # noqa: E402

from dlrrec_torchrec.config import ExtractConfig, LlmConfig, PicturesConfig  # noqa: E402
from dlrrec_torchrec.extract import stage  # noqa: E402
from dlrrec_torchrec.extract.cache import embed_cached  # noqa: E402
from dlrrec_torchrec.extract.cluster import actors as pool  # noqa: E402
from dlrrec_torchrec.extract.cluster import cluster_encoder, connection  # noqa: E402
from dlrrec_torchrec.extract.cluster.cluster_captioner import ClusterCaptioner  # noqa: E402
from dlrrec_torchrec.extract.cluster.cluster_encoder import ClusterEncoder  # noqa: E402
from dlrrec_torchrec.extract.cluster.connection import RayCluster  # noqa: E402
from dlrrec_torchrec.extract.encoder import SentenceEncoder  # noqa: E402
from dlrrec_torchrec.extract.llm import server as llm_server  # noqa: E402
from dlrrec_torchrec.extract.pictures.blip2 import Blip2Captioner  # noqa: E402
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore  # noqa: E402
from dlrrec_torchrec.extract.pictures.captions import caption_pictures  # noqa: E402
from dlrrec_torchrec.extract.pictures.opening import Opener  # noqa: E402
from dlrrec_torchrec.store import schema  # noqa: E402
from dlrrec_torchrec.store.errors import DataError  # noqa: E402
from dlrrec_torchrec.store.files import read_table, write_table  # noqa: E402
from tests.extract.test_encoder import TEXTS, encode  # noqa: E402
from tests.extract.test_extract import write_split  # noqa: E402
from tests.helpers.encoders import random_encoder  # noqa: E402
from tests.helpers.model_server import ModelServer  # noqa: E402
from tests.helpers.pictures import picture, tiny_blip2  # noqa: E402

NODE = {"object_store_memory": 80 << 20, "include_dashboard": False}  # the smallest store that Ray takes
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}  # a lost node, within seconds
FEW = ["word " * 300]  # work for one actor
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
    return encode(SentenceEncoder(str(folders / "small"), 200, device="cpu", workers=1), MANY)


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


def kill_soon(actors) -> None:
    """Stop a process that has loaded, so that it finishes nothing, and end it once it has work."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for worker in workers():
            if not worker.cmdline()[0].endswith((".ready", ".__init__")):
                worker.send_signal(signal.SIGSTOP)
                threading.Timer(1.0, worker.kill).start()
                return
        time.sleep(0.05)


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
    here = SentenceEncoder(str(folders / name), 200, device="cpu", workers=1)
    there = ClusterEncoder(RayCluster(), str(folders / name), 200)
    assert there.identity == here.identity and there.device == "cpu"
    texts = MANY[:120] if name == "small" else [*TEXTS[:8], *FEW]
    np.testing.assert_array_equal(encode(there, texts), encode(here, texts))
    (actors,) = watched.made
    assert (actors.most > 1) == (name == "small") and actors.redone == 0
    assert not actors._actors  # all gone


def test_a_killed_process_costs_only_its_batches(folders, local, watched, monkeypatch):
    monkeypatch.setattr(watched, "accident", kill_soon)
    there = ClusterEncoder(RayCluster(), str(folders / "small"), 200)
    np.testing.assert_array_equal(encode(there, MANY), local)
    assert watched.made[0].redone >= 1 and watched.accident is None


def test_a_batch_that_ends_its_process_again_and_again_ends_the_command(folders, watched, monkeypatch):
    monkeypatch.setattr(pool, "ATTEMPTS", 1)
    monkeypatch.setattr(watched, "accident", kill_soon)
    there = ClusterEncoder(RayCluster(), str(folders / "small"), 200)
    with pytest.raises(DataError, match="--encoder.: 1 processes .* ended at the same work.*is kept"):
        encode(there, MANY)


def test_one_engine_goes_on_where_the_other_stopped(folders, local, watched, tmp_path, monkeypatch):
    def stop(actors):
        raise KeyboardInterrupt

    monkeypatch.setattr(watched, "accident", stop)
    there = ClusterEncoder(RayCluster(), str(folders / "small"), 200)
    with pytest.raises(KeyboardInterrupt):
        embed_cached(MANY, there, tmp_path)
    here = SentenceEncoder(str(folders / "small"), 200, device="cpu", workers=1)
    vectors, made = embed_cached(MANY, here, tmp_path)
    assert 0 < made < len(MANY)
    np.testing.assert_array_equal(vectors, local.astype(np.float16))
    assert embed_cached(MANY, there, tmp_path)[1] == 0 and len(watched.made) == 1


def test_captions_are_the_local_ones(folders, watched, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        picture(number).save(photos / f"{number}.png")
    (photos / "copy.png").write_bytes((photos / "3.png").read_bytes())
    names = sorted(path.name for path in photos.iterdir())
    here = Blip2Captioner(str(folders / "blip2"), "cpu")
    there = ClusterCaptioner(RayCluster(), str(folders / "blip2"))
    assert there.identity == here.identity
    monkeypatch.setattr(watched, "after", 2)
    monkeypatch.setattr(watched, "accident", kill_soon)
    found = [
        caption_pictures(names, Opener(photos), captioner, CaptionStore(tmp_path / name), batch=2)
        for name, captioner in (("there", there), ("here", here))
    ]
    assert found[0] == found[1] and len({c.caption for c in found[0].values()}) > 1
    (actors,) = watched.made
    assert watched.accident is None and actors.redone >= 1
    again = caption_pictures(names, Opener(photos), here, CaptionStore(tmp_path / "there"), batch=2)
    assert again == found[0]


def with_pictures(split, folder):
    """A picture for each row, some rows with the same."""
    table = read_table(split / "train", schema.SPLIT)
    names = [[f"{row % 5}.png"] for row in range(len(table))]
    for number in range(5):
        picture(number).save(folder / f"{number}.png")
    place = table.column_names.index("images")
    write_table(table.set_column(place, "images", pa.array(names, pa.list_(pa.string()))), split / "train")
    return split


def test_content_is_the_local_one_and_calls_stay_in_this_process(folders, watched, tmp_path, monkeypatch):
    """One process makes the calls, so its limits and its budget are those of the whole command."""
    monkeypatch.setattr(cluster_encoder, "PROCESS_CHARACTERS", 200)
    calls = []

    class Here(llm_server.Server):
        async def __call__(self, call):
            calls.append((os.getpid(), self))
            return await super().__call__(call)

    monkeypatch.setattr(llm_server, "Server", Here)
    server = ModelServer()
    rows = [
        (f"u{n % 4}", f"i{n % 3}", f"The pizza of visit {n} was cheap. {TEXTS[n]}", None) for n in range(8)
    ]
    pictures = PicturesConfig("blip2", str(folders / "blip2"), picture_folder=str(tmp_path))
    made = {}
    with server.running() as url:
        for engine in ("local", "ray"):
            root = tmp_path / engine
            settings = ExtractConfig("llm", encoder=str(folders / "small"), folds=2, engine=engine)
            llm = LlmConfig(base_url=url, requests_per_minute=6000)
            where = (
                with_pictures(write_split(rows, root / "split"), tmp_path),
                root / "no-items",
                root / "content",
                root / "cache",
            )
            made[engine] = stage.extract(settings, *where, llm=llm, pictures=pictures)
            asked = sum(server.seen.values())
            assert len(calls) == asked
            if engine == "local":
                assert not watched.made
    assert watched.made and {pid for pid, _ in calls} == {os.getpid()}
    assert len({id(one) for _, one in calls}) == 4  # users and items of two runs, one after the other
    assert made["ray"].fingerprint == made["local"].fingerprint
    assert made["ray"].facts["engine"] == "ray" and made["ray"].facts["pictures"]["described"] > 3
    kinds = [type(actors.job).__name__ for actors in watched.made]
    assert kinds[0] == "_Describing" and "_Embedding" in kinds
    names = [path.relative_to(tmp_path / "local") for path in (tmp_path / "local/content").rglob("part-*")]
    assert len(names) >= 4
    for name in names:
        if "provenance" not in str(name):
            here, there = (pq.read_table(tmp_path / engine / name) for engine in ("local", "ray"))
            assert here.equals(there), name
    again = stage.extract(
        ExtractConfig("llm", encoder=str(folders / "small"), folds=2),
        *where,
        llm=llm,
        pictures=pictures,
    )
    assert again.reused


def test_a_folder_that_the_nodes_do_not_see_is_named(folders, tmp_path):
    shutil.copytree(folders / "small", tmp_path / "model")
    there = ClusterEncoder(RayCluster(), str(tmp_path / "model"), 200)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="node .* Ray cluster: .*is another encoder.*put the same files"):
        encode(there, FEW)
    prepare = there._backend.prepare(MANY[:1])
    assert len(prepare.lengths) == 1  # the tokeniser is in memory: the folder may go
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(DataError, match=f"node .*{tmp_path}/model: there is no such folder.*--engine"):
        encode(there, FEW)
    captioner = ClusterCaptioner(RayCluster(), str(folders / "blip2"))
    job = dataclasses.replace(captioner._job, model=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"\(--captioner-model\) .*nowhere: there is no such folder"):
        job.load()
    with pytest.raises(DataError, match="is another model"):
        dataclasses.replace(captioner._job, identity="blip2 other").load()


def test_what_the_cluster_cannot_do_is_refused(folders, monkeypatch):
    there = ClusterEncoder(RayCluster(), str(folders / "small"), 200)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_versions", lambda: {"torch": "0.1"})
        with pytest.raises(DataError, match="node .* has .*, the machine .* {'torch': '0.1'}: install"):
            encode(there, FEW)
    there._job = dataclasses.replace(there._job, weights=8 << 30)
    with pytest.raises(DataError, match="none of the 3 nodes .* a core and 10,940 MiB; .*--engine local"):
        encode(there, FEW)
    with pytest.raises(DataError, match="none of the 3 nodes .*takes a GPU"):
        pool.Actors(there._job, "cuda", 1).__enter__()

    class EndsItself:
        name, weights = "this test", 0

        def load(self):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(pool, "ATTEMPTS", 2)
    with pytest.raises(DataError, match="2 processes .* ended before they had loaded the model"):
        with pool.Actors(EndsItself(), "cpu", 1) as actors:
            list(actors.map([1]))


def test_gpus_are_taken_where_the_cluster_has_them(folders, monkeypatch):
    cluster = RayCluster()
    monkeypatch.setattr(RayCluster, "resources", lambda self: [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}])
    monkeypatch.setattr(connection, "version", lambda name: "2.13.0+cpu")
    assert cluster.device == "cpu"
    cluster = RayCluster()
    monkeypatch.setattr(connection, "version", lambda name: "2.13.0+cu130")
    assert cluster.device == "cuda"
    there = ClusterEncoder(cluster, str(folders / "small"), 200)
    assert there.identity.endswith(" cuda") and there.batch_tokens == 16 * 200
    assert there._backend.identity.endswith(" cpu")  # tokens and widths, on a machine that may have no GPU
    assert pool.Actors(there._job, "cuda", 1)._needs == {"GPU": 1}
    assert ClusterCaptioner(cluster, folders / "blip2").identity.split()[2] == "torch.float16"


def test_without_an_address_a_cluster_of_its_own_comes_and_goes(folders, tmp_path):
    script = (
        "import sys, numpy as np, ray\n"
        "from dlrrec_torchrec.extract.cluster import cluster_encoder as module\n"
        "from dlrrec_torchrec.extract.cluster.connection import RayCluster\n"
        "module.PROCESS_CHARACTERS = 100\n"
        "with RayCluster() as cluster:\n"
        "    encoder = module.ClusterEncoder(cluster, sys.argv[1])\n"
        "    texts = [f'number {i} is good' for i in range(200)]\n"
        "    vectors = {int(i): v for b, some in encoder.encode_batches(texts) for i, v in zip(b, some)}\n"
        "assert not ray.is_initialized() and len(vectors) == 200\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folders / "small"],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
