"""SWING on a Ray cluster of three nodes on this machine: a head without cores and two that work.

Run by test_swing_cluster.py, in a process of their own.
"""

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import swing
from swing import output, parts
from swing.interactions import build
from swing.local import Scorer

ray = pytest.importorskip("ray")
import psutil  # noqa: E402  Ray brings it along
from ray.cluster_utils import Cluster  # noqa: E402

from swing import cluster as engine  # noqa: E402

ROOT = Path(__file__).parents[2]
NODE = {"object_store_memory": 80 << 20, "include_dashboard": False}  # the smallest store that Ray takes
NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}  # a lost node, within seconds


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster()
        cluster.add_node(num_cpus=0, _system_config=NOTICE, **NODE)
        for _ in range(2):
            cluster.add_node(num_cpus=1, **NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def connected(cluster):
    """Stay connected between the jobs, so that the workers stay too."""
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="module")
def table():
    draw = random.Random(4)
    pairs = [(draw.randrange(2000), int(1500 * draw.random() ** 1.5)) for _ in range(120_000)]
    return pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").select(
        "user_id", item_id=pl.format("item {}", "item_id")
    )


@pytest.fixture(autouse=True, scope="module")
def many_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_COST", 1 << 18)
        yield


@pytest.fixture(scope="module")
def expected_files(table, many_parts, tmp_path_factory):
    """The files of a local run."""
    folder = tmp_path_factory.mktemp("local") / "out"
    assert swing.run(table, folder)["parts"] > 20
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def workers(nodes) -> list[psutil.Process]:
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
    children = [child for raylet in raylets for child in raylet.children()]
    return [child for child in children if child.cmdline()[0].startswith("ray::")]


class Accident:
    """Progress that in the middle calls `kill` with a worker of `nodes` that is scoring a part just then."""

    def __init__(self, nodes, kill):
        self.nodes, self.kill, self.after, self.done = nodes, kill, 0, 0

    def __call__(self, done):
        self.done += 1
        for worker in workers(self.nodes) if self.done >= 3 and not self.after else ():
            worker.send_signal(signal.SIGSTOP)  # what it is at now, it does not finish
            if "_score" in worker.cmdline()[0]:
                self.kill(worker)
                self.after = self.done
                return
            worker.send_signal(signal.SIGCONT)


def test_the_files_are_those_of_a_local_run(cluster, table, expected_files, tmp_path):
    report = swing.run(table, tmp_path / "out", engine="ray")
    assert files(tmp_path / "out") == expected_files
    assert report["engine"] == "ray" and report["threads"] == 1
    assert report["workers"]["processes"] >= 2 and report["workers"]["parts_redone"] == 0
    assert not ray.is_initialized()


@pytest.mark.parametrize("engines", [("local", "ray"), ("ray", "local")])
def test_one_engine_goes_on_where_the_other_stopped(connected, table, expected_files, tmp_path, engines):
    seen = []

    def stop(done):
        seen.append(done)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swing.run(table, tmp_path / "out", engine=engines[0], progress=stop)
    report = swing.run(table, tmp_path / "out", engine=engines[1])
    assert 0 < report["parts_resumed"] < report["parts"]
    assert files(tmp_path / "out") == expected_files


def test_a_killed_process_costs_only_its_part(connected, table, expected_files, tmp_path):
    accident = Accident(connected.worker_nodes, psutil.Process.kill)
    report = swing.run(table, tmp_path / "out", engine="ray", progress=accident)
    assert 0 < accident.after < report["parts"] - 1
    assert report["workers"]["parts_redone"] >= 1
    assert files(tmp_path / "out") == expected_files


