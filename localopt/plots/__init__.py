"""Pictures: which layers, and learning against forgetting.

Figures are made with matplotlib's object interface, so nothing here needs a display or changes global state.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from localopt.errors import InputError
from localopt.plots.frontier import Run, learning_forgetting
from localopt.plots.heatmap import heat_map

__all__ = ["Run", "check_picture", "heat_map", "learning_forgetting"]


def check_picture(path: str | Path) -> None:
    """Raise InputError unless a figure can be written to a file of this name; asked before long work."""
    known = Figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in known:
        raise InputError(
            f"{path}: pictures are written as {', '.join(sorted(known))}, not {suffix or 'without suffix'}."
        )
