"""What is done to the weights around every step, knowing where training started or what is to be kept.

A correction hooks itself onto the optimizer of a model before its first step: `correction(case, model, optimizer)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.lifelong.methods.rules import Case
from localopt.layers import partition

Correction: TypeAlias = Callable[[Case, nn.Module, Optimizer], None]


def anchored(strength: float) -> Correction:
    """After a step, p <- p - lr * strength * (p - p_0).

    L2 regularization toward the start (L2-SP, Li et al. 2018), decoupled as AdamW's weight decay is.
    """
    return lambda case, model, optimizer: _decay_to_start(case, model, optimizer, lambda p: strength)


def anchored_by(reference: str, strength: float) -> Correction:
    """The same with a strength for each layer, in proportion to its squared gradient norm on what is to be kept."""

    def hook(case: Case, model: nn.Module, optimizer: Optimizer) -> None:
        norms = case.norms[reference]
        mean = sum(norm**2 for norm in norms.values()) / len(norms)
        layer_of = _layers(model)
        _decay_to_start(case, model, optimizer, lambda p: strength * norms[layer_of[p]] ** 2 / mean)

    return hook


def recalled(strength: float, speed: float, middle: float) -> Correction:
    """RecAdam (Chen et al. 2020), decoupled: from anchor decay to training, along a sigmoid over the steps t.

    With w = 1 / (1 + exp(-speed * (t - middle))) the rate is w * lr, and the anchor decay (1 - w) * strength * lr.
    """

    def hook(case: Case, model: nn.Module, optimizer: Optimizer) -> None:
        step = 0
        rates: list[float] = []

        def weight() -> float:
            return 1 / (1 + math.exp(-speed * (step - middle)))

        def before(*_: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= weight()

        def after(*_: Any) -> None:
            nonlocal step
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            step += 1

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        _decay_to_start(case, model, optimizer, lambda p: strength * (1 - weight()))

    return hook


def gated(reference: str, slope: float) -> Correction:
    """Shorten the change of a layer that goes against what is to be kept.

    With d the change of a layer and g the mean gradient on the reference at the start, it is multiplied by
    clip(1 - slope * max(0, cos(d, g)), 0.1, 1).
    """

    def corrected(change: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        size = math.sqrt(_dot(change, change) * _dot(kept, kept))
        cosine = _dot(change, kept) / size if size > 0 else 0.0
        scale = min(1.0, max(0.1, 1 - slope * max(0.0, cosine)))
        return [part * scale for part in change]

    return _on_changes(reference, corrected)


def projected(reference: str) -> Correction:
    """Take out of a layer's change what raises the loss on the reference, to first order at the start."""

    def corrected(change: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        rise, square = _dot(change, kept), _dot(kept, kept)
        if rise <= 0 or square == 0:
            return change
        return [part - rise / square * gradient for part, gradient in zip(change, kept, strict=True)]

    return _on_changes(reference, corrected)


def _on_changes(reference: str, corrected: Callable[[list[Tensor], list[Tensor]], list[Tensor]]) -> Correction:
    """Replace the change of every layer in a step by what `corrected` makes of it and the reference's mean gradient."""

    def hook(case: Case, model: nn.Module, optimizer: Optimizer) -> None:
        layer_of = _layers(model)
        layers: dict[str, list[Tensor]] = {}
        for p in _parameters(optimizer):
            layers.setdefault(layer_of[p], []).append(p)
        gradients = case.norms.mean_gradient(reference)
        kept = {layer: [gradients[p] for p in parameters] for layer, parameters in layers.items()}
        del gradients
        start: dict[Tensor, Tensor] = {}

        def before(*_: Any) -> None:
            start.update((p, p.detach().clone()) for p in _parameters(optimizer))

        @torch.no_grad()
        def after(*_: Any) -> None:
            for layer, parameters in layers.items():
                change = corrected([p - start[p] for p in parameters], kept[layer])
                for p, part in zip(parameters, change, strict=True):
                    p.copy_(start[p] + part)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    return hook


def _decay_to_start(case: Case, model: nn.Module, optimizer: Optimizer, strength: Callable[[Tensor], float]) -> None:
    names = {p: name for name, p in model.named_parameters()}
    before = case.anchor or {}
    start = {p: before[names[p]] if names[p] in before else p.detach().clone() for p in _parameters(optimizer)}

    @torch.no_grad()
    def after(*_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.lerp_(start[p], min(1.0, group["lr"] * strength(p)))

    optimizer.register_step_post_hook(after)


def _layers(model: nn.Module) -> dict[Tensor, str]:
    parameters = dict(model.named_parameters())
    return {parameters[name]: layer for name, layer in partition(parameters, "sublayer").items()}


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))
