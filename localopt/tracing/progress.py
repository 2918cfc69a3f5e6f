"""What is shown while the model works."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(shown: bool) -> Progress:
    """A bar with the remaining time, on standard error."""
    columns = TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn()
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(*columns, remaining, console=Console(stderr=True), disable=not shown)
