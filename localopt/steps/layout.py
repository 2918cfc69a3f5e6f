"""Optimizer + model -> the name of every parameter, and the layer each one belongs to.

Everything is kept by position in the parameter groups, never by tensor: frameworks replace the tensors of an optimizer
in place (sharding does), and a reference kept here would keep their memory alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from localopt.layers import Layers, canonical, partition

Group = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Which layer each parameter of each group belongs to.

    Attributes:
        names: the L layers that hold a parameter of the optimizer, in the order of the model.
        owners: for each parameter group, the layer index of each of its parameters.
    """

    names: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]

    def flat(self) -> list[int]:
        """Return the layer index of every parameter, groups one after the other."""
        return [layer for group in self.owners for layer in group]

    def check(self, groups: Sequence[Group]) -> None:
        """Raise RuntimeError if parameters were added to or taken from ``groups`` since."""
        sizes, expected = [len(group["params"]) for group in groups], [len(group) for group in self.owners]
        if sizes != expected:
            raise RuntimeError(
                f"the parameter groups held {expected} parameters when their layers were named and hold {sizes} now. "
                "Add parameters with add_param_group(...), or wrap the optimizer again."
            )


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


def lay_out(names: Sequence[Sequence[str]], model: nn.Module | None, layers: Layers) -> Layout:
    """Return the layers of the named parameters.

    Args:
        names: for each parameter group, the names of its parameters.
        model: if given, the whole model's names decide the layers and their order; the optimizer may hold only some.
        layers: how to split, see :func:`localopt.layers.partition`.
    """
    held = [name for group in names for name in group]
    everything = held if model is None else [canonical(name) for name, _ in model.named_parameters()]
    layer_of: Mapping[str, str] = partition(dict.fromkeys([*everything, *held]), layers)
    mine = {layer_of[name] for name in held}
    order = [layer for layer in dict.fromkeys(layer_of.values()) if layer in mine]
    index = {layer: i for i, layer in enumerate(order)}
    return Layout(tuple(order), tuple(tuple(index[layer_of[name]] for name in group) for group in names))


def weights_by_layer(layout: Layout, groups: Sequence[Group]) -> dict[str, list[Tensor]]:
    """Return each layer's parameters, by layer name."""
    weights: dict[str, list[Tensor]] = {name: [] for name in layout.names}
    for group, layers in zip(groups, layout.owners, strict=True):
        for parameter, layer in zip(group["params"], layers, strict=True):
            weights[layout.names[layer]].append(parameter)
    return weights
