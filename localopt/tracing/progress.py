"""What is shown while the model works."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds, at least, between two lines where no bar can be shown


def progress_bar(shown: bool, *, transient: bool = False) -> Progress:
    """A bar with the remaining time, on standard error; lines now and then where that is no terminal.

    A ``transient`` one leaves nothing behind when it is done, unless it took long enough for lines.
    """
    console = Console(stderr=True)
    if shown and not console.is_terminal:
        return _Lines(quiet_end=transient, console=console, auto_refresh=False, disable=True)
    columns = TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn()
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(*columns, remaining, console=console, disable=not shown, transient=transient)


class _Lines(Progress):
    """Says in lines what a bar would show: one every :data:`LINE_EVERY`, and one at the end unless that is quiet."""

    def __init__(self, quiet_end: bool, **options: Any) -> None:
        super().__init__(**options)
        self.quiet_end = quiet_end
        self.begun = self.said = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count, and say how far it is where a line is due."""
        super().advance(task_id, advance)
        task, now = self.tasks[self.task_ids.index(task_id)], time.monotonic()
        done = task.total is not None and task.completed >= task.total
        if now < self.said + LINE_EVERY and not (done and (self.said > self.begun or not self.quiet_end)):
            return
        self.said = now
        # What is behind says how long the rest takes; rich's estimate looks at the last moments alone.
        spent = task.elapsed or 0.0
        left = "" if task.total is None else f"/{task.total:g}"
        if task.total is not None and task.completed:
            seconds = round(spent / task.completed * (task.total - task.completed))
            left += f", {timedelta(seconds=seconds)} left"
        self.console.print(f"{task.description}: {task.completed:g}{left}", highlight=False, markup=False)
