"""What cannot work, said at construction and with what to use instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import ASGD, LBFGS, SGD, Adadelta, Adafactor, Adagrad, Optimizer, RMSprop, Rprop

from localopt.policies.protocol import Policy, is_binary, is_constant, needs
from localopt.steps.anchor import AnchorDecay
from localopt.steps.carry import refuse_uncarried
from localopt.steps.elsewhere import DEEPSPEED, refuse_steps_elsewhere
from localopt.steps.sharding import sharding
from localopt.steps.wrapper import OptimizerWrapper

_CLASS_AND_OPTIONS = (
    "Where a trainer wants a class and its options (transformers' optimizer_cls_and_kwargs), pass "
    "localopt.integrations.transformers.localized_optimizer(args)"
)


def refuse_at_construction(
    optimizer: Optimizer,
    model: nn.Module | None,
    policy: Policy,
    max_grad_norm: float | None,
    frozen_state: str,
    nonfinite: str,
    anchor_decay: AnchorDecay,
) -> None:
    """Raise TypeError or ValueError for arguments of LocalizedOptimizer that cannot work together."""
    name = type(optimizer).__name__
    if isinstance(optimizer, nn.Module):
        raise TypeError(
            f"LocalizedOptimizer wraps a torch optimizer, and was called with a {name}: make the optimizer first, "
            f"LocalizedOptimizer(AdamW(model.parameters(), lr=...), model). {_CLASS_AND_OPTIONS}"
        )
    if type(optimizer).__module__.startswith("deepspeed.runtime.") or name == "DeepSpeedOptimizerWrapper":
        raise ValueError(DEEPSPEED.format(what=f"the parameters of {name} are"))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"LocalizedOptimizer wraps a torch optimizer, not {name}. {_CLASS_AND_OPTIONS}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module or None, not {type(model).__name__}: a policy is given as policy=")
    if isinstance(optimizer, OptimizerWrapper):
        raise ValueError("the optimizer is localized already: two wrappers would rescale twice. Wrap the inner one.")
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS steps all parameters as one vector, so layers cannot be left out: use AdamW or SGD")
    if name == "LayerWiseDummyOptimizer":
        raise ValueError(
            "LayerWiseDummyOptimizer (layer-wise GaLore and the like in transformers) updates parameters during the "
            "backward pass, before a step could choose layers: use an optimizer that updates in step(), such as AdamW"
        )
    refuse_steps_elsewhere(optimizer)
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(f"{name} has differentiable=True, but the choice of layers has no gradient: leave it off")
    if isinstance(policy, type):
        raise TypeError(f"policy is the class {policy.__name__}: give an instance of it, {policy.__name__}()")
    if not callable(policy):
        raise TypeError(f"policy must be callable (norms -> scales), not {type(policy).__name__}")
    _refuse_flattened(optimizer)
    sharding([parameter for group in optimizer.param_groups for parameter in group["params"]])
    if not is_binary(policy):
        _refuse_rescaling(optimizer, policy)
    if max_grad_norm is not None and not (isinstance(max_grad_norm, (int, float)) and max_grad_norm > 0):
        raise ValueError(f"max_grad_norm must be a number > 0 or None, not {max_grad_norm!r}")
    _one_of("frozen_state", frozen_state, ("hold", "track", "carry", "drop"))
    if frozen_state == "carry":
        refuse_uncarried(optimizer)
    by_rate = anchor_decay.strength and anchor_decay.rule != "selective"
    if by_rate and any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(
            f'{name} has no "lr" in its parameter groups, which a {anchor_decay.rule} anchor decay is multiplied by: '
            'use rule="selective", which does not depend on it'
        )
    if {"momentum", "agreement"} & set(needs(policy)) and _without_momentum(optimizer):
        raise ValueError(
            f"{policy!r} needs the momentum of the optimizer, and {name} keeps none here: use AdamW, or SGD "
            "with momentum"
        )
    _one_of("nonfinite", nonfinite, ("skip", "raise"))
    if frozen_state == "drop" and not is_constant(policy):
        raise ValueError(
            f'frozen_state="drop" needs to know which layers stay frozen, and {policy!r} decides at every step: '
            'use "hold", or a constant policy such as Fixed'
        )


def refuse_nonfinite(names: Sequence[str], norms: Sequence[float]) -> None:
    """Raise FloatingPointError naming the layers whose norm is NaN or infinite."""
    bad = ", ".join(f"{name} ({norm:g})" for name, norm in zip(names, norms, strict=True) if not math.isfinite(norm))
    if bad:
        raise FloatingPointError(f"gradient norm of {bad} is not finite; nothing was updated")


def refuse_scales(policy: Policy, names: Sequence[str], scales: Sequence[float]) -> None:
    """Raise ValueError unless every scale is finite and >= 0."""
    bad = {name: s for name, s in zip(names, scales, strict=True) if not (math.isfinite(s) and s >= 0)}
    if bad:
        raise ValueError(f"{policy!r} returned scales that are not finite numbers >= 0: {bad}; nothing was updated")


def refuse_toggled(before: Sequence[bool] | None, now: Sequence[bool], names: Sequence[str]) -> None:
    """Raise RuntimeError if ``requires_grad`` changed since the step before, in a run of several processes."""
    changed = [] if before is None else [n for n, a, b in zip(names, before, now, strict=True) if a != b]
    if changed:
        raise RuntimeError(
            f"requires_grad of {len(changed)} parameters changed during training (the first: {changed[0]}). "
            "DistributedDataParallel decides when it wraps a model which gradients it averages, so processes would "
            "drift apart; nothing was updated. Freeze first (LayerTrace.freeze), then wrap the model in "
            "DistributedDataParallel and the optimizer in LocalizedOptimizer."
        )


def _refuse_flattened(optimizer: Optimizer) -> None:
    """FSDP1 and ZeRO train slices of one long vector, in which a process cannot tell the layers apart."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        for mark, what in {"_fsdp_flattened": "FullyShardedDataParallel (FSDP1)", "ds_id": "DeepSpeed ZeRO"}.items():
            if hasattr(parameter, mark):
                raise ValueError(
                    f"the parameters are flattened and sharded by {what}, so their layers have no norms of their own: "
                    "use FSDP2 (torch.distributed.fsdp.fully_shard), which keeps parameters apart, or "
                    "DistributedDataParallel"
                )


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


def _without_momentum(optimizer: Optimizer) -> bool:
    if isinstance(optimizer, (SGD, RMSprop)):
        return all(group["momentum"] == 0 for group in optimizer.param_groups)
    return isinstance(optimizer, (Adadelta, Adafactor, Adagrad, ASGD, Rprop))
