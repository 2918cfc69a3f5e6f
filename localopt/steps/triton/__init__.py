"""Signals of all layers by two kernels, and their updates by two; optional, and asked for by ``LOCALOPT_TRITON=1``.

The calls of torch in :mod:`localopt.sums` and :mod:`localopt.steps.fused` are the reference: same arguments, same
results up to the order of additions and the last bits of a float32.
Without the package triton, or on a device it does not serve, they are what runs; that is said once. Asked for, and not
taken wherever there is a GPU, because the kernels have run in Triton's interpreter and not on a GPU yet.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from localopt.steps.layout import Group
from localopt.steps.sharding import local
from localopt.sums import Sources, sums

logger = logging.getLogger(__name__)
_said: set[str] = set()
_STEPPED = (Adam, AdamW, SGD)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def wanted() -> bool:
    """Whether the kernels were asked for."""
    return os.environ.get("LOCALOPT_TRITON", "0") not in ("", "0")


def available() -> bool:
    """Whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def best_sums(names: Sequence[str], sources: Sources, home: torch.device) -> Tensor:
    """Return what :func:`localopt.sums.sums` returns, by the kernels where they are wanted and can be had.

    Args:
        names: S names of :data:`localopt.sums.READS`.
        sources: what they are taken of, T tensors (or None) each.
        home: where the sums are wanted.

    Returns:
        Shape (S, T + 1), float64.

    Example:
        >>> best_sums(["norm"], {"gradient": [torch.tensor([3.0, 4.0])]}, torch.device("cpu"))
        tensor([[25.,  0.]], dtype=torch.float64)
    """
    if not wanted():
        return sums(names, sources, home)
    devices = {tensor.device for tensors in sources.values() for tensor in tensors if tensor is not None}
    if devices == {home} and _serves_device(home):
        from localopt.steps.triton.signals import triton_sums

        return triton_sums(names, sources, home)
    if len(devices) > 1:
        _say(f"its kernels do not serve tensors on several devices, {', '.join(sorted(map(str, devices)))}")
    return sums(names, sources, home)


def serves(optimizer: Optimizer, group: Group) -> bool:
    """Whether :mod:`localopt.steps.triton.update` steps a group that the fused route could step: Adam, AdamW or SGD of
    torch, weights in float32 or half precision, without holes in memory and all on one device."""
    if not wanted() or type(optimizer) not in _STEPPED:
        return False
    weights = [local(parameter.detach()) for parameter in group["params"]]
    devices = {weight.device for weight in weights}
    if len(devices) != 1 or not _serves_device(*devices):
        return False
    states = (optimizer.state.get(parameter, {}) for parameter in group["params"])
    served = all(
        weight.dtype in _DTYPES
        and (weight.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(weight))
        and all(_updated_beside(weight, local(tensor)) for tensor in state.values() if isinstance(tensor, Tensor))
        for weight, state in zip(weights, states, strict=True)
    )
    if not served:
        _say("its kernels do not step weights or state in float64, with holes in memory or laid out differently")
    return served


def same_layout(tensor: Tensor, like: Tensor) -> bool:
    """Whether elements of one place lie equally far from the beginning."""
    return (tensor.is_contiguous() and like.is_contiguous()) or tensor.stride() == like.stride()


def _updated_beside(weight: Tensor, state: Tensor) -> bool:
    if state.device != weight.device or state.dtype not in _DTYPES:
        return False
    return state.shape != weight.shape or same_layout(state, weight)  # of another shape: the count of steps


def _serves_device(device: torch.device) -> bool:
    if not available():
        _say("the package triton is not installed (pip install triton)")
        return False
    if device.type == "cuda" or (device.type == "cpu" and _interpreted()):
        return True
    _say(f"its kernels do not serve tensors on {device}")
    return False


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _say(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning("LOCALOPT_TRITON is set, and %s: PyTorch's own kernels run (said once)", message)
