"""Scales -> updates, on any torch optimizer: the split route.

The wrapped optimizer's step runs on a stand-in of it (``stand_in.py``) whose parameter groups are the user's own, split
by scale, with frozen parameters left out and the learning rate multiplied. So a frozen layer gets no update at all (no
momentum, no weight decay, its state untouched), and a rescaled layer is trained as if its learning rate had been set by
hand; and whoever looks at the optimizer meanwhile (a signal handler that saves, another thread) sees the user's groups.
Scales are read on the host: free on a CPU, one synchronisation elsewhere. ``fused.py`` does without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from localopt.steps.layout import Group
from localopt.steps.sharding import local
from localopt.steps.stand_in import Part, hand_back, is_foreign, standing_in, without_gradients

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
        optimizer: the wrapped optimizer; its ``param_groups`` stay in place.
        groups: those of its parameter groups to step.
        owners: for each group, the layer index of each of its parameters.
        scales: one finite number >= 0 a layer. 0 leaves the layer out, 1 passes the user's ``lr`` on untouched.
        clip: 0-d tensor that gradients are multiplied by first, or None.
        track: let the state of frozen layers move on while their weights stay as they are, to the bit.

    Raises:
        RuntimeError: the optimizer wrote values into a parameter group that cannot be kept for the whole group.
    """
    parts: list[Part] = []
    frozen: list[Tensor] = []
    idle: list[Group] = []
    for group, layers in zip(groups, owners, strict=True):
        by_scale: dict[tuple[float, bool], list[int]] = {}
        apart = _starts_apart(optimizer, group)
        for position, (parameter, layer) in enumerate(zip(group["params"], layers, strict=True)):
            scale = scales[layer]
            if scale == 0.0:
                if not track or parameter.grad is None:
                    continue
                frozen.append(parameter)
                scale = 1.0
            first = apart and optimizer.state.get(parameter, {}).get("momentum_buffer") is None
            by_scale.setdefault((scale, first), []).append(position)
        parts.extend(Part.of(optimizer, group, positions, scale) for (scale, _), positions in by_scale.items())
        if not by_scale:
            idle.append(group)
    if not parts:
        return
    if not is_foreign(optimizer):
        idle = []  # torch's own remember nothing in a group; others may count their steps there
    parts.extend(Part.of(optimizer, group, range(len(group["params"])), 1.0) for group in idle)
    kept = [parameter.detach().clone() for parameter in frozen]
    stand_in = standing_in(optimizer, [part.shown for part in parts])
    with without_gradients([p for group in idle for p in group["params"]]), _clipping(stand_in, clip):
        undecorated_step(stand_in)
    for parameter, weights in zip(frozen, kept, strict=True):
        parameter.detach().copy_(weights)
    hand_back(stand_in, optimizer, parts)


def undecorated_step(optimizer: Optimizer) -> None:
    """Run the optimizer's own ``step`` without its hooks and profiler range: those belong to the wrapper's step."""
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    step(optimizer)


def _starts_apart(optimizer: Optimizer, group: Group) -> bool:
    # Fused SGD takes one look at a group to tell a first step, and fails where only some momentum buffers exist.
    return bool(type(optimizer) is torch.optim.SGD and group["fused"] and group["momentum"] != 0)


@contextmanager
def _clipping(optimizer: Optimizer, clip: Tensor | None) -> Iterator[None]:
    # On a CPU the factor can be looked at for free, and most steps of a healthy run do not clip.
    if clip is None or (clip.device.type == "cpu" and clip == 1):
        yield
        return
    groups = optimizer.param_groups
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
