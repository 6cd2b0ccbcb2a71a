"""One budget for all that a command asks: about texts, pictures and vectors, for all seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar


@dataclasses.dataclass
class Used:
    """Calls, their tokens of input and of output, and US dollars (0 where prices are not known)."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0

    def add(self, other: Used, sign: int = 1) -> None:
        self.calls += sign * other.calls
        self.input_tokens += sign * other.input_tokens
        self.output_tokens += sign * other.output_tokens
        self.money += sign * other.money

    def units(self) -> dict[str, float]:
        """By the units of limits."""
        tokens = self.input_tokens + self.output_tokens
        return {"US dollars": self.money, "calls": self.calls, "tokens": tokens}


@dataclasses.dataclass
class Command:
    """What all of a command's calls have used, and what those under way may use."""

    used: Used = dataclasses.field(default_factory=Used)
    open: Used = dataclasses.field(default_factory=Used)


_COMMAND: ContextVar[Command | None] = ContextVar("what the command has used", default=None)


def of_command() -> Command:
    """What is counted together with all else in `one_budget`; outside, something of its own."""
    return _COMMAND.get() or Command()


@contextlib.contextmanager
def one_budget() -> Iterator[None]:
    """In it all `spending.Budget`s count together. One within another is the outer one."""
    if _COMMAND.get() is not None:
        yield
        return
    token = _COMMAND.set(Command())
    try:
        yield
    finally:
        _COMMAND.reset(token)
