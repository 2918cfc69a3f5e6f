"""localopt: update the layers where new knowledge lives, leave the rest of the model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localopt.layers import partition
from localopt.optimizer import LocalizedOptimizer
from localopt.policies import (
    AboveMean,
    Agreement,
    Cyclic,
    Every,
    Everything,
    Fixed,
    GainOverDamage,
    HighestSNR,
    LayerDecay,
    LossScaled,
    Pinned,
    Policy,
    Proportional,
    Quantile,
    RandomLayers,
    RelativeChange,
    RelativeTo,
    Smoothed,
    TopK,
)
from localopt.signals import LayerSignals
from localopt.steps.anchor import AnchorDecay
from localopt.steps.report import Report

if TYPE_CHECKING:
    from localopt.pretraining.interpolation import WithinBudget, interpolate, share_within
    from localopt.tracing.layer_trace import LayerTrace
    from localopt.tracing.samples import Samples
    from localopt.tracing.trace import trace_layers

__version__ = "0.1.0"

__all__ = [
    "AboveMean",
    "Agreement",
    "AnchorDecay",
    "Cyclic",
    "Every",
    "Everything",
    "Fixed",
    "GainOverDamage",
    "HighestSNR",
    "LayerDecay",
    "LayerSignals",
    "LayerTrace",
    "LocalizedOptimizer",
    "LossScaled",
    "Pinned",
    "Policy",
    "Proportional",
    "Quantile",
    "RandomLayers",
    "RelativeChange",
    "RelativeTo",
    "Report",
    "Samples",
    "Smoothed",
    "TopK",
    "WithinBudget",
    "interpolate",
    "partition",
    "share_within",
    "trace_layers",
]


def __getattr__(name: str) -> Any:
    # The optimizer needs torch alone; tracing also brings safetensors and rich, so it waits until it is asked for.
    if name in ("LayerTrace", "Samples", "trace_layers"):
        from localopt.tracing import trace

        return getattr(trace, name)
    if name in ("WithinBudget", "interpolate", "share_within"):
        from localopt.pretraining import interpolation

        return getattr(interpolation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
