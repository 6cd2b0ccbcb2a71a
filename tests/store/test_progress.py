"""Bars on a pseudo-terminal, beside a debugger that reads commands from it."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = """
import pdb, sys, time
from dlrrec_torchrec.store.progress import Bar, progress_shown, track

def steps(stop):
    with Bar() as bar:
        task = bar.add_task("working", total=40)
        for step in range(40):
            time.sleep(0.02)
            if step == 20:
                {stop}
            bar.advance(task)

"""


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, code: str) -> None:
        self._fd, inner = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
        environment.pop("PYTHONBREAKPOINT", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdin=inner, stdout=inner, stderr=inner
        )
        os.close(inner)
        self.shown = ""

    def read(self, seconds: float) -> str:
        """What appears until nothing has for `seconds`."""
        new = ""
        while select.select([self._fd], [], [], seconds)[0]:
            try:
                new += os.read(self._fd, 1 << 16).decode()
            except OSError:  # the program has ended
                break
        self.shown += new
        return new

    def read_until(self, text: str) -> str:
        new, end = "", time.monotonic() + 60
        while text not in new and time.monotonic() < end:
            new += self.read(0.1)
        assert text in new, new
        return new

    def write(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def end(self) -> int:
        while self._process.poll() is None:
            self.read(0.1)
        self.read(0.1)
        os.close(self._fd)
        return self._process.returncode


# The debugger is inside `steps`, at the next line, and its prompt is the last thing shown.
@pytest.mark.parametrize("stop", ["breakpoint()", "pdb.set_trace()"])
def test_a_debugger_has_the_terminal_to_itself(stop):
    terminal = Terminal(STEPS.replace("{stop}", stop) + "steps(0)")
    assert terminal.read_until("(Pdb) ").endswith("(Pdb) ")
    assert terminal.read(1.0) == ""  # several refreshes of a bar
    terminal.write("p step + 4000")
    answer = terminal.read_until("(Pdb) ")
    assert "4020" in answer and "working" not in answer
    terminal.write("next")
    assert terminal.read_until("(Pdb) ").endswith("(Pdb) ")
    assert terminal.read(1.0) == ""
    terminal.write("continue")
    after = terminal.read_until("100%")
    assert "working" in after
    assert terminal.end() == 0, terminal.shown


def test_a_bar_makes_way_for_a_prompt():
    terminal = Terminal(STEPS.replace("{stop}", "given = input('name? ')") + "steps(0)")
    assert terminal.read_until("name? ").rstrip().endswith("name?")
    assert terminal.read(1.0) == ""
    terminal.write("x")
    assert "working" in terminal.read_until("100%")
    assert terminal.end() == 0, terminal.shown


def test_leaving_the_debugger_leaves_the_terminal_in_order():
    terminal = Terminal(STEPS.replace("{stop}", "breakpoint()") + "steps(0)")
    terminal.read_until("(Pdb) ")
    terminal.write("quit")
    assert terminal.end() == 1
    assert terminal.shown.count("\x1b[?25l") == terminal.shown.count("\x1b[?25h")  # the cursor is shown again


def test_no_bar_where_none_is_wanted():
    steps = STEPS.replace("{stop}", "pass")
    hidden = Terminal(steps + "with progress_shown(False): steps(0)\nprint('done')")
    assert hidden.read_until("done").strip() == "done" and hidden.end() == 0
    shown = Terminal(steps + "print(sum(track(range(5), 'adding', 5)))")
    assert "adding" in shown.read_until("10\r\n") and shown.end() == 0


def test_no_bar_without_a_terminal():
    code = STEPS.replace("{stop}", "pass") + "steps(0)"
    environment = os.environ | {"FORCE_COLOR": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
