"""Runs a file of tests that need a Ray cluster in a process of its own.

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

import psutil  # Ray brings it along

ROOT = Path(__file__).parents[2]
SECONDS = 400  # they take twenty to ninety
MARK = "RAY_CASES"  # in the environment of their processes


def check_cases(cases: Path, folder: Path, least: int) -> None:
    """Run the tests of `cases`; fails unless at least `least` of them ran and all passed."""
    ends = []
    for attempt in range(2):
        report = folder / f"report-{attempt}.xml"
        ends.append(run(cases, report))
        if report.exists():
            break
    assert report.exists(), "\n".join(ends)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert int(suite.get("tests")) >= least and int(suite.get("skipped")) == 0, ends[-1]
    assert int(suite.get("failures")) + int(suite.get("errors")) == 0, ends[-1]


def run(cases: Path, report: Path) -> str:
    """Run the cases; returns what they printed. `report` is there if they came to their end."""
    command = [sys.executable, "-m", "pytest", cases, f"--junitxml={report}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "RAY_"))}
    env[MARK] = str(report)
    try:
        result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS)
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
