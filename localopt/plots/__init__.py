"""Pictures: which layers, and learning against forgetting.

Figures are made with matplotlib's object interface, so nothing here needs a display or changes global state.
"""

from __future__ import annotations

from localopt.plots.frontier import Run, learning_forgetting
from localopt.plots.heatmap import heat_map

__all__ = ["Run", "heat_map", "learning_forgetting"]
