"""The files around the components: .torchxconfig, what copies leave out, and the Slurm of one machine."""

from __future__ import annotations

import configparser
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import pytest

pytest.importorskip("torchx")

from torchx.runner import get_runner  # noqa: E402
from torchx.runner.config import apply, get_config, load_sections  # noqa: E402
from torchx.schedulers import get_scheduler_factories  # noqa: E402
from torchx.specs import AppState  # noqa: E402
from torchx.specs.builders import materialize_appdef  # noqa: E402
from torchx.workspace.api import walk_workspace  # noqa: E402

from dlrrec_torchrec.store.manifest import Manifest
from launch import components  # noqa: E402

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "launch" / "slurm_local.sh"


# ---- .torchxconfig


def test_every_line_of_the_configuration_is_known_to_torchx():
    """TorchX leaves out what it does not know without a word. Lines that are commented out count too."""
    text = (ROOT / ".torchxconfig").read_text()
    parser = configparser.ConfigParser()
    parser.optionxform = str
    lines = [line.removeprefix("# ") if line.startswith("# ") else line for line in text.splitlines()]
    offered = [line for line in lines if line.startswith("[") or line.split(" = ")[0].isidentifier()]
    parser.read_string("\n".join(offered))
    factories = get_scheduler_factories()
    schedulers = [name for name in parser.sections() if ":" not in name]
    assert schedulers == ["local_cwd", "local_docker", "slurm", "kubernetes"]
    for name in schedulers:
        options = {option for option, _ in factories[name](session_name="_").run_opts()}
        assert parser.options(name) and set(parser.options(name)) <= options, name
    for name in parser.sections():
        kind, _, target = name.partition(":")
        if kind == "component":
            file, function = target.split(":")
            assert (ROOT / file).exists()
            assert set(parser.options(name)) <= set(
                inspect.signature(getattr(components, function)).parameters
            )


@pytest.mark.parametrize("scheduler", ["local_cwd", "local_docker", "slurm", "kubernetes"])
def test_a_job_takes_its_defaults_from_the_configuration(scheduler):
    cfg = {}
    apply(scheduler, cfg, dirs=[str(ROOT)])
    defaults = load_sections("component", dirs=[str(ROOT)])["launch/components.py:train"]
    app = materialize_appdef(components.train, ["-j", "1x2", "--", "--run-dir", "x"], defaults)
    assert "--max_restarts 3" in app.roles[0].args[1]
    with get_runner() as runner:  # for Kubernetes a queue is required
        request = repr(runner.dryrun(app, scheduler, cfg))
    assert "--max_restarts 3" in " ".join(request.split())
    assert get_config("cli", "run", "scheduler", dirs=[str(ROOT)]) == "local_cwd"


def test_a_dry_run_needs_no_docker():
    command = [str(Path(sys.executable).with_name("torchx")), "run", "--dryrun", "-s", "kubernetes"]
    command += ["launch/components.py:train", "-j", "2x8", "--", "--run-dir", "runs/two"]
    environment = os.environ | {"DOCKER_HOST": "unix:///nowhere"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "--run-dir runs/two" in shown.stdout and "Traceback" not in shown.stderr


@pytest.mark.parametrize("ignore", [".dockerignore", ".torchxignore"])
def test_copies_hold_the_programs_and_nothing_large(ignore, tmp_path):
    left_out = [".git/config", ".venv/bin/python", "runs/demo/model", "dlrrec_torchrec/__pycache__/x.pyc"]
    left_out += ["slurm-1-train-0.out", "dlrrec_torchrec.egg-info/PKG-INFO", "swing/a/__pycache__/y.pyc"]
    kept = ["dlrrec_torchrec/models/towers.py", "launch/components.py", "setup.cfg", "configs/demo.yaml"]
    for name in left_out + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / ignore, tmp_path)
    walked = walk_workspace(fsspec.filesystem("file"), str(tmp_path), ignore_name=ignore)
    copied = {
        str(Path(info["name"]).relative_to(tmp_path)) for *_, files in walked for info in files.values()
    }
    assert set(kept) <= copied and not copied & set(left_out)


