"""Runs ray_cases.py in a process of its own.

Ray ends a process that is connected to it, with status 1 and without a word, when it believes that its
cluster is gone; on a machine busy enough it can believe that. Such an end is no answer, so it is asked a
second time. A case that fails has answered.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("ray")
import psutil  # noqa: E402  Ray brings it along

CASES = Path(__file__).parents[1] / "programs" / "ray_cases.py"
SECONDS = 240  # they take twenty to sixty
MARK = "RAY_CASES"  # in the environment of their processes


def run(report: Path) -> str:
    """Run the cases; returns what they printed. `report` is there if they came to their end."""
    command = [sys.executable, "-m", "pytest", CASES, f"--junitxml={report}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RAY_"))}
    env[MARK] = str(report)
    try:
        result = subprocess.run(
            command, cwd=CASES.parents[2], env=env, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        return f"no end after {SECONDS} s: {error.stdout!r} {error.stderr!r}"
    finally:
        clear(str(report))
    return f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"


def clear(mark: str) -> None:
    """End what a process that ended early has left running of Ray."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def test_the_cases_on_a_cluster(tmp_path):
    ends = []
    for attempt in range(2):
        report = tmp_path / f"report-{attempt}.xml"
        ends.append(run(report))
        if report.exists():
            break
    assert report.exists(), "\n".join(ends)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert int(suite.get("tests")) >= 17 and int(suite.get("skipped")) == 0
    assert int(suite.get("failures")) + int(suite.get("errors")) == 0, ends[-1]
