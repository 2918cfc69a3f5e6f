"""``localopt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localopt.cli.shared import out_console, refuse_existing, say_written
from localopt.errors import writing


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `localopt train` wrote.", metavar="RUN...")],
    plot: Annotated[
        Path | None, typer.Option(help="Also draw learning against forgetting, to this picture.", metavar="FILE")
    ] = None,
    learned: Annotated[
        str | None,
        typer.Option(
            "--set", help="Which scored set was to be learned; by default the first of all runs.", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Compare runs from one start: what each learned and what it forgot, in a table and a picture."""
    refuse_existing(plot)

    from localopt.plots import check_picture
    from localopt.pretraining.compare import comparable, comparison_picture, comparison_table

    if plot is not None:
        check_picture(plot)
    compared = comparable(runs, learned)
    out_console.print(comparison_table(compared))
    if plot is not None:
        with writing(plot):
            comparison_picture(compared, plot)
        say_written(plot)
