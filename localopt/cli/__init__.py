"""The command line: ``localopt demo``, ``trace``, ``train``, ``compare``, ``eval``; a file a command.

Every mistake in the input is one message on standard error and exit code 2; results go to standard output, progress to
standard error.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from localopt import __version__
from localopt.cli import compare, demo, evaluate, trace, train
from localopt.cli.shared import err_console
from localopt.errors import InputError

__all__ = ["app", "main"]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"localopt {__version__}", flush=True)
        raise typer.Exit


app = typer.Typer(
    help="Keep a language model up to date: find the layers new knowledge lives in, train those, leave the rest alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Take what stands before a command."""


app.command()(demo.demo)
app.command()(trace.trace)
app.command()(train.train)
app.command()(compare.compare)
app.command(name="eval")(evaluate.evaluate)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what ``localopt`` calls."""
    try:
        app(arguments)
    except (InputError, OSError) as error:  # OSError: no space left, no permission, a file that vanished
        process = os.environ.get("RANK", "0")
        who = "localopt" if process == "0" else f"localopt, process {process}"
        err_console.print(f"{who}: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
