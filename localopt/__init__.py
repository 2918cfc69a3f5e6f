"""localopt: update the layers where new knowledge lives, leave the rest of the model alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from localopt.pretraining.interpolation import WithinBudget, interpolate, share_within
    from localopt.pretraining.probes import Probe, encode, encode_text, read_corpus, read_probes, read_reference
    from localopt.signals import LayerSignals
    from localopt.steps.anchor import AnchorDecay
    from localopt.steps.report import Report
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
    "Probe",
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
    "encode",
    "encode_text",
    "interpolate",
    "partition",
    "read_corpus",
    "read_probes",
    "read_reference",
    "share_within",
    "trace_layers",
]


# Nothing is imported before it is asked for: torch takes seconds, tracing also brings safetensors and rich, and the
# command line should answer at once.
_HOMES = {
    "localopt.layers": ("partition",),
    "localopt.optimizer": ("LocalizedOptimizer",),
    "localopt.policies": (
        "AboveMean",
        "Agreement",
        "Cyclic",
        "Every",
        "Everything",
        "Fixed",
        "GainOverDamage",
        "HighestSNR",
        "LayerDecay",
        "LossScaled",
        "Pinned",
        "Policy",
        "Proportional",
        "Quantile",
        "RandomLayers",
        "RelativeChange",
        "RelativeTo",
        "Smoothed",
        "TopK",
    ),
    "localopt.signals": ("LayerSignals",),
    "localopt.steps.anchor": ("AnchorDecay",),
    "localopt.steps.report": ("Report",),
    "localopt.pretraining.interpolation": ("WithinBudget", "interpolate", "share_within"),
    "localopt.pretraining.probes": (
        "Probe",
        "encode",
        "encode_text",
        "read_corpus",
        "read_probes",
        "read_reference",
    ),
    "localopt.tracing.layer_trace": ("LayerTrace",),
    "localopt.tracing.samples": ("Samples",),
    "localopt.tracing.trace": ("trace_layers",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = ("errors", "layers", "optimizer", "policies", "signals", "steps")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in _SUBMODULES:
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
