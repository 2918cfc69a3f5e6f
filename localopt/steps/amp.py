"""What a gradient scaler, or a captured loop, sets on an optimizer: ``grad_scale`` and ``found_inf``.

Torch's fused optimizers take both as attributes and unscale inside their kernels. A wrapper has to measure gradients
before that, so it unscales them itself, and a step that overflowed is one of those that change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localopt.steps.sharding import local


def unscale(optimizer: Any) -> Tensor | None:
    """Divide the gradients by the ``grad_scale`` set on an optimizer; return its ``found_inf``.

    Args:
        optimizer: the wrapper, or the wrapped one: either may have been given them.
    """
    overflowed: Tensor | None = None
    for holder in (optimizer, optimizer.inner):
        scale, found = vars(holder).get("grad_scale"), vars(holder).get("found_inf")
        if scale is not None:
            gradients = [local(p.grad) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            for device in {gradient.device for gradient in gradients}:
                factor = torch.as_tensor(scale).to(device, non_blocking=True).double().reciprocal().float()
                here = [gradient for gradient in gradients if gradient.device == device]
                torch._foreach_mul_([g._values() if g.is_sparse else g for g in here], factor)
        if found is not None:
            overflowed = torch.as_tensor(found)
    return overflowed
