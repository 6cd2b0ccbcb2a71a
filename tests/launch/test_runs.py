"""Components that really run: two ranks by local_cwd, and Ray clusters of one and of two nodes.

`ray symmetric-run` ends with `ray stop`, which ends every Ray of this user that it sees. So it runs in
namespaces of its own here, which need root: a node has its own processes, network and /tmp/ray.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torchx")

from torchx.runner import get_runner  # noqa: E402

import swing  # noqa: E402
from dlrrec_torchrec import cli  # noqa: E402
from dlrrec_torchrec.store.manifest import Manifest  # noqa: E402
from launch import components  # noqa: E402
from tests.extract.test_extract import write_split  # noqa: E402
from tests.helpers.encoders import random_encoder  # noqa: E402

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
PRIVATE = "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && mount -t tmpfs none /dev/shm"


def environment(**more):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TORCHX", "SLURM"))}
    return inherited | {"PATH": f"{BIN}:{inherited['PATH']}", "PYTHONPATH": str(ROOT)} | more


def torchx(*words, prefix=()):
    result = subprocess.run(
        [*prefix, str(BIN / "torchx"), "run", "-s", "local_cwd", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


def test_two_ranks_train_and_a_job_evaluates(tiny_run, tmp_path):
    folder, config, _ = tiny_run
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    trained = Manifest.read(run / "train" / "bce").facts["best"]
    words = ["-j", "1x2", "--", "--run-dir", run, "--variant", "bce", "--seed", "7"]
    assert "[0]:train" in torchx("launch/components.py:train", *words)
    facts = Manifest.read(run / "train" / "bce").facts
    assert facts["ranks"] == 2 and facts["device"] == "cpu" and facts["epochs"] == config.train.epochs
    assert facts["best"] != trained
    before = json.loads((run / "evaluation" / "metrics.json").read_text())["models"]
    torchx("launch/components.py:evaluate", "--", "--run-dir", run)
    after = json.loads((run / "evaluation" / "metrics.json").read_text())["models"]
    assert after["dlrrec"] == before["dlrrec"] and after["bce"] != before["bce"]


def test_a_job_that_fails_says_so():
    with pytest.raises(AssertionError, match="does-not-exist"):
        torchx("launch/components.py:extract", "--", "--run-dir", "does-not-exist")


@pytest.fixture(scope="module")
def namespaces():
    pytest.importorskip("ray")
    probe = "ip link add probe0 type veth peer name probe1 && " + PRIVATE
    try:
        result = subprocess.run([*NODE, "--net", "sh", "-c", probe], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no namespaces here: {error}")
    if result.returncode:
        pytest.skip(f"no namespaces here: {result.stderr}")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """(table of interactions, folder of their neighbours as one machine finds them)."""
    folder = tmp_path_factory.mktemp("clicks")
    draws = np.random.default_rng(3).random((2, 6000))
    pl.DataFrame(
        {"user_id": (draws[0] ** 1.3 * 400).astype(int), "item_id": (draws[1] ** 2 * 90).astype(int)}
    ).write_parquet(folder / "clicks.parquet")
    swing.run(folder / "clicks.parquet", folder / "local", swing.SwingConfig(), "items")
    return folder / "clicks.parquet", folder / "local"


def same_parts(actual, expected):
    names = sorted(path.name for path in expected.glob("part-*"))
    assert names and names == sorted(path.name for path in actual.glob("part-*"))
    assert all((actual / name).read_bytes() == (expected / name).read_bytes() for name in names)
    assert json.loads((actual / "manifest.json").read_text())["engine"] == "ray"


def test_swing_on_a_cluster_of_one_node(namespaces, clicks, tmp_path):
    table, expected = clicks
    prefix = [*NODE, "--net", "sh", "-c", f'ip link set lo up && {PRIVATE} && "$@"; exit $?', "sh"]
    words = ["launch/components.py:swing", "items", "--input", table, "--output", tmp_path / "out"]
    output = torchx(*words, prefix=prefix)
    assert "On head node" in output
    same_parts(tmp_path / "out", expected)


# Two hosts that see each other by a cable, and by their names; each runs its line.
TWO_NODES = """
mount -t tmpfs none /run
ip link set lo up
for n in 0 1; do ip netns add node$n && ip -n node$n link set lo up; done
ip link add eth0 netns node0 type veth peer name eth0 netns node1
for n in 0 1; do ip -n node$n addr add 10.77.0.$((n+1))/24 dev eth0 && ip -n node$n link set eth0 up; done
hosts=$1
start() {
  ip netns exec node$1 %(node)s sh -c '
    %(private)s && mount --bind "$0" /etc/hosts && exec sh -c "$1"
  ' "$hosts" "$2"
}
start 1 "$3" >"$4" 2>&1 & other=$!
start 0 "$2"; status=$?
wait $other || status=$?
exit $status
"""


def on_two_nodes(app, folder):
    """What Docker would be asked to run on two hosts runs on two hosts; only their containers are missing."""
    with get_runner() as runner:
        first, second = runner.dryrun(app, "local_docker", {}).request.containers
    hosts = folder / "hosts"
    names = [container.kwargs["hostname"] for container in (first, second)]
    hosts.write_text(f"127.0.0.1 localhost\n10.77.0.1 {names[0]}\n10.77.0.2 {names[1]}\n")

    def line(container):
        settings = [f"{name}={value}" for name, value in container.kwargs["environment"].items()]
        return "exec env " + shlex.join([*settings, *container.command])

    script = TWO_NODES % {"node": shlex.join(NODE), "private": PRIVATE}
    result = subprocess.run(
        [*NODE, "--net", "sh", "-c", script, "sh", hosts, line(first), line(second), folder / "log"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    other = (folder / "log").read_text()
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:] + other[-3000:]
    assert "On head node" in result.stdout and "On worker node. Connecting" in other
    assert "the first node has finished" in other


def test_swing_on_a_cluster_of_two_nodes(namespaces, clicks, tmp_path):
    table, expected = clicks
    words = ["items", "--input", str(table), "--output", str(tmp_path / "out")]
    on_two_nodes(components.swing(*words, j=2, cpu=1, env={"RAY_AUTH_TOKEN": "secret-of-both"}), tmp_path)
    same_parts(tmp_path / "out", expected)


def test_extract_on_a_cluster_of_two_nodes(namespaces, tmp_path):
    random_encoder(tmp_path / "encoder", width=64, heads=4)
    texts = [
        f"Dish {n} was {'very ' * (n % 3)}good and table {7 * n} was near the window." for n in range(2000)
    ]
    rows = [(f"u{n % 40}", f"i{n % 25}", " ".join(texts[5 * n : 5 * n + 5]), None) for n in range(400)]
    for name in ("here", "there"):
        write_split(rows, tmp_path / name / "split")
        words = ["--encoder", str(tmp_path / "encoder"), "--folds", "2", "--run-dir", str(tmp_path / name)]
        if name == "here":
            assert cli.main(["extract", *words]) == 0
        else:
            app = components.extract(*words, j=2, cpu=1, env={"RAY_AUTH_TOKEN": "secret-of-both"})
            on_two_nodes(app, tmp_path)
    here, there = (Manifest.read(tmp_path / name / "content") for name in ("here", "there"))
    assert there.facts["engine"] == "ray" and there.fingerprint == here.fingerprint
    assert there.facts["embedded"] == here.facts["embedded"] >= 2000
    for kind in ("reviews", "users", "items"):
        tables = [pq.read_table(tmp_path / name / "content" / kind) for name in ("here", "there")]
        assert tables[0].equals(tables[1])
