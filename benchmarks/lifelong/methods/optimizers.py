"""What a plan of scales, or a policy, makes of AdamW; names of layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks.lifelong.methods.rules import Online, Scales
from benchmarks.lifelong.training import grouped
from localopt import AnchorDecay, LocalizedOptimizer
from localopt.layers import Layers, partition
from localopt.policies import Everything, Fixed


def layer_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(partition((name for name, _ in model.named_parameters()), "sublayer").values()))


def partition_of(plan: Scales, names: Iterable[str]) -> Literal["sublayer", "matrix"]:
    """What a plan speaks of: attentions and MLPs, or single matrices."""
    names = list(names)
    matrices = set(partition(names, "matrix").values()) - set(partition(names, "sublayer").values())
    return "matrix" if matrices & plan.keys() else "sublayer"


def make_optimizer(
    model: nn.Module,
    rate: float,
    plan: Scales | Online,
    anchor: AnchorDecay | None = None,
    layers: Layers | None = None,
) -> Optimizer:
    """AdamW over what the model has to train, localized.

    Layers of scale 0 get no gradients at all, which saves their part of the backward pass. `layers`, for a plan that
    trains everything: what a layer is to the decay.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decay = anchor or AnchorDecay(0.0)
    if isinstance(plan, Online):
        inner = AdamW(grouped(list(named.values())), lr=rate, fused=True)
        return LocalizedOptimizer(
            inner,
            model,
            plan.policy,
            frozen_state=plan.frozen_state,  # type: ignore[arg-type]
            anchor_decay=decay,
        )
    if layers is not None:
        assert set(plan.values()) == {1.0}, "layers of its own are for a method that trains everything"
        inner = AdamW(grouped(list(named.values())), lr=rate, fused=True)
        return LocalizedOptimizer(inner, model, Everything(), layers=layers, anchor_decay=decay)
    mode = partition_of(plan, named)
    layer_of = partition(named, mode)
    for name, parameter in named.items():
        parameter.requires_grad_(plan[layer_of[name]] > 0)
    inner = AdamW(grouped([p for p in named.values() if p.requires_grad]), lr=rate, fused=True)
    trained = {layer: plan[layer] for layer in dict.fromkeys(layer_of.values()) if plan[layer] > 0}
    if anchor is None and set(trained.values()) <= {1.0}:
        return inner
    return LocalizedOptimizer(inner, model, Fixed(trained), layers=mode, anchor_decay=decay)
