"""Optimizer + model -> the name of every parameter, and the layer each one belongs to.

Everything is kept by position in the parameter groups, never by tensor: frameworks replace the tensors of an optimizer
in place (sharding does), and a reference kept here would keep their memory alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from localopt.layers import Layers, canonical, partition

Group: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Which layer each parameter of each group belongs to.

    Attributes:
        names: the L layers that hold a parameter of the optimizer, in the order of the model.
        owners: for each parameter group, the layer index of each of its parameters.
        parameters: for each parameter group, the name of each of its parameters.
    """

    names: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]
    parameters: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[Group], model: nn.Module | None, layers: Layers) -> Layout:
        """Name the parameters of an optimizer's groups and sort them into layers.

        Args:
            groups: the optimizer's parameter groups.
            model: gives the names, and its own layers and their order; the optimizer may hold only some. None: names
                are those the optimizer was given.
            layers: how to split, see :func:`localopt.layers.partition`.

        Raises:
            ValueError: a parameter has no name, because it is not in ``model`` or no names were given at all.
        """
        return cls._sorted(parameter_names(groups, model), model, layers)

    def extended(self, group: Group, model: nn.Module | None, layers: Layers) -> Layout:
        """Return the layout with one more group, whose parameters carry names or are named by ``model``."""
        names = parameter_names([group], None if "param_names" in group else model)
        return self._sorted([*self.parameters, *names], model, layers)

    @classmethod
    def _sorted(cls, names: Sequence[Sequence[str]], model: nn.Module | None, layers: Layers) -> Layout:
        held = [name for group in names for name in group]
        everything = held if model is None else [canonical(name) for name, _ in model.named_parameters()]
        layer_of: Mapping[str, str] = partition(dict.fromkeys([*everything, *held]), layers)
        mine = {layer_of[name] for name in held}
        order = [layer for layer in dict.fromkeys(layer_of.values()) if layer in mine]
        index = {layer: i for i, layer in enumerate(order)}
        owners = tuple(tuple(index[layer_of[name]] for name in group) for group in names)
        return cls(tuple(order), owners, tuple(map(tuple, names)))

    def flat(self) -> list[int]:
        """Return the layer index of every parameter, groups one after the other."""
        return [layer for group in self.owners for layer in group]

    def segments(self, device: torch.device) -> Tensor:
        """Return which parameters make up which layer, see :func:`segments`."""
        return segments(self.flat(), len(self.names), device)

    def weights(self, groups: Sequence[Group]) -> dict[str, list[Tensor]]:
        """Return each layer's parameters, by layer name."""
        weights: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for group, layers in zip(groups, self.owners, strict=True):
            for parameter, layer in zip(group["params"], layers, strict=True):
                weights[self.names[layer]].append(parameter)
        return weights

    def sizes(self, groups: Sequence[Group]) -> list[int]:
        """Return the number of elements of each layer's parameters; of a sharded one the whole counts."""
        return [sum(parameter.numel() for parameter in layer) for layer in self.weights(groups).values()]


def segments(layer_of: Sequence[int], count: int, device: torch.device | str = "cpu") -> Tensor:
    """Lay out which tensors make up which layer, for :func:`localopt.signals.layer_norms`.

    Args:
        layer_of: for each of the T tensors, the index of its layer, 0 <= index < count.
        count: number of layers L.
        device: where the layers' numbers are wanted.

    Returns:
        An int64 tensor of shape (L, W), W the largest number of tensors in a layer: row l holds the positions of layer
        l's tensors, padded with T (which stands for zero).

    Example:
        >>> segments([0, 1, 0], 2)
        tensor([[0, 2],
                [1, 3]])
    """
    members: list[list[int]] = [[] for _ in range(count)]
    for position, layer in enumerate(layer_of):
        members[layer].append(position)
    width = max((len(row) for row in members), default=0)
    padding = len(layer_of)
    rows = [row + [padding] * (width - len(row)) for row in members]
    return torch.tensor(rows, dtype=torch.int64).reshape(count, width).to(device)


def parameter_names(groups: Sequence[Group], model: nn.Module | None) -> list[list[str]]:
    """Return the name of every parameter of every group: from ``model``, else as the optimizer was given them.

    Raises:
        ValueError: a parameter has no name, because it is not in ``model`` or no names were given at all.
    """
    if model is None:
        unnamed = [i for i, group in enumerate(groups) if "param_names" not in group]
        if unnamed:
            raise ValueError(
                f"parameter groups {unnamed} of the optimizer carry no parameter names, so its layers are unknown. "
                "Pass the model, LocalizedOptimizer(optimizer, model), or build the optimizer from "
                "model.named_parameters()."
            )
        return [[canonical(name) for name in group["param_names"]] for group in groups]
    known = {id(parameter): canonical(name) for name, parameter in model.named_parameters()}
    strangers = [
        f"group {i}, parameter {j}, shape {tuple(parameter.shape)}"
        for i, group in enumerate(groups)
        for j, parameter in enumerate(group["params"])
        if id(parameter) not in known
    ]
    if strangers:
        total = sum(len(group["params"]) for group in groups)
        raise ValueError(
            f"{len(strangers)} of the optimizer's {total} parameters are not in {type(model).__name__} "
            f"(the first: {strangers[0]}). Was the model rebuilt, loaded again or wrapped after the optimizer was "
            "made? Make the optimizer from the parameters of the model you pass."
        )
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


def unpack(param_group: Group) -> Group:
    """Return a copy of a group about to be added to an optimizer, its (name, parameter) pairs taken apart.

    Raises:
        TypeError: its parameters are a set, which has no certain order.
        ValueError: some parameters are given with a name and some without.
    """
    given = param_group["params"]
    if isinstance(given, set):
        raise TypeError("parameters must come in the same order in every run, so not as a set: pass a list")
    entries = [given] if isinstance(given, Tensor) else list(given)
    names = [entry[0] for entry in entries if isinstance(entry, tuple)]
    if len(names) not in (0, len(entries)):
        raise ValueError(f"{len(names)} of {len(entries)} parameters are given with a name: name all of them or none")
    if not names:
        return {**param_group, "params": entries}
    return {**param_group, "params": [entry[1] for entry in entries], "param_names": names}
