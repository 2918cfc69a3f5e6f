"""Per layer: what a first step would win on the news, and what it would cost what is to be kept.

With g the mean gradient of the news at the start, Adam's first step goes along -u, u = sign(g). Over layer l, per unit
of learning rate,

    gain_l   = <g, u>_l                                  the fall of the loss on the news, to first order
    damage_l = mean over examples k to keep of <g_k, u>_l^2

The second is how far the step moves the loss of each example to keep, whichever way: near a minimum a step costs in
proportion to its square. Minimizing  -sum s_l gain_l + c/2 sum s_l^2 damage_l  over the rates gives
s_l = gain_l / (c damage_l).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from localopt.probes import Example


def gains_and_damages(
    model: nn.Module, news: Sequence[Example], kept: Sequence[Example], layer_of: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """(gain, damage) by layer. The model keeps its weights; its gradients are gone."""
    layers = dict.fromkeys(layer_of.values(), 0.0)
    model.eval()
    model.zero_grad()
    for example in news:
        (_loss(model, example) / len(news)).backward()
    gains, damages = dict(layers), dict(layers)
    direction = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gains[layer_of[name]] += parameter.grad.abs().sum().item()
        direction[name] = parameter.grad.sign()
    for example in kept:
        model.zero_grad()
        _loss(model, example).backward()
        along = dict(layers)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                along[layer_of[name]] += torch.dot(parameter.grad.flatten(), direction[name].flatten()).item()
        for layer, value in along.items():
            damages[layer] += value**2 / len(kept)
    model.zero_grad()
    return gains, damages


def _loss(model: nn.Module, example: Example) -> torch.Tensor:
    loss: torch.Tensor = model(**{name: value[None] for name, value in example.items()}).loss
    return loss
