"""Progress bars on stderr: on a terminal only, and out of the way of a debugger that reads from it.

A bar redraws its line several times a second and takes over stdout, so a debugger's prompt would be erased.
Python announces `breakpoint()`, the setting of a trace function, and `input()` (with which pdb reads its
commands) as audit events (PEP 578): on each of them every bar stops. It goes on with its next step after the
debugger is left.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, ProgressColumn

T = TypeVar("T")
_shown = contextvars.ContextVar("progress shown", default=True)
_running: weakref.WeakSet[Bar] = weakref.WeakSet()
_PROMPTS = ("builtins.breakpoint", "builtins.input", "sys.settrace")


@contextlib.contextmanager
def progress_shown(shown: bool) -> Iterator[None]:
    """Whether bars that are begun within the block are shown (`--no-progress`)."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


class Bar(Progress):
    """rich's Progress on stderr, hidden without a terminal, that stops for a debugger and for prompts.

    Args:
        columns: what it shows (default: rich's own).
        shown: False hides it, as `progress_shown(False)` does.
        transient: it is wiped away at the end.
    """

    def __init__(self, *columns: ProgressColumn, shown: bool = True, transient: bool = False) -> None:
        console = Console(stderr=True)
        hidden = not (shown and _shown.get() and console.file.isatty())
        self._transient, self._paused = transient, False
        self._thread, self._trace = threading.get_ident(), None
        super().__init__(*columns, console=console, transient=transient, disable=hidden)

    def start(self) -> None:
        if not self.disable:
            self._trace = sys.gettrace()
            _running.add(self)
            _watch_prompts()
        super().start()

    def stop(self) -> None:
        _running.discard(self)
        super().stop()

    def pause(self) -> None:
        """Stop drawing, and give stdout and stderr back, up to the next step outside of a debugger."""
        if not self._paused:
            self._paused = True
            # `input()` goes on with the stdout it started with, but holds no reference to it: keep it alive.
            self._replaced = sys.stdout, sys.stderr
            self.live.stop()

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._go_on()

    def advance(self, *args: Any, **kwargs: Any) -> None:
        super().advance(*args, **kwargs)
        self._go_on()

    def _go_on(self) -> None:
        # A trace function belongs to its thread; one that was set before the bar (coverage) is no debugger.
        if self._paused and threading.get_ident() == self._thread and sys.gettrace() == self._trace:
            self._paused = False
            # A new display: the old one would wipe the lines above, which are the debugger's now.
            self.live = Live(
                console=self.console, get_renderable=self.get_renderable, transient=self._transient
            )
            self.live.start(refresh=True)


def track(values: Iterable[T], title: str, total: int, *, transient: bool = False) -> Iterator[T]:
    """`values`, of which there are `total`, with a bar of how many are done."""
    with Bar(transient=transient) as bar:
        task = bar.add_task(title, total=total)
        for value in values:
            yield value
            bar.advance(task)


def _watch_prompts() -> None:
    global _watching
    if not _watching:
        _watching = True
        sys.addaudithook(_on_event)  # for good: Python cannot remove one


_watching = False


def _on_event(event: str, _: tuple) -> None:
    if event in _PROMPTS and _running:
        if event == "sys.settrace" and threading.current_thread() is not threading.main_thread():
            return  # coverage and the like, in each new thread
        for bar in list(_running):
            bar.pause()
