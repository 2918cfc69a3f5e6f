"""A decoupled pull to where training started: after every step, p <- p - lr * strength * (p - p_0).

L2 regularization toward the start (L2-SP, Li et al. 2018), decoupled as AdamW's weight decay is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Pull:
    """A hook for after an optimizer's steps: `optimizer.register_step_post_hook(Pull(optimizer, strength))`."""

    def __init__(self, optimizer: Optimizer, strength: float) -> None:
        self.strength = strength
        self.start: list[list[Tensor]] = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        for group, start in zip(optimizer.param_groups, self.start, strict=True):
            torch._foreach_lerp_(group["params"], start, min(1.0, group["lr"] * self.strength))
