"""Paths from the start to the end that keep more of the change of some layers than of others.

A path says for every point a in (0, 1] what share of its change each layer keeps: a on average, and all of it at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from benchmarks.lifelong.methods.rules import Case
from localopt.layers import locate

Weights: TypeAlias = dict[str, Tensor]
Shares: TypeAlias = Callable[[float], dict[str, float]]
Interpolation: TypeAlias = Callable[[Case, Weights, Weights], Shares]


def by_depth(case: Case, start: Weights, end: Weights) -> Shares:
    """LiNeS (Wang et al. 2024, arXiv 2410.17146): shares rise linearly with depth, general features keep the start's.

    From 0 to 2a for a below a half, from 2a - 1 to 1 above; before the first block as in it, after the last likewise.
    """
    blocks = {layer: locate(layer)[1] for layer in case.layers}
    last = max(block for block in blocks.values() if block is not None)
    seen = False
    depths: dict[str, float] = {}
    for layer, block in blocks.items():
        seen |= block is not None
        depths[layer] = block / max(1, last) if block is not None else float(seen)

    def shares(a: float) -> dict[str, float]:
        low, high = max(0.0, 2 * a - 1), min(1.0, 2 * a)
        return {layer: low + (high - low) * depth for layer, depth in depths.items()}

    return shares


def by_gain_damage(reference: str) -> Interpolation:
    """Shares by gain over damage of the change d that training made, to first order at the start.

    With g the gradient of one example, gain = - mean over the news of <g, d>, damage = mean over the reference of
    <g, d>^2; what maximizes sum of gain * s - c * damage * s^2 is s = min(1, gain / (2 c damage)), with c so that the
    shares are a on average.
    """

    def shares_of(case: Case, start: Weights, end: Weights) -> Shares:
        change = {name: end[name] - start[name] for name in start}
        gains = -case.norms.moves(case.half, change).mean(0)
        damages = case.norms.moves(reference, change).square().mean(0)
        ratio = gains.clamp(min=0.0) / damages.clamp(min=1e-30)
        # A layer that won nothing, or did not change, keeps its share of what is left when all others are whole.
        order = ratio.clamp(min=float(ratio[ratio > 0].min()) * 1e-3 if (ratio > 0).any() else 1.0)
        return lambda a: dict(zip(case.layers, _on_average(order, a).tolist(), strict=True))

    return shares_of


def _on_average(ratio: Tensor, a: float) -> Tensor:
    """min(1, c * ratio) with c so that the mean is a.

    >>> _on_average(torch.tensor([1.0, 3.0]), 0.5)
    tensor([0.2500, 0.7500])
    >>> _on_average(torch.tensor([1.0, 3.0]), 0.75)
    tensor([0.5000, 1.0000])
    """
    if a >= 1:
        return torch.ones_like(ratio)
    low, high = 0.0, float(1 / ratio.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle * ratio).clamp(max=1).mean()) < a else (low, middle)
    return (high * ratio).clamp(max=1)
