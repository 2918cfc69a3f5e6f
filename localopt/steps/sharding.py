"""Gradients over several processes -> the norms of the whole.

With FSDP2 (``fully_shard``) and tensor parallelism every process holds a shard of a parameter, as a DTensor. Squares
add up: each process sums those of its own shards, and one all-reduce of L floats a step gives every process the norms
of the whole model. Whatever several processes hold a copy of (parameters replicated by a mesh, plain ones beside
sharded ones) counts by its share. Every process gets the same bits, so all choose the same layers.

Without sharding nothing is communicated: DistributedDataParallel leaves equal gradients on every process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from localopt.sums import sum_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Sharding:
    """How squares of local shards add up to squares of the whole.

    Attributes:
        shares: for each of the T parameters, what part of the sum over processes its square is: 1 if every process
            holds a shard of its own, 1 / n if each shard is held by n of them.
        groups: the process groups to sum over, one after the other.
        device: where these can sum.
    """

    shares: tuple[float, ...]
    groups: tuple[ProcessGroup | None, ...]
    device: torch.device
    _placed: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def weights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the shares, then a zero for the padding, shape (T + 1,); brought to a device once."""
        if (device, dtype) not in self._placed:
            self._placed[device, dtype] = torch.tensor([*self.shares, 0.0], dtype=dtype, device=device)
        return self._placed[device, dtype]

    def sum(self, squares: Tensor) -> Tensor:
        """Add up the layers' squares (L,) over the processes; a collective, every process has to call it."""
        here = squares.device.type == self.device.type
        total = squares if here else squares.to(self.device)
        for group in self.groups:
            torch.distributed.all_reduce(total, group=group)
        return total if here else total.to(squares.device)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Say whether this is a DTensor, without importing what few runs need."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def sharding(parameters: Sequence[Tensor]) -> Sharding | None:
    """Return how the gradients of these parameters add up; None if none of them is sharded.

    Raises:
        ValueError: they are sharded over sets of processes of which none contains the others.
    """
    meshes = {parameter.device_mesh for parameter in parameters if is_sharded(parameter)}
    if not meshes:
        return None
    largest = max(meshes, key=lambda mesh: mesh.size())
    ranks = set(largest.mesh.flatten().tolist()) if len(meshes) > 1 else set()
    for mesh in meshes - {largest}:
        if not ranks.issuperset(mesh.mesh.flatten().tolist()):
            raise ValueError(
                f"parameters are sharded over {mesh} and over {largest}, and neither holds all processes of the other, "
                "so there is no group to sum norms over: make one optimizer for the parameters of each mesh"
            )
    everyone = largest.size() == torch.distributed.get_world_size()
    groups = (None,) if everyone else tuple(largest.get_all_groups())
    shares = tuple(_shards(parameter) / largest.size() for parameter in parameters)
    return Sharding(shares, groups, torch.device(largest.device_type))


class KnownSharding:
    """How the gradients of an optimizer's parameters add up, looked at anew only where they are sharded anew."""

    def __init__(self) -> None:
        self._seen: list[tuple[Any, ...] | None] = []
        self._found: Sharding | None = None

    def of(self, parameters: Sequence[Tensor]) -> Sharding | None:
        """The same as :func:`sharding`."""
        seen = [(p.device_mesh, p.placements) if is_sharded(p) else None for p in parameters]
        if seen != self._seen:
            self._found, self._seen = sharding(parameters), seen
            if self._found is not None:
                home = parameters[0].device
                self._found.weights(home, sum_dtype(home))
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": [], "_found": None}  # process groups do not travel


def reduced(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient with its summands added up, laid out as its parameter is; nearly always as it came.

    Under sequence parallelism each process has a summand of a replicated parameter's gradient, and norms of summands
    do not add up to a norm.
    """
    if not is_sharded(gradient) or not is_sharded(parameter) or not any(p.is_partial() for p in gradient.placements):
        return gradient
    return gradient.redistribute(placements=parameter.placements)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor; plain tensors as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def _shards(parameter: Tensor) -> int:
    """The number of different shards of a parameter."""
    if not is_sharded(parameter):
        return 1
    mesh: Any = parameter.device_mesh
    count = 1
    for dimension, placement in enumerate(parameter.placements):
        count *= 1 if placement.is_replicate() else mesh.size(dimension)
    return count
