"""What ``localopt demo`` calls."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from localopt.demo.folder import check_folder
from localopt.demo.tiny.experiment import Result, Size, experiment
from localopt.demo.tiny.output import show, write


def run_demo(
    out: Path | None = None, seed: int = 0, console: Console | None = None, size: Size | None = None
) -> list[Result]:
    """Run the demo, print its table, and fill ``out``, if that is given, with pictures, traces and numbers.

    Args:
        out: a folder that does not exist yet or is empty. It is filled at the very end, or not at all.
        seed: another seed is another world and another model.
        console: where the table goes, standard output if None; progress goes to standard error.
        size: something smaller, for a quick look.

    Returns:
        One result a method, in the order of the table.

    Raises:
        InputError: ``out`` cannot be used; found before any work is done.
    """
    console = console or Console()
    if out is not None:
        check_folder(out)
    outcome = experiment(seed, size or Size())
    show(outcome, console)
    if out is None:
        console.print("For pictures, traces and numbers: localopt demo --out DIR", highlight=False)
    else:
        write(outcome, out)
        console.print(f"Pictures, traces and numbers: {out}", highlight=False, soft_wrap=True)
    return outcome.results
