"""One bar for the whole demo, with the remaining time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import rich.progress
from rich.console import Console

T = TypeVar("T")


class Progress:
    """A bar on standard error that counts steps: of training, or examples traced, which take about as long."""

    def __init__(self) -> None:
        columns = (
            rich.progress.TextColumn("{task.description:<39}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("remaining"),
            rich.progress.TimeRemainingColumn(),
        )
        self._bars = rich.progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar = self._bars.add_task("", total=None)

    def expect(self, steps: int) -> None:
        """Say how many steps there will be in all."""
        self._bars.update(self._bar, total=steps)

    def stage(self, name: str) -> None:
        """Say what is being done now."""
        self._bars.update(self._bar, description=name)

    def advance(self) -> None:
        """Count one step."""
        self._bars.advance(self._bar)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Count the items while they are used."""
        for item in items:
            yield item
            self.advance()

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
