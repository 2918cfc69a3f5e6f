"""The command line: ``localopt demo``, ``eval``, ``export``, ``trace``, ``train``; a file a command.

Every mistake in the input is one message on standard error and exit code 2; results go to standard output, progress to
standard error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer
from rich.text import Text

from localopt.cli import demo, evaluate, export, trace, train
from localopt.cli.shared import err_console
from localopt.errors import InputError
from localopt.outside import one_line

__all__ = ["app", "main"]

app = typer.Typer(
    help="Keep a language model up to date: find the layers new knowledge lives in, train those, leave the rest alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _complete(command: Callable[..., None]) -> Callable[..., None]:
    """Name a file that ends too early as the cause: typer would take it for the end of standard input, and stop."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except EOFError as error:
            raise InputError(f"a file ended before it was complete ({error or 'it is empty'}).") from error

    return run


app.command()(_complete(demo.demo))
app.command()(_complete(trace.trace))
app.command()(_complete(train.train))
app.command(name="eval")(_complete(evaluate.evaluate))
app.command()(_complete(export.export))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what ``localopt`` calls.

    Whatever cannot be read, fitted in memory or written is one line and exit code 2. LOCALOPT_TRACEBACK=1 in the
    environment shows where it was raised.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one for every file, among ours
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # hints for those who call it themselves
    try:
        app(arguments)
    except _ABOUT_THE_INPUT as error:
        if os.environ.get("LOCALOPT_TRACEBACK"):
            raise
        _say(error)
        raise SystemExit(2) from None


# OSError: no space left, no permission, a file that vanished. RuntimeError: torch, out of memory or on a full disk.
_ABOUT_THE_INPUT = (OSError, ValueError, RuntimeError, MemoryError, ArithmeticError, ImportError, LookupError)


def _say(error: BaseException) -> None:
    process = os.environ.get("RANK", "0")
    who = "localopt" if process == "0" else f"localopt, process {process}"
    said = one_line(error) or f"{type(error).__name__}, without a reason given"
    if isinstance(error, MemoryError):
        said = f"out of memory ({said}): a smaller --batch-size or --seq-len, or a smaller file, needs less"
    err_console.print(Text(f"{who}: {said}"), style="red", soft_wrap=True)
