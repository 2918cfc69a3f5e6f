"""Pictures: which layers, what a run trained, and learning against forgetting.

Figures are made with matplotlib's object interface, so nothing here needs a display or changes global state.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from localopt.errors import InputError
from localopt.plots.frontier import Run, learning_forgetting
from localopt.plots.heatmap import heat_map
from localopt.plots.run import run_picture

__all__ = ["Run", "check_picture", "heat_map", "learning_forgetting", "run_picture", "save_figure"]


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless a figure can be written to a file of this name; asked before long work."""
    known = Figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in known:
        raise InputError(
            f"{path}: pictures are written as {', '.join(sorted(known))}, not {suffix or 'without suffix'}."
        )


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: float = 200) -> None:
    """Write a figure in the format its suffix names, whole or not at all.

    Raises:
        InputError: unknown suffix.
        OSError: no space left, no permission; an older file of this name is then unchanged.
    """
    check_picture(path)
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        drawn = io.BytesIO()  # some encoders do not notice that a disk is full
        figure.savefig(drawn, dpi=dpi, format=target.suffix[1:].lower())
        partial.write_bytes(drawn.getvalue())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
