"""Scales -> updates by two launches: one counts steps, one updates all tensors, reading each layer's numbers by index.

What :mod:`localopt.steps.fused` and :mod:`localopt.steps.anchor_fused` do by one call a layer: the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from localopt.steps.fused import gather
from localopt.steps.layout import Group
from localopt.steps.sharding import local
from localopt.steps.triton import same_layout
from localopt.steps.triton.adam_kernels import adam, count_steps
from localopt.steps.triton.chunks import CHUNK, Chunks, addresses, aligned, chunks, numbers
from localopt.steps.triton.elements import KINDS, launching
from localopt.steps.triton.sgd_kernels import pull, sgd

BLOCK = 1024
_RULES = {"plain": 1, "cautious": 2}


class Pull(NamedTuple):
    """How weights go back toward their start.

    Attributes:
        rule: "plain" or "cautious" in the step itself; "selective" after it.
        starts: by the id of the parameter.
        shares: float32 (L,), how far each layer goes; 0 where it must not move.
    """

    rule: str
    starts: Mapping[int, Tensor]
    shares: Tensor


def triton_step(
    optimizer: Optimizer,
    group: Group,
    layers: Sequence[int],
    scales: Tensor,
    *,
    idle: Tensor,
    clip: Tensor | None = None,
    back: Pull | None = None,
) -> None:
    """Step one parameter group, all layers at once.

    Args:
        optimizer: an Adam, AdamW or SGD of torch, whose group :func:`localopt.steps.triton.serves` says yes to.
        group: one of its parameter groups.
        layers: the layer index of each of the group's parameters.
        scales: float32 tensor (L,): what each layer's learning rate is multiplied by.
        idle: float32 tensor (L,): 1 for layers whose weights and state must not be touched, else 0.
        clip: 0-d float32 tensor that gradients are multiplied by, or None.
        back: a plain or cautious pull toward the start, in the same pass.
    """
    layer_of = {id(parameter): layer for parameter, layer in zip(group["params"], layers, strict=True)}
    lists = gather(optimizer, group)
    steps = [] if isinstance(optimizer, SGD) else lists.pop()
    rates = scales * group["lr"]
    starts = {} if back is None else back.starts
    rows = [(*row, starts.get(id(row[0]))) for row in zip(*lists, strict=True)]
    for device, kinds, members in _alike(rows):
        tensors = [list(column) for column in zip(*(rows_of for _, rows_of in members), strict=True)]
        owners = [layer_of[id(lists[0][position])] for position, _ in members]
        near = {
            "rates": rates.to(device, torch.float32, non_blocking=True),
            "idle": idle.to(device, non_blocking=True),
            "clip": (idle if clip is None else clip).to(device, non_blocking=True),
            "shares": (idle if back is None else back.shares).to(device, non_blocking=True),
        }
        table = chunks(tuple(parameter.numel() for parameter in tensors[0]), device)
        options = {
            "MAXIMIZE": group["maximize"],
            "DECAY": group["weight_decay"] != 0,
            "decay": float(group["weight_decay"]),
            "CLIP": clip is not None,
            "RULE": 0 if back is None or tensors[-1][0] is None else _RULES[back.rule],
            "ALIGNED": aligned(*tensors),
        }
        with launching(device):
            if isinstance(optimizer, SGD):
                _sgd(group, tensors, kinds, table, numbers(owners, device), near, options)
            else:
                counts = [local(steps[position]) for position, _ in members]
                decoupled = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False)
                options["DECOUPLED"] = bool(decoupled)
                _adam(group, tensors, counts, kinds, table, numbers(owners, device), near, options)


def triton_pull(group: Group, layers: Sequence[int], back: Pull) -> None:
    """Move the weights of one group back toward their start, all layers at once."""
    layer_of = {id(parameter): layer for parameter, layer in zip(group["params"], layers, strict=True)}
    moving = [p for p in group["params"] if p.grad is not None and id(p) in back.starts]
    for device, kinds, members in _alike([(parameter, back.starts[id(parameter)]) for parameter in moving]):
        tensors = [list(column) for column in zip(*(rows for _, rows in members), strict=True)]
        owners = numbers([layer_of[id(moving[position])] for position, _ in members], device)
        table = chunks(tuple(parameter.numel() for parameter in tensors[0]), device)
        if not len(table.tensor):
            continue
        with launching(device):
            pull[(len(table.tensor),)](
                *(addresses(column, device) for column in tensors),
                *(table.tensor, table.offset, table.size, owners),
                back.shares.to(device, non_blocking=True),
                *(KINDS[dtype or torch.float32] for dtype in kinds),
                ALIGNED=aligned(*tensors),
                CHUNK=CHUNK,
                BLOCK=BLOCK,
            )


_Kinds = tuple[torch.dtype | None, ...]
_Members = list[tuple[int, tuple[Tensor | None, ...]]]


def _alike(rows: Sequence[Sequence[Tensor | None]]) -> Iterator[tuple[torch.device, _Kinds, _Members]]:
    """Yield the rows, each a parameter and what goes with it, that are alike in device and dtypes, and their places."""
    found: dict[tuple[torch.device, _Kinds], _Members] = {}
    for position, row in enumerate(rows):
        weight = row[0]
        assert weight is not None
        here = local(weight.detach())
        laid = (here, *(None if tensor is None else laid_out(local(tensor.detach()), here) for tensor in row[1:]))
        kinds = tuple(None if tensor is None else tensor.dtype for tensor in laid)
        found.setdefault((here.device, kinds), []).append((position, laid))
    for (device, kinds), members in found.items():
        yield device, kinds, members


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return what lies in memory as ``like`` does, on its device: the tensor itself, or a copy."""
    if same_layout(tensor, like) and tensor.device == like.device:
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _adam(
    group: Group,
    tensors: list[list[Tensor | None]],
    steps: list[Tensor],
    kinds: _Kinds,
    table: Chunks,
    owners: Tensor,
    near: dict[str, Tensor],
    options: dict[str, Any],
) -> None:
    amsgrad = bool(group["amsgrad"])
    columns = tensors if amsgrad else [*tensors[:4], tensors[3], tensors[-1]]
    dtypes = kinds if amsgrad else (*kinds[:4], kinds[3], kinds[-1])
    device, count = owners.device, len(steps)
    corrections = torch.empty((2, count), dtype=torch.float32, device=device)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2))
    count_steps[(-(-count // BLOCK),)](
        addresses(steps, device), owners, near["idle"], corrections, count, *logs, BLOCK=BLOCK
    )
    if len(table.tensor):
        adam[(len(table.tensor),)](
            *(addresses(column, device) for column in columns),
            *(table.tensor, table.offset, table.size, owners),
            *(near["rates"], near["idle"], near["clip"], near["shares"], corrections, count),
            *(beta1, beta2, 1 - beta1, 1 - beta2, float(group["eps"]), options.pop("decay")),
            *(KINDS[dtype or torch.float32] for dtype in dtypes),
            AMSGRAD=amsgrad,
            **options,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
        )


def _sgd(
    group: Group,
    tensors: list[list[Tensor | None]],
    kinds: _Kinds,
    table: Chunks,
    owners: Tensor,
    near: dict[str, Tensor],
    options: dict[str, Any],
) -> None:
    momentum = float(group["momentum"])
    columns = tensors if momentum else [*tensors[:2], tensors[1], tensors[-1]]
    dtypes = kinds if momentum else (*kinds[:2], kinds[1], kinds[-1])
    if len(table.tensor):
        sgd[(len(table.tensor),)](
            *(addresses(column, owners.device) for column in columns),
            *(table.tensor, table.offset, table.size, owners),
            *(near["rates"], near["idle"], near["clip"], near["shares"]),
            *(momentum, options.pop("decay")),
            *(KINDS[dtype or torch.float32] for dtype in dtypes),
            MOMENTUM=momentum != 0,
            NESTEROV=bool(group["nesterov"]),
            **options,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
        )
