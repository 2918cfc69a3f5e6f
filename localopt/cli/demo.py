"""``localopt demo``."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from localopt.cli.shared import out_console


def demo(
    out: Annotated[
        Path | None, typer.Option(help="New folder for pictures, traces and numbers; a free name if none is given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another world.")] = 0,
) -> None:
    """Watch it work in three minutes, offline: a small world whose facts change, and a model that has to keep up."""
    from localopt.demo.tiny import run_demo

    names = chain(["localopt-demo"], (f"localopt-demo-{number}" for number in count(2)))
    free = (Path(name) for name in names)
    run_demo(out or next(path for path in free if not path.exists()), seed=seed, console=out_console)
