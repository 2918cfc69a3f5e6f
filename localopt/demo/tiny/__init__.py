"""A drifting world in miniature: see the whole method work in a minute, offline."""

from __future__ import annotations

from localopt.demo.tiny.experiment import Result, Size
from localopt.demo.tiny.run import run_demo

__all__ = ["Result", "Size", "run_demo"]
