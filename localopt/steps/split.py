"""Scales -> updates, on any torch optimizer: the split route.

For the length of one step the wrapped optimizer is shown other parameter groups: the user's own, split by scale, with
frozen parameters left out and the learning rate multiplied. So a frozen layer gets no update at all (no momentum, no
weight decay, its state untouched), and a rescaled layer is trained as if its learning rate had been set by hand. Scales
are read on the host: free on a CPU, one synchronisation elsewhere. ``fused.py`` does without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from localopt.steps.layout import Group
from localopt.steps.sharding import local

# These apply a gradient scale inside their kernel, so clipping costs no pass of its own.
FUSED_TYPES = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def split_step(
    optimizer: Optimizer,
    groups: Sequence[Group],
    owners: Sequence[Sequence[int]],
    scales: Sequence[float],
    *,
    clip: Tensor | None = None,
    track: bool = False,
) -> None:
    """Step ``optimizer`` once with every layer's learning rate multiplied by its scale.

    Args:
        optimizer: the wrapped optimizer; its ``param_groups`` are back in place when this returns or raises.
        groups: those of its parameter groups to step.
        owners: for each group, the layer index of each of its parameters.
        scales: one finite number >= 0 a layer. 0 leaves the layer out, 1 passes the user's ``lr`` on untouched.
        clip: 0-d tensor that gradients are multiplied by first, or None.
        track: let the state of frozen layers move on while their weights stay as they are, to the bit.

    Raises:
        RuntimeError: the optimizer wrote a new value into a parameter group, which the split would lose.
    """
    shown: list[Group] = []
    frozen: list[Tensor] = []
    for group, layers in zip(groups, owners, strict=True):
        parts: dict[tuple[float, bool], list[int]] = {}
        apart = _starts_apart(optimizer, group)
        for position, (parameter, layer) in enumerate(zip(group["params"], layers, strict=True)):
            scale = scales[layer]
            if scale == 0.0:
                if not track or parameter.grad is None:
                    continue
                frozen.append(parameter)
                scale = 1.0
            first = apart and optimizer.state.get(parameter, {}).get("momentum_buffer") is None
            parts.setdefault((scale, first), []).append(position)
        shown.extend(_part(group, positions, scale) for (scale, _), positions in parts.items())
    if not shown:
        return
    kept = [parameter.detach().clone() for parameter in frozen]
    before = [dict(group) for group in shown]
    with _showing(optimizer, shown), _clipping(optimizer, shown, clip):
        undecorated_step(optimizer)
    for parameter, weights in zip(frozen, kept, strict=True):
        parameter.detach().copy_(weights)
    _refuse_written_keys(optimizer, before, shown)


def undecorated_step(optimizer: Optimizer) -> None:
    """Run the optimizer's own ``step`` without its hooks and profiler range: those belong to the wrapper's step."""
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(optimizer)


def _part(group: Group, positions: Sequence[int], scale: float) -> Group:
    part = {**group, "params": [group["params"][i] for i in positions]}
    if "param_names" in group:
        part["param_names"] = [group["param_names"][i] for i in positions]
    if scale != 1.0:
        part["lr"] = group["lr"] * scale
    return part


def _starts_apart(optimizer: Optimizer, group: Group) -> bool:
    # Fused SGD takes one look at a group to tell a first step, and fails where only some momentum buffers exist.
    return bool(type(optimizer) is torch.optim.SGD and group["fused"] and group["momentum"] != 0)


@contextmanager
def _showing(optimizer: Optimizer, groups: list[Group]) -> Iterator[None]:
    users = optimizer.param_groups
    optimizer.param_groups = groups
    try:
        yield
    finally:
        optimizer.param_groups = users


@contextmanager
def _clipping(optimizer: Optimizer, groups: Sequence[Group], clip: Tensor | None) -> Iterator[None]:
    # On a CPU the factor can be looked at for free, and most steps of a healthy run do not clip.
    if clip is None or (clip.device.type == "cpu" and clip == 1):
        yield
        return
    gradients = [local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
    if type(optimizer) in FUSED_TYPES and all(group.get("fused") for group in groups):
        optimizer.grad_scale = clip.reciprocal()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del optimizer.grad_scale  # type: ignore[attr-defined]
    else:
        for device in {gradient.device for gradient in gradients}:
            factor = clip.to(device, non_blocking=True)
            here = [gradient for gradient in gradients if gradient.device == device]
            torch._foreach_mul_([g._values() if g.is_sparse else g for g in here], factor)
        yield


def _refuse_written_keys(optimizer: Optimizer, before: Sequence[Group], after: Sequence[Group]) -> None:
    for old, new in zip(before, after, strict=True):
        written = sorted(key for key, value in new.items() if key not in old or old[key] is not value)
        if written:
            raise RuntimeError(
                f"{type(optimizer).__name__} writes {written} into its parameter groups while it steps. Layers are "
                "stepped as temporary groups of their own, so what it wrote is lost and its next step would be wrong. "
                "Use an optimizer that keeps such values in its per-parameter state, as those of torch.optim do."
            )
