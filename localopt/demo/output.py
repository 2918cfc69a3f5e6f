"""What came out -> the terminal, a picture, and a file of numbers."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from localopt import __version__
from localopt.demo.experiment import Outcome
from localopt.demo.path import LEVELS, WAY, compare
from localopt.demo.verdict import verdict
from localopt.plots import Run, learning_forgetting

PICTURE = "learning-forgetting.png"
NUMBERS = "results.json"
COLUMNS = ("answered", "learned\nnats", "still\nknows", "page lost\nnats/token", "weights\ntrained", "rate", "s")


def show(outcome: Outcome, console: Console) -> None:
    """Print the table, how to read it, what was written, and the verdict."""
    console.print()
    console.print(_table(outcome))
    for result in outcome.results:
        if result.note:
            console.print(f"{result.method} {result.note}", highlight=False, markup=False)
    for line in _reading(outcome):
        console.print(line, style="dim", highlight=False, markup=False)
    console.print()
    for number, place in enumerate(outcome.lessons.shown):
        asked = outcome.lessons.taught[place]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column()
        grid.add_row("  before", outcome.written[number], style="dim")
        for result in outcome.results:
            grid.add_row(f"  {result.method}", _marked(result.written[number], asked.answers[0]))
        console.print(f"{asked.prompt} … [b]{asked.answers[0]}[/]", highlight=False)
        console.print(grid)
    console.print()
    console.print(f"[b]Verdict.[/] {verdict(outcome.results)}", highlight=False)


def draw(outcome: Outcome, path: Path, title: str) -> None:
    """What each method forgot and learned, on the way to its final weights."""
    runs = [Run(result.method, *result.path.points[-1], path=result.path.points[:-1]) for result in outcome.results]
    figure = learning_forgetting(
        runs,
        title=f"{title}: {len(outcome.lessons.taught)} invented facts, a quarter to all of the way",
        forgetting="rise of the loss on ordinary text, nats a token (less is better)",
        uptake="gain in log probability of the right answers, nats",
    )
    figure.savefig(path, dpi=150)


def numbers(outcome: Outcome, title: str) -> dict[str, Any]:
    """Everything, ready for JSON."""
    first = outcome.results[0]
    found = []
    for result in outcome.results:
        ratio = None if result is first else compare(result.path, first.path)
        against = {f"times_{first.method}_at_equal_forgetting": None if ratio is None else asdict(ratio)}
        found.append(asdict(result) | ({} if result is first else against))
    return {
        "model": title,
        "parameters": outcome.parameters,
        "effort": asdict(outcome.effort),
        "questions": [asdict(asked) for asked in outcome.lessons.taught],
        "shown": outcome.lessons.shown,
        "way": (0.0, *WAY, 1.0),
        "levels": LEVELS,
        "before": asdict(outcome.before),
        "written_before": outcome.written,
        "results": found,
        "verdict": verdict(outcome.results),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"localopt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def write(outcome: Outcome, folder: Path, title: str) -> None:
    """Put the picture and the numbers into a folder that exists."""
    draw(outcome, folder / PICTURE, title)
    (folder / NUMBERS).write_text(json.dumps(numbers(outcome, title), indent=1) + "\n", encoding="utf-8")


def _table(outcome: Outcome) -> Table:
    table = Table(title="After reading", title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    before = outcome.before
    start = f"{before.answered:.0%}", "", f"{before.known:.0%}"
    table.add_row("before", *start, end_section=True, style="dim")
    for result in outcome.results:
        end, path = result.path.marks[-1], result.path
        table.add_row(
            result.method,
            f"{end.answered:.0%}",
            f"{path.uptake:.2f}",
            f"{end.known:.0%}",
            f"{path.forgetting:+.2f}",
            f"{result.share:.0%}",
            f"{result.rate:g}",
            f"{result.seconds:.0f}",
        )
    return table


def _reading(outcome: Outcome) -> tuple[str, ...]:
    taught, known = outcome.lessons.taught, outcome.lessons.known
    words = len(outcome.lessons.page.split())
    return (
        f"answered: of {len(taught)} questions in words it never read, those whose right answer is the likeliest of "
        f"{len(taught[0].answers)}, all of them read equally often. learned: gain in log probability of the right one. "
        f"still knows: the same of {len(known)} questions about capitals and the like. page lost: rise of the loss on "
        f"a page of {words} words of plain prose. s: seconds of training, and of choosing layers.",
    )


def _marked(written: str, right: str) -> str:
    """What was written, the right answer in it in bold."""
    return escape(written).replace(escape(right), f"[b]{escape(right)}[/]")