# ---- launch/slurm_local.sh


def slurm_local(*words, **options):
    return subprocess.run([str(SLURM), *words], capture_output=True, text=True, timeout=300, **options)


def test_the_script_explains_itself_and_refuses_what_it_does_not_know():
    help_result = slurm_local("--help")
    assert help_result.returncode == 0
    assert all(f"{command}   "[:8] in help_result.stdout for command in ("start", "status", "stop"))
    assert slurm_local().returncode == 2 and slurm_local("restart").returncode == 2
    for words, part in (
        (["start", "--nodes", "none"], "--nodes: a flag of start, with a number"),
        (["start", "--nodes"], "--nodes"),
        (["stop", "--nodes", "3"], "--nodes: a flag of start"),
        (["start", "--ranks", "2"], "unknown argument '--ranks'"),
    ):
        result = slurm_local(*words)
        assert result.returncode == 1 and part in result.stderr, words


def test_the_script_needs_root_and_a_folder():
    script = SLURM.read_text()
    user = {"user": 65534} if os.geteuid() == 0 else {}
    result = subprocess.run(
        ["bash", "-s", "start"], input=script, capture_output=True, text=True, cwd="/", **user
    )
    assert result.returncode == 1 and "needs root: sudo" in result.stderr
    if os.geteuid() == 0:
        for folder in ("/", "here", "/tmp/a b"):
            result = slurm_local("stop", env=os.environ | {"SLURM_LOCAL_DIR": folder})
            assert result.returncode == 1 and "SLURM_LOCAL_DIR" in result.stderr


@pytest.mark.skipif("DLRREC_TEST_SLURM" not in os.environ, reason="DLRREC_TEST_SLURM=1 starts a real Slurm")
def test_two_nodes_of_a_real_slurm_train(tiny_run, tmp_path, monkeypatch):
    """Needs root and may install Debian packages, so it runs only where it is asked for."""
    folder, config, _ = tiny_run
    shutil.copytree(folder, tmp_path / "run")
    cluster = Path(tempfile.mkdtemp(dir="/var/tmp")) / "cluster"
    monkeypatch.setenv("SLURM_LOCAL_DIR", str(cluster))
    monkeypatch.setenv("SLURM_LOCAL_PORT", "18800")
    monkeypatch.setenv("SLURM_CONF", str(cluster / "etc" / "slurm.conf"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    try:
        refused = slurm_local("start")
        assert refused.returncode == 1 and f"{cluster.parent}: other users may not enter" in refused.stderr
        cluster.parent.chmod(0o755)
        for _ in range(2):  # the second does nothing
            started = slurm_local("start")
            assert started.returncode == 0, started.stdout + started.stderr
        assert "runs already" in started.stdout and slurm_local("status").returncode == 0
        app = components.train("--run-dir", str(tmp_path / "run"), "--variant", "bce", "--seed", "7", j="2x1")
        with get_runner() as runner:
            handle = runner.run(app, "slurm", {})
            end = time.monotonic() + 200
            while not (status := runner.status(handle)) or not status.is_terminal():
                assert time.monotonic() < end, status
                time.sleep(1)
        assert status.state == AppState.SUCCEEDED, status
        facts = Manifest.read(tmp_path / "run" / "train" / "bce").facts
        assert facts["ranks"] == 2 and facts["epochs"] == config.train.epochs
        assert "plan: 2 x cpu on 2 nodes" in "".join(p.read_text() for p in tmp_path.glob("slurm-*"))
    finally:
        stopped = slurm_local("stop")
        cluster.parent.rmdir()
    assert stopped.returncode == 0 and not cluster.exists()
    assert "slurm_local.sh" not in Path("/etc/hosts").read_text()
    assert slurm_local("status").returncode == 3
