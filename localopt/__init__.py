"""localopt: update the layers where new knowledge lives, leave the rest of the model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localopt.layers import partition
from localopt.optimizer import LocalizedOptimizer
from localopt.policies import (
    AboveMean,
    Cyclic,
    Every,
    Fixed,
    HighestSNR,
    LayerDecay,
    Pinned,
    Policy,
    Proportional,
    Quantile,
    RandomLayers,
    RelativeTo,
    Smoothed,
    TopK,
)
from localopt.steps.report import Report

if TYPE_CHECKING:
    from localopt.tracing.layer_trace import LayerTrace
    from localopt.tracing.samples import Samples
    from localopt.tracing.trace import trace_layers

__version__ = "0.1.0"

__all__ = [
    "AboveMean",
    "Cyclic",
    "Every",
    "Fixed",
    "HighestSNR",
    "LayerDecay",
    "LayerTrace",
    "LocalizedOptimizer",
    "Pinned",
    "Policy",
    "Proportional",
    "Quantile",
    "RandomLayers",
    "RelativeTo",
    "Report",
    "Samples",
    "Smoothed",
    "TopK",
    "partition",
    "trace_layers",
]


def __getattr__(name: str) -> Any:
    # The optimizer needs torch alone; tracing also brings safetensors and rich, so it waits until it is asked for.
    if name in ("LayerTrace", "Samples", "trace_layers"):
        from localopt.tracing import trace

        return getattr(trace, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
