"""Frozen layers that bank their gradients: ``frozen_state="carry"``.

The first moment of a frozen layer takes this step's gradient in and forgets nothing of what it banked before,

    m <- m + (1 - beta1) g            (SGD: m <- m + (1 - dampening) g)

while its second moment, step count and weights stay; once the layer is trained, m decays as it always does. What is not
applied today is applied when the layer's turn comes: error feedback, as Dion2 (arXiv 2512.16928) has it for the rows of
a matrix that a step leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from localopt.steps.fused import gather
from localopt.steps.layout import Group
from localopt.steps.sharding import local

CARRYING = (Adam, AdamW, SGD)


def refuse_uncarried(optimizer: Optimizer) -> None:
    """Raise ValueError unless the optimizer has a momentum that is known to be a sum of gradients."""
    without = type(optimizer) is SGD and any(group["momentum"] == 0 for group in optimizer.param_groups)
    if type(optimizer) not in CARRYING or without:
        what = "SGD without momentum" if without else type(optimizer).__name__
        raise ValueError(
            f'frozen_state="carry" banks gradients in the momentum of Adam, AdamW or SGD, and {what} has none that is '
            'known: use "hold" or "track"'
        )


def carry(
    optimizer: Optimizer, groups: Sequence[Group], owners: Sequence[Sequence[int]], scales: Sequence[float], clip: float
) -> None:
    """Bank the gradients of the layers with scale 0.

    Args:
        optimizer: an Adam, AdamW or SGD with momentum.
        groups: its parameter groups, or some of them.
        owners: for each, the layer index of each of its parameters.
        scales: one number a layer.
        clip: what gradients are multiplied by first.
    """
    for group, layers in zip(groups, owners, strict=True):
        frozen = [
            p for p, layer in zip(group["params"], layers, strict=True) if scales[layer] == 0 and p.grad is not None
        ]
        if not frozen:
            continue
        _, gradients, moments, *_ = gather(optimizer, {**group, "params": frozen})
        keep = group["dampening"] if type(optimizer) is SGD else float(group["betas"][0])
        weight = (keep - 1 if group["maximize"] else 1 - keep) * clip
        added = [local(g).to(m.dtype) for g, m in zip(gradients, moments, strict=True)]
        torch._foreach_add_([local(m) for m in moments], added, alpha=weight)
