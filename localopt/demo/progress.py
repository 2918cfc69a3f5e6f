"""One bar for the whole demo, with the remaining time; lines instead where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import rich.progress
from rich.console import Console

T = TypeVar("T")


class Progress:
    """Counts units of work, on standard error: steps of training, and what else takes about as long.

    A terminal gets a bar that vanishes at the end, anything else (a log) a line a stage.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (
            rich.progress.TextColumn("{task.description:<39}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("left"),
        )
        self._bars = rich.progress.Progress(*columns, console=self._console, transient=True)
        self._bar = self._bars.add_task("", total=None)
        self._started = time.monotonic()
        self._total, self._done = 0.0, 0.0

    def expect(self, units: float) -> None:
        """Say how much there will be in all."""
        self._total = units
        self._bars.update(self._bar, total=units)

    def stage(self, name: str) -> None:
        """Say what is being done now."""
        self._bars.update(self._bar, description=name)
        if not self._console.is_terminal:
            line = f"{time.monotonic() - self._started:5.0f} s  {name}{self._left()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, units: float = 1.0) -> None:
        """Count work that is done."""
        self._done += units
        self._bars.advance(self._bar, units)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Count the items while they are used."""
        for item in items:
            yield item
            self.advance()

    def _left(self) -> str:
        """The time that is left, once a twentieth is done and can tell."""
        if self._total <= 0 or self._done < self._total / 20:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / self._done
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 60 else f" (about {seconds:.0f} s left)"

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:  # rich would print an empty line elsewhere
            self._bars.stop()
