"""One node of a job on Ray: `python -m launch.ray_cluster --nodes N --rank R --head-variable V -- COMMAND`.

The same line starts on all N nodes. It runs `ray symmetric-run`, which starts Ray on each of them, runs
COMMAND on the first (rank 0) and stops Ray. Unknown options before the `--` go to `ray start`. This program
handles what `ray symmetric-run` does not:

- Rank 0 needs an address of its own that is not a loopback address, or it waits for a head like the others;
  but TorchX calls it localhost on Kubernetes, and a Debian machine resolves its own name to 127.0.1.1.
- Unlike `ray start`, it does not detect an authentication token.
- Its status is not COMMAND's: 0 where Ray did not start or it was interrupted, 1 where the head of several
  nodes misses the Ray that it has just stopped.
- SIGTERM, which schedulers send to end a job, would leave Ray running.
- The other nodes wait a minute for a head that has finished, and then print Ray's whole state as an error.
- The first process of a container inherits Ray's processes and must reap them; `ray stop` waits for that.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = (
    "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"  # seconds that nodes wait for each other; Ray's own variable
)
POLL = 1.0  # seconds between two checks of the other processes
REFUSALS = 3  # in a row, after which the head counts as finished


class LaunchError(Exception):
    """The cluster cannot be started; the message says why and what to do."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m launch.ray_cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, required=True, help="nodes of the job")
    parser.add_argument("--rank", type=int, required=True, help="number of this node, from 0")
    parser.add_argument(
        "--head-variable", required=True, metavar="NAME", help="variable that holds the name of rank 0's node"
    )
    parser.add_argument("--port", type=int, default=6379, help="port of Ray on rank 0's node (default: 6379)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run this node's part; returns COMMAND's status on rank 0, elsewhere that of `ray symmetric-run`."""
    words = sys.argv[1:] if argv is None else argv
    own_words, command = words, []
    if "--" in words:
        cut = words.index("--")
        own_words, command = words[:cut], words[cut + 1 :]
    parser = build_parser()
    options, ray_options = parser.parse_known_args(own_words)
    if not command:
        parser.error("no command after '--'")
    try:
        head = head_address(options.nodes, options.rank, os.environ.get(options.head_variable, ""))
        os.environ.update(authentication(options.nodes))
        return run(f"{head}:{options.port}", options.nodes, options.rank == 0, ray_options, command)
    except LaunchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1


def head_address(nodes: int, rank: int, name: str) -> str:
    """The IPv4 address under which every node reaches rank 0's node.

    Args:
        name: the scheduler's name of that node; on rank 0 itself it may be "localhost" or empty.

    Raises LaunchError where one of several nodes cannot resolve the name in time.
    """
    if nodes == 1:
        return "127.0.0.1"
    name = name or "localhost"
    address = _resolve(name, float(os.environ.get(PATIENCE, 30)) if rank else 0)
    if address and not ipaddress.ip_address(address).is_loopback:
        return address
    if rank:
        raise LaunchError(
            f"node {rank} knows the first node as '{name}' ({address or 'not found'}): {nodes} nodes need a "
            "scheduler that gives each its own address, as slurm and kubernetes do; on one machine take -j 1"
        )
    return _own_address()


def _resolve(name: str, seconds: float) -> str | None:
    """The address of `name`; on Kubernetes it is known only some time after the other node started."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            return socket.gethostbyname(name)
        if time.monotonic() >= end:
            return None
        time.sleep(1)


def _own_address() -> str:
    """The address of this node's outgoing route; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation
        except OSError as error:
            raise LaunchError(f"this node has no network to reach others: {error}") from error
        return probe.getsockname()[0]


def authentication(nodes: int) -> dict[str, str]:
    """Variables by which Ray's processes authenticate; without a token anybody who reaches them can run code.

    A cluster of one node gets a new token where there is none. Raises LaunchError where several nodes
    share none.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    shared = Path.home() / ".ray" / "auth_token"
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or shared.exists():
        return {"RAY_AUTH_MODE": "token"}
    if nodes == 1:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    raise LaunchError(
        f"{nodes} nodes share no token: `ray get-auth-token --generate` writes one into a home folder that "
        "all nodes see; or pass --env RAY_AUTH_TOKEN=SECRET, or RAY_AUTH_MODE=disabled on your own network"
    )


def run(address: str, nodes: int, head: bool, ray_options: list[str], command: list[str]) -> int:
    """Run `ray symmetric-run`; returns the command's status on the head, 128 + N where signal N ended it.

    SIGTERM and SIGINT end it and stop Ray. Raises LaunchError where Ray cannot be started.
    """
    scripts = str(Path(sys.executable).parent)  # where `ray` and `python` of this environment are
    environment = os.environ | {"PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "status"
        words = ["ray", "symmetric-run", "--address", address, "--min-nodes", str(nodes), *ray_options, "--"]
        words += ["sh", "-c", '"$@"; status=$?; echo $status >"$0"; exit $status', str(result), *command]
        received, status = _until_end(words, environment, None if head else address)
        if result.exists():
            return int(result.read_text())
    if received:
        return 128 + received
    if head and status == 0:
        raise LaunchError(f"Ray did not start on {address}, so the command did not run; see above")
    return status


def _until_end(words: list[str], environment: dict[str, str], head: str | None) -> tuple[int, int]:
    """Run `words`; returns (the signal that asked this process to end, or 0; the status of `words`).

    `head`: the address of the cluster's head; where given, the run ends when the head does.
    """
    process: subprocess.Popen | None = None
    received = 0

    def end(number: int, _frame: object = None) -> None:
        nonlocal received
        received = number
        if process:
            os.killpg(process.pid, signal.SIGINT)  # as from a keyboard, which `ray symmetric-run` expects

    # Set before the process starts, so that it gets SIGINT's default even where SIGINT was ignored here.
    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    head_seen, refused = False, 0
    try:
        # In a new process group: a signal to the scheduler's group must not end it at once.
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        if received:
            end(received)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return received, abs(process.returncode)
            if pid:
                continue  # an orphan of the container
            time.sleep(POLL)
            if head and refused < REFUSALS:
                listening = _listening(head)
                head_seen |= bool(listening)
                refused = refused + 1 if head_seen and listening is False else 0
                if refused == REFUSALS:
                    print("launch: the first node has finished; stopping Ray here", file=sys.stderr)
                    os.killpg(process.pid, signal.SIGINT)
    except FileNotFoundError as error:
        raise LaunchError(f"no `{words[0]}` on PATH: {environment['PATH']}; pip install ray") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _listening(address: str) -> bool | None:
    """Whether the port is open; None if unknown, where Ray's own time limit decides."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True


if __name__ == "__main__":
    sys.exit(main())
