"""What became of the tries of one family, and the clock that ends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["traceback", "wrong", "hang", "lost"]


class Hang(BaseException):
    """A try took longer than it may; no ``except Exception`` on the way swallows it."""


@dataclass
class Count:
    """How often what happened, in one family of tries.

    Attributes:
        family: its name.
        what: what one try is.
        tries: how many there were.
        found: how many were a traceback, silently wrong, a hang, or a lost run.
        said: the first of each kind, for whoever mends them.
        notes: other numbers worth a line below the table, by name.
        seconds: how long it took.
    """

    family: str
    what: str
    tries: int = 0
    found: dict[Kind, int] = field(default_factory=lambda: {"traceback": 0, "wrong": 0, "hang": 0, "lost": 0})
    said: dict[Kind, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, kind: Kind, message: str) -> None:
        """Count one try that did not end as it should."""
        self.found[kind] += 1
        self.said.setdefault(kind, message)

    def add(self, name: str, number: int = 1) -> None:
        """Count something else."""
        self.notes[name] = self.notes.get(name, 0) + number

    @contextmanager
    def one(self, what: str, limit: float = 20.0, expected: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Make one try: what is raised but not expected is a traceback, what takes longer than ``limit`` s a hang."""
        self.tries += 1
        try:
            with time_limit(limit):
                yield
        except expected:
            self.add("refused")
        except Hang:
            self.note("hang", what)
        except Exception as error:
            self.note("traceback", f"{what}: {type(error).__name__}: {error}")

    @property
    def clean(self) -> bool:
        """Whether there were tries, and each ended as it should."""
        return self.tries > 0 and not any(self.found.values())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in what takes longer."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Clock:
    """When a family has to end, whatever is left of it."""

    ends: float = float("inf")

    @classmethod
    def of(cls, seconds: float | None) -> Clock:
        """Start one that runs for so many seconds, or for ever."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.ends
