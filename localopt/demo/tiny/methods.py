"""The ways to take in the news that the demo compares, each a model and its traces -> an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer

from localopt.optimizer import LocalizedOptimizer
from localopt.policies.rules import AboveMean
from localopt.tracing.layer_trace import LayerTrace


@dataclass(frozen=True)
class Traces:
    """Where the updated facts live, against all old text and against facts that are to be kept."""

    text: LayerTrace
    keep: LayerTrace


Method = Callable[[nn.Module, Traces, float], Optimizer]


def adamw(model: nn.Module, rate: float) -> Optimizer:
    """The base of every method, and of the first training."""
    return AdamW(model.named_parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.1, fused=True)


def full(model: nn.Module, traces: Traces, rate: float) -> Optimizer:
    """Every weight, at one rate."""
    return adamw(model, rate)


def frozen_against_text(model: nn.Module, traces: Traces, rate: float) -> Optimizer:
    """TGL + FP as in the paper: layers where the updated facts pull no harder than on average, next to ordinary text,
    are frozen beforehand, so that they cost neither gradients nor optimizer state."""
    return _frozen(model, traces.text, rate)


def frozen_against_keep(model: nn.Module, traces: Traces, rate: float) -> Optimizer:
    """The same rule, next to facts to keep."""
    return _frozen(model, traces.keep, rate)


def rescaled_against_text(model: nn.Module, traces: Traces, rate: float) -> Optimizer:
    """TGL + ALR as in the paper: each layer's learning rate in proportion to its relative gradient norm."""
    return LocalizedOptimizer(adamw(model, rate), model, traces.text.adaptive_learning_rates())


def online(model: nn.Module, traces: Traces, rate: float) -> Optimizer:
    """The online rule: at every step, the layers whose gradient norm is at least the mean. No trace is used."""
    return LocalizedOptimizer(adamw(model, rate), model, AboveMean())


def _frozen(model: nn.Module, trace: LayerTrace, rate: float) -> Optimizer:
    trace.freeze(model)
    return LocalizedOptimizer(adamw(model, rate), model, trace.frozen_parameters())


METHODS: dict[str, Method] = {
    "AdamW": full,
    "TGL+FP (text)": frozen_against_text,
    "TGL+FP (keep)": frozen_against_keep,
    "TGL+ALR (text)": rescaled_against_text,
    "online": online,
}
