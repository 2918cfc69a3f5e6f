"""Decay toward the start without waiting for the device: one kernel call a layer, as the fused step before it.

``torch._fused_sgd_`` with the start in place of the gradient, ``maximize`` and a weight decay of 1 computes

    w <- w - a (-w0 + w) = w + a (w0 - w)

and, like the other fused kernels, takes a as a device number (its ``lr``) and returns before it touches memory where
``found_inf`` is 1. So a layer that is not pulled costs no bandwidth and does not change by one bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from localopt.steps.anchor import Anchor, lerp_cautiously
from localopt.steps.layout import Group
from localopt.steps.sharding import local


def pull_on_device(
    anchor: Anchor,
    index: int,
    group: Group,
    owners: Sequence[int],
    scales: Tensor,
    shares: Tensor | None,
    held: Tensor,
    before: Sequence[Tensor | None],
) -> None:
    """Move what a step updated in one group back toward its start.

    Args:
        anchor: the starts.
        index: which of the optimizer's groups this is.
        group: its parameters and learning rate.
        owners: the layer index of each of its parameters.
        scales: float32 (L,).
        shares: float32 (L,), how far each layer goes back; None where the learning rate says.
        held: bool (L,), layers that must not move.
        before: the weights before the step, for the cautious rule.
    """
    if shares is None:
        shares = (scales * group["lr"] * anchor.decay.strength).clamp(max=1.0)
    idle = (held | (shares == 0)).float()
    buckets: dict[tuple[int, torch.device, torch.dtype], tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
    for position, (parameter, start) in enumerate(
        zip(group["params"], anchor.starts.near_group(index, group), strict=True)
    ):
        if start is None or parameter.grad is None:
            continue
        weight = local(parameter.detach())
        bucket = buckets.setdefault((owners[position], weight.device, weight.dtype), ([], [], []))
        bucket[0].append(weight)
        bucket[1].append(local(start).to(weight))
        if before and (old := before[position]) is not None:
            bucket[2].append(old)
    on_device = {
        device: (shares.to(device, non_blocking=True).unbind(), idle.to(device, non_blocking=True).unbind())
        for device in {device for _, device, _ in buckets}
    }
    for (layer, device, _), (weights, starts, olds) in buckets.items():
        share, skip = (numbers[layer] for numbers in on_device[device])
        if anchor.decay.rule == "cautious":
            for weight, start, old in zip(weights, starts, olds, strict=True):
                lerp_cautiously(weight, start, old, share)  # a layer that did not step has no entry to pull
            continue
        torch._fused_sgd_(
            weights,
            starts,
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=share,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            grad_scale=None,
            found_inf=skip,
        )
