"""The command line: ``localopt demo``, ``eval``, ``trace``, ``train``; a file a command.

Every mistake in the input is one message on standard error and exit code 2; results go to standard output, progress to
standard error.
"""

from __future__ import annotations

import os

import typer

from localopt.cli import demo, evaluate, trace, train
from localopt.cli.shared import err_console
from localopt.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Keep a language model up to date: find the layers new knowledge lives in, train those, leave the rest alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
app.command()(trace.trace)
app.command()(train.train)
app.command(name="eval")(evaluate.evaluate)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what ``localopt`` calls."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one for every file, among ours
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # hints for those who call it themselves
    try:
        app(arguments)
    except (InputError, OSError) as error:  # OSError: no space left, no permission, a file that vanished
        process = os.environ.get("RANK", "0")
        who = "localopt" if process == "0" else f"localopt, process {process}"
        err_console.print(f"{who}: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