def test_a_part_that_kills_its_process_again_and_again_ends_the_job(connected, table, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ATTEMPTS", 1)
    accident = Accident(connected.worker_nodes, psutil.Process.kill)
    with pytest.raises(swing.SwingError, match=r"part-\d+.parquet was lost 1 times"):
        swing.run(table, tmp_path / "out", engine="ray", progress=accident)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_on_a_worker_ends_the_job(connected, table, expected_files, tmp_path):
    folder, limited = tmp_path / "out", set()

    def limit(done):
        """A limit on the size of its files fails a worker's write as a full disk does."""
        for worker in workers(connected.worker_nodes):
            limited.add(worker)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    with pytest.raises(swing.SwingError, match=r"no room .*\(File too large\).*the same command continues"):
        swing.run(table, folder, engine="ray", progress=limit)
    assert not folder.exists() and not list((tmp_path / ".out.partial").glob(".*.tmp"))
    for worker in limited:
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    report = swing.run(table, folder, engine="ray")
    assert report["parts_resumed"] >= 1
    assert files(folder) == expected_files


def test_a_folder_that_the_workers_do_not_see_is_named(connected, table, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PLAN", "plan.json")
    begin = output.begin

    def elsewhere(*arguments):
        folder = begin(*arguments)
        (folder / output.PLAN).unlink()  # as if another folder had that name over there
        return folder

    monkeypatch.setattr(output, "begin", elsewhere)
    with pytest.raises(swing.SwingError, match="out.partial does not exist on .*storage that all machines"):
        swing.run(table, tmp_path / "out", engine="ray")


def test_other_versions_on_a_worker_are_refused(connected, table, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "versions", lambda: {"pyarrow": "0.1"})
    with pytest.raises(swing.SwingError, match="'pyarrow': '0.1'.*install the same on all"):
        swing.run(table, tmp_path / "out", engine="ray")


def test_what_the_cluster_cannot_hold_is_refused(connected, table, tmp_path, monkeypatch):
    with pytest.raises(swing.SwingError, match="9 threads fits on no machine: the largest has 1 core"):
        swing.run(table, tmp_path / "out", engine="ray", threads=9)
    monkeypatch.setattr(engine, "_bytes", lambda graph: 100 << 20)
    words = "takes 100 MiB of each machine's object store, .* 80 MiB: .* --object-store-memory 115343360"
    with pytest.raises(swing.SwingError, match=words):
        swing.run(table, tmp_path / "out", engine="ray")


def test_the_size_of_the_graph(table):
    scorer = Scorer(build(swing.read(table), swing.SwingConfig()), swing.SwingConfig())
    edges, ids = len(scorer.graph.anchor_idx), len(scorer.graph.anchor_ids)
    assert engine._bytes(scorer.graph) >= 8 * edges + 8 * ids


def test_a_lost_machine_costs_only_its_parts(connected, table, expected_files, tmp_path):
    lost = next(iter(connected.worker_nodes))

    def lose(worker):  # a machine's processes go with it; one that is only stopped would keep its connections
        worker.kill()
        connected.remove_node(lost, allow_graceful=False)

    accident = Accident([lost], lose)
    report = swing.run(table, tmp_path / "out", engine="ray", progress=accident)
    assert 0 < accident.after < report["parts"] - 1
    assert report["workers"]["parts_redone"] >= 1
    assert files(tmp_path / "out") == expected_files


def test_without_an_address_a_cluster_of_its_own_comes_and_goes(table, expected_files, tmp_path):
    table.write_parquet(tmp_path / "rows.parquet")
    script = (
        "import sys, ray, swing\n"
        "from swing import machine, parts\n"
        "parts.PART_COST = 1 << 18\n"
        "swing.run(sys.argv[1], sys.argv[2], engine='ray', threads=min(2, machine.available_cores()))\n"
        "assert not ray.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "rows.parquet", tmp_path / "out"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files(tmp_path / "out") == expected_files


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "cluster at 127.0.0.1:1 cannot be reached: .*refused"),
        ("127.0.0.1:port", "cluster at 127.0.0.1:port cannot be reached"),
        ("ray://127.0.0.1:10001", "HOST:PORT"),
    ],
)
def test_an_address_where_nobody_answers_is_named(tmp_path, table, address, words):
    with pytest.raises(swing.SwingError, match=words):
        swing.run(table, tmp_path / "out", engine="ray", address=address)


def test_without_ray_the_message_says_how_to_install_it(tmp_path, table, monkeypatch):
    monkeypatch.delitem(sys.modules, "swing.cluster")
    monkeypatch.delattr(swing, "cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(swing.SwingError, match=r"pip install 'dlrrec-torchrec\[ray\]'"):
        swing.run(table, tmp_path / "out", engine="ray")


def test_unknown_engines_and_idle_addresses(tmp_path, table):
    with pytest.raises(swing.SwingError, match="unknown engine 'spark'.*local, ray"):
        swing.run(table, tmp_path / "out", engine="spark")
    with pytest.raises(swing.SwingError, match="engine ray"):
        swing.run(table, tmp_path / "out", address="auto")
