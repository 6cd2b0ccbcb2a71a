"""A job's Ray cluster: addresses, tokens, statuses and signals, with a `ray` that behaves at its worst."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import ray_cluster
from launch.ray_cluster import LaunchError, authentication, head_address

ROOT = Path(__file__).parents[2]
NAMES = {"node7": "10.0.0.7", "me": "127.0.1.1", "localhost": "127.0.0.1"}


@pytest.fixture
def resolver(monkeypatch):
    """Names resolve to NAMES; "late" only at the third time it is asked for, and no time passes."""
    queries = []

    def resolve(name):
        queries.append(name)
        if name == "late" and queries.count(name) == 3:
            return "10.0.0.9"
        if name not in NAMES:
            raise socket.gaierror(name)
        return NAMES[name]

    clock = [0.0]
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(ray_cluster, "_own_address", lambda: "10.0.0.1")


@pytest.mark.parametrize(
    "nodes, rank, name, expected",
    [
        (1, 0, "node7", "127.0.0.1"),
        (2, 0, "node7", "10.0.0.7"),  # slurm, docker
        (2, 1, "node7", "10.0.0.7"),
        (2, 0, "localhost", "10.0.0.1"),  # kubernetes
        (2, 0, "", "10.0.0.1"),
        (2, 0, "me", "10.0.0.1"),  # a machine whose own name is a loopback address to it
        (2, 0, "unknown", "10.0.0.1"),
        (2, 1, "late", "10.0.0.9"),  # a name that appears with its pod
    ],
)
def test_every_node_finds_the_head(resolver, nodes, rank, name, expected):
    assert head_address(nodes, rank, name) == expected


@pytest.mark.parametrize("name", ["", "localhost", "unknown"])
def test_a_node_that_cannot_find_the_head_says_so(resolver, name):
    with pytest.raises(LaunchError, match=f"'{name or 'localhost'}'.*take -j 1"):
        head_address(2, 1, name)


def test_own_address_is_one_of_this_machine():
    try:
        address = ray_cluster._own_address()
    except LaunchError:
        pytest.skip("no network here")
    with socket.socket() as server:
        server.bind((address, 0))  # refused for any address but this machine's own


def test_tokens(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    first, second = authentication(1), authentication(1)
    assert first["RAY_AUTH_MODE"] == "token" and len(first["RAY_AUTH_TOKEN"]) == 64 and first != second
    with pytest.raises(LaunchError, match="share no token"):
        authentication(2)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "secret")
        assert authentication(2) == {"RAY_AUTH_MODE": "token"}
        patch.setenv("RAY_AUTH_MODE", "disabled")
        assert authentication(2) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert authentication(2) == authentication(1) == {"RAY_AUTH_MODE": "token"}


# ---- statuses and signals, with a `ray` that behaves as the real one does at its worst


@pytest.fixture
def fake_ray(tmp_path, monkeypatch):
    """Writes the body of a `ray` that is found first."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    def write(body):
        (tmp_path / "ray").write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "ray").chmod(0o755)

    return write


TO_COMMAND = 'while [ "$1" != -- ]; do shift; done; shift'


def started(*command, nodes=1, rank=0):
    words = ["--nodes", str(nodes), "--rank", str(rank), "--head-variable", "HEAD_OF_TEST"]
    return ray_cluster.main([*words, "--num-cpus=2", "--", *command])


def test_what_ray_is_told(fake_ray, tmp_path):
    fake_ray(f'printf "%s\\n" "$@" > {tmp_path}/told; {TO_COMMAND}; "$@"')
    assert started("sh", "-c", "exit 0") == 0
    arguments = (tmp_path / "told").read_text().splitlines()
    assert arguments[:6] == [
        "symmetric-run",
        "--address",
        "127.0.0.1:6379",
        "--min-nodes",
        "1",
        "--num-cpus=2",
    ]
    assert arguments[6] == "--" and arguments[-3:] == ["sh", "-c", "exit 0"]


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("ray_status", [0, 1])
def test_the_status_is_the_commands(fake_ray, status, ray_status):
    fake_ray(f'{TO_COMMAND}; "$@"; exit {ray_status}')
    assert started("sh", "-c", f"exit {status}") == status


def test_a_killed_command_is_no_success(fake_ray):
    fake_ray(f'{TO_COMMAND}; "$@"; exit 0')
    assert started("sh", "-c", "kill -9 $$") == 128 + signal.SIGKILL


def test_ray_that_does_not_start_is_no_success(fake_ray, capfd):
    fake_ray("echo cannot start; exit 0")
    assert started("true") == 1
    assert "the command did not run" in capfd.readouterr().err
    fake_ray("exit 5")
    assert started("true") == 5


def test_no_ray_at_all(fake_ray, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert started("true") == 1
    assert "pip install ray" in capsys.readouterr().err


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit):
        started()
    assert "no command" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_schedulers_signal_stops_ray(number, tmp_path):
    """It reaches the whole group; `ray` gets it as SIGINT, cleans up, and the status is the signal's."""
    (tmp_path / "ray").write_text(
        "#!/usr/bin/env -S python3\nimport pathlib, sys, time\nhere = pathlib.Path(__file__).parent\n"
        "try:\n    (here / 'up').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3)\n    (here / 'stopped').touch()\n"
    )
    (tmp_path / "ray").chmod(0o755)
    code = f"import sys; sys.executable = {str(tmp_path / 'python')!r}; from launch import ray_cluster as r; "
    code += "sys.exit(r.main(['--nodes', '1', '--rank', '0', '--head-variable', 'X', '--', 'true']))"
    process = subprocess.Popen(
        # As a shell starts a job in the background, with SIGINT ignored.
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)  # from the file to its sleep
        os.killpg(process.pid, number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
    assert (tmp_path / "stopped").exists()


def test_a_node_ends_with_the_head(fake_ray, monkeypatch, tmp_path):
    fake_ray(f"trap 'touch {tmp_path}/stopped; exit 0' INT; while true; do sleep 0.1; done")
    heard = iter([None, False, False, False, False, True, None, False, True, False, False])
    monkeypatch.setattr(ray_cluster, "_listening", lambda address: next(heard, False))
    monkeypatch.setattr(ray_cluster, "POLL", 0.01)
    monkeypatch.setattr(ray_cluster, "head_address", lambda *_: "10.0.0.7")
    assert started("true", nodes=2, rank=1) == 0
    assert (tmp_path / "stopped").exists()
    assert next(heard, "all asked") == "all asked"  # not ended by what came before


def test_listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ray_cluster._listening(address) is True
    assert ray_cluster._listening(address) is False
    assert ray_cluster._listening("name.invalid:1") is None
