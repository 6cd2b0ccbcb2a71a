"""Commands as a user types them: what they say on stderr, and which take --no-progress."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dlrrec_torchrec.cli import build_parser
from dlrrec_torchrec.stages import STAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["evaluate", "recommend", "plan"])
def test_nothing_but_results_is_said(command, tiny_run, tmp_path):
    """No warnings of torch, TorchRec or FBGEMM, and no bar where stderr is no terminal."""
    root, config, _ = tiny_run
    run = tmp_path / "run"
    shutil.copytree(root, run)
    if command == "evaluate":
        shutil.rmtree(run / "evaluation")
    words = [command, "--run-dir", str(run)]
    if command == "recommend":
        words += ["--user", pq.read_table(run / "split" / "train")["user_id"][0].as_py()]
    process = subprocess.run(
        [sys.executable, "-m", "dlrrec_torchrec", *words],
        cwd=ROOT,
        env=os.environ | {"FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout


@pytest.mark.parametrize("command", ["run", *(stage.name for stage in STAGES.values() if stage.progress)])
def test_no_progress_is_a_flag_of_every_command_that_shows_some(command):
    assert build_parser().parse_args([command]).progress
    assert not build_parser().parse_args([command, "--no-progress"]).progress
