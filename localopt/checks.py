"""What cannot work, said at construction and with what to use instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import ASGD, LBFGS, Optimizer, Rprop

from localopt.protocol import Policy, is_binary, is_constant
from localopt.wrapper import OptimizerWrapper


def refuse_at_construction(
    optimizer: Optimizer, policy: Policy, max_grad_norm: float | None, frozen_state: str, nonfinite: str
) -> None:
    """Raise TypeError or ValueError for arguments of LocalizedOptimizer that cannot work together."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"LocalizedOptimizer wraps a torch optimizer, not {name}")
    if isinstance(optimizer, OptimizerWrapper):
        raise ValueError("the optimizer is localized already: two wrappers would rescale twice. Wrap the inner one.")
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS steps all parameters as one vector, so layers cannot be left out: use AdamW or SGD")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(f"{name} has differentiable=True, but the choice of layers has no gradient: leave it off")
    if not callable(policy):
        raise TypeError(f"policy must be callable (norms -> scales), not {type(policy).__name__}")
    if not is_binary(policy):
        _refuse_rescaling(optimizer, policy)
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be > 0 or None, not {max_grad_norm}")
    _one_of("frozen_state", frozen_state, ("hold", "track", "drop"))
    _one_of("nonfinite", nonfinite, ("skip", "raise"))
    if frozen_state == "drop" and not is_constant(policy):
        raise ValueError(
            f'frozen_state="drop" needs to know which layers stay frozen, and {policy!r} decides at every step: '
            'use "hold", or a constant policy such as Fixed'
        )


def refuse_scales(policy: Policy, names: Sequence[str], scales: Sequence[float]) -> None:
    """Raise ValueError unless every scale is finite and >= 0."""
    bad = {name: s for name, s in zip(names, scales, strict=True) if not (math.isfinite(s) and s >= 0)}
    if bad:
        raise ValueError(f"{policy!r} returned scales that are not finite numbers >= 0: {bad}; nothing was updated")


def _refuse_rescaling(optimizer: Optimizer, policy: Policy) -> None:
    name = type(optimizer).__name__
    advice = "use a policy whose scales are only 0 and 1 and that says so (binary = True), such as AboveMean"
    if isinstance(optimizer, (Rprop, ASGD)):
        raise ValueError(f"{name} does not use lr where {policy!r} would rescale it: {advice}, or another optimizer")
    if any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(f'{name} has no "lr" in its parameter groups, so {policy!r} cannot rescale it: {advice}')


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
