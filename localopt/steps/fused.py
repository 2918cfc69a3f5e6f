"""Scales -> updates without waiting for the device: the fused route.

PyTorch's fused kernels take two device numbers made for mixed precision: ``found_inf`` (1: return before touching
memory) and ``grad_scale`` (what gradients are divided by). One kernel call a layer, with the layer's own "frozen" flag
as ``found_inf``, its share of the learning rate as ``lr`` and the clipping factor as ``grad_scale``, therefore selects,
rescales and clips on the device: the host never learns which layers moved, a frozen layer costs no bandwidth, and the
step can be captured in a CUDA graph.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from localopt.steps.layout import Group
from localopt.steps.sharding import is_sharded, local, reduced
from localopt.steps.split import FUSED_TYPES

# A layer's tensors of one device and dtype: parameters, gradients, then the optimizer's state, in the kernel's order.
Lists: TypeAlias = list[list[Tensor]]


def can_fuse(optimizer: Optimizer, group: Group) -> bool:
    """Say whether :func:`fused_step` may step this group: a fused kernel of torch, on tensors that are not on the CPU.

    On a CPU the split route is as fast, since reading scales there costs nothing.
    """
    if type(optimizer) not in FUSED_TYPES or not group.get("fused"):
        return False
    # A frozen layer's first momentum buffer is set to zero below, which equals torch's first step only without
    # dampening; with it, the split route is exact.
    if type(optimizer) is SGD and group["momentum"] != 0 and group["dampening"] != 0:
        return False
    return all(_is_plain(parameter) for parameter in group["params"])


def fused_step(
    optimizer: Optimizer,
    group: Group,
    layers: Sequence[int],
    scales: Tensor,
    *,
    idle: Tensor,
    binary: bool,
    clip: Tensor | None = None,
) -> None:
    """Step one parameter group, each layer by its own kernel call.

    Args:
        optimizer: an Adam, AdamW, SGD or Adagrad of torch, with ``fused=True`` in ``group``.
        group: one of its parameter groups.
        layers: the layer index of each of the group's parameters.
        scales: float32 tensor (L,): what each layer's learning rate is multiplied by.
        idle: float32 tensor (L,): 1 for layers whose weights and state must not be touched, else 0.
        binary: scales of layers that are not idle are all 1, so that the user's ``lr`` is passed on as it is.
        clip: 0-d float32 tensor that gradients are multiplied by, or None.
    """
    position = {id(parameter): layer for parameter, layer in zip(group["params"], layers, strict=True)}
    lists = gather(optimizer, group)
    buckets: dict[tuple[int, torch.device, torch.dtype], Lists] = {}
    for row in zip(*lists, strict=True):
        key = (position[id(row[0])], row[0].device, row[0].dtype)
        bucket = buckets.setdefault(key, [[] for _ in row])
        for column, tensor in zip(bucket, row, strict=True):
            column.append(local(tensor))  # of a DTensor what is here: not every kernel takes DTensors
    steps = [] if type(optimizer) is SGD else lists[-1]
    if steps:
        torch._foreach_add_(steps, 1)
    rates = None if binary else scales * group["lr"]
    on_device = {
        device: (
            idle.to(device, non_blocking=True).unbind(),
            None if rates is None else rates.to(device, non_blocking=True).unbind(),
            None if clip is None else clip.to(device, non_blocking=True).reciprocal(),
        )
        for device in {device for _, device, _ in buckets}
    }
    counts: list[Tensor] = []
    undo: list[Tensor] = []
    for (layer, device, _), tensors in buckets.items():
        flags, layer_rates, grad_scale = on_device[device]
        lr = layer_rates[layer] if layer_rates is not None else _near(group["lr"], device)
        _call(optimizer, group, tensors, lr=lr, grad_scale=grad_scale, found_inf=flags[layer])
        if steps:
            counts.extend(tensors[-1])
            undo.extend([flags[layer]] * len(tensors[-1]))
    if steps:
        # The kernels left idle layers alone; their step counts, moved above for all at once, go back.
        torch._foreach_sub_(counts, undo)


def _near(lr: float | Tensor, device: torch.device) -> float | Tensor:
    # A tensor on the CPU is read by the host for free; on another device it has to be brought here.
    return lr.to(device, non_blocking=True) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr


def _is_plain(parameter: Tensor) -> bool:
    known = type(parameter) in (Tensor, torch.nn.Parameter) or is_sharded(parameter) or _is_fake(parameter)
    return known and parameter.device.type != "cpu" and not parameter.is_complex()


def _is_fake(parameter: Tensor) -> bool:
    # A tensor without data that stands for one on a device: steps are planned, and tested, with them.
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(parameter, module.FakeTensor)


def gather(optimizer: Any, group: Group) -> Lists:
    """Collect the kernel's lists over the parameters that have a gradient, making missing state as torch does."""
    count = {Adam: 6, AdamW: 6, SGD: 3, Adagrad: 4}[type(optimizer)]
    lists: Lists = [[] for _ in range(count)]
    optimizer._init_group(group, *lists)
    lists[1] = [reduced(gradient, parameter) for parameter, gradient in zip(*lists[:2], strict=True)]
    if type(optimizer) is SGD:
        if group["momentum"] == 0:
            return lists[:2]
        for i, parameter in enumerate(lists[0]):
            if lists[2][i] is None:
                lists[2][i] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter]["momentum_buffer"] = lists[2][i]
    if type(optimizer) in (Adam, AdamW) and not group["amsgrad"]:
        del lists[4]
    return lists


def _call(optimizer: Optimizer, group: Group, tensors: Lists, **device_numbers: Any) -> None:
    common = {"weight_decay": group["weight_decay"], "maximize": group["maximize"], **device_numbers}
    if isinstance(optimizer, SGD):
        parameters, gradients, *buffers = tensors
        torch._fused_sgd_(
            parameters,
            gradients,
            buffers[0] if buffers else [],
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            is_first_step=False,
            **common,
        )
    elif isinstance(optimizer, Adagrad):
        torch._fused_adagrad_(*tensors, lr_decay=group["lr_decay"], eps=group["eps"], **common)
    else:
        parameters, gradients, averages, squares, *largest, steps = tensors
        # AdamW is an Adam with decoupled weight decay, which newer torch also offers as a key of Adam's groups.
        decoupled = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False)
        kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        beta1, beta2 = (float(beta) for beta in group["betas"])
        kernel(
            parameters,
            gradients,
            averages,
            squares,
            largest[0] if largest else [],
            steps,
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            **common,
        )
