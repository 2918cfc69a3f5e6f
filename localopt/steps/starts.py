"""The weights training began with, kept as the parameters are: on their device, sharded as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localopt.steps.layout import Group
from localopt.steps.sharding import is_sharded, local


class Starts:
    """The start of each of one optimizer's parameters, by their position in its groups.

    A parameter that requires no gradient when it is added has none. The start of one that has no data yet (on the meta
    device) is what it holds at the first step, or when it is first saved.

    Args:
        given: the starts by parameter name; None for what the parameters are when they are added.
        device: where they are kept; None for the device of each parameter.
        dtype: of what is kept; None for that of each parameter.
    """

    def __init__(
        self, given: Mapping[str, Tensor] | None, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self._given, self._device, self._dtype = given, device, dtype
        self.held: list[list[Tensor | None]] = []
        self.as_wrapped = given is None  # not given, and not of a checkpoint
        self._waiting = False

    def add(self, groups: Sequence[Group], names: Sequence[Sequence[str]]) -> None:
        """Keep the start of groups that are new.

        Raises:
            ValueError: the start given lacks a parameter, has it in another shape, or does not fit the dtype asked for.
        """
        added = [
            [self._start(parameter, name) for parameter, name in zip(group["params"], mine, strict=True)]
            for group, mine in zip(groups, names, strict=True)
        ]
        self.held.extend(added)
        self._waiting |= any(start is not None and start.is_meta for mine in added for start in mine)

    def begin(self, groups: Sequence[Group], names: Sequence[Sequence[str]]) -> None:
        """Before a step: see that every start still fits, and take those of parameters that had no data when added.

        Raises:
            ValueError: a parameter has another shape by now, as after ``resize_token_embeddings``.
        """
        for group, mine, known in zip(groups, self.held, names, strict=True):
            for parameter, start, name in zip(group["params"], mine, known, strict=True):
                if start is not None and start.shape != parameter.shape:
                    raise ValueError(
                        f"{name!r} had shape {tuple(start.shape)} when the optimizer was wrapped, and has "
                        f"{tuple(parameter.shape)} now, so it cannot decay toward its start; nothing was updated. Wrap "
                        "the optimizer after the model was resized, or without a decay (anchor_decay=0)"
                    )
        self._take(groups)

    def _take(self, groups: Sequence[Group]) -> None:
        if not self._waiting:
            return
        self._waiting = False
        for group, mine in zip(groups, self.held, strict=True):
            for i, (parameter, start) in enumerate(zip(group["params"], mine, strict=True)):
                if start is None or not start.is_meta:
                    continue
                if parameter.is_meta:
                    self._waiting = True
                else:
                    mine[i] = parameter.detach().to(self._device or parameter.device, start.dtype, copy=True)

    def _start(self, parameter: Tensor, name: str) -> Tensor | None:
        if not parameter.requires_grad:
            return None
        found = parameter.detach()
        if self._given is not None:
            if name not in self._given:
                raise ValueError(
                    f"the start of the anchor decay has no {name!r}; it has {_some(self._given)}: give the "
                    "weights of the same model, or freeze this parameter (requires_grad_(False)) first"
                )
            found = self._given[name].detach()
            if found.shape != parameter.shape:
                raise ValueError(
                    f"the start of {name!r} has shape {tuple(found.shape)}, the parameter {tuple(parameter.shape)}: "
                    "give the weights of the same model"
                )
            found = laid_out_like(found.to(parameter.dtype), parameter)
        if found.is_meta:
            return torch.empty_like(found, dtype=self._dtype)
        home = found.device if parameter.is_meta else parameter.device
        kept = found.to(device=self._device or home, dtype=self._dtype or parameter.dtype, copy=True)
        if kept.dtype != parameter.dtype and not torch.equal(local(kept).to(found), local(found)):
            raise ValueError(
                f"dtype={kept.dtype} would change the start of {name!r}, and what is learned is smaller than that "
                f"rounding: leave dtype out (the weights are {parameter.dtype})"
            )
        return kept

    def near(self, groups: Sequence[Group]) -> list[list[Tensor | None]]:
        """Return the starts, moved and sharded as the parameters are by now (they may have changed since)."""
        self._take(groups)
        return [self.near_group(index, group) for index, group in enumerate(groups)]

    def near_group(self, index: int, group: Group) -> list[Tensor | None]:
        """The same for one group."""
        mine = self.held[index]
        for i, (parameter, start) in enumerate(zip(group["params"], mine, strict=True)):
            if start is None or parameter.is_meta:
                continue
            if is_sharded(parameter) and not is_sharded(start):
                mine[i] = laid_out_like(start, parameter)
            elif self._device is None and start.device != parameter.device:
                mine[i] = start.to(parameter.device)
        return mine


def laid_out_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Shard a whole tensor as a parameter is; what is sharded already, or belongs to a plain parameter, stays."""
    if not is_sharded(parameter) or is_sharded(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(list(names)[:3])
    return shown + (", ..." if len(names) > 3 else "")
