"""localopt: update the layers where new knowledge lives, leave the rest of the model alone."""

from localopt.layers import partition
from localopt.optimizer import LocalizedOptimizer
from localopt.policies import AboveMean, Fixed, Proportional
from localopt.report import Report

__version__ = "0.1.0"

__all__ = ["AboveMean", "Fixed", "LocalizedOptimizer", "Proportional", "Report", "partition"]
