"""What is looked at before a step, so that it does not train the wrong thing; and what is said once."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localopt.steps.checks import refuse_toggled
from localopt.steps.elsewhere import DEEPSPEED
from localopt.steps.layout import Group, Layout
from localopt.steps.sharding import Sharding
from localopt.steps.stillness import Stillness


class Watch:
    """Looks after one localized optimizer. Holds no strong reference to a parameter."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._seen: list[weakref.ref[Tensor]] = []
        self._requires_grad: list[bool] | None = None
        self.still = False  # whether it was seen that frozen layers do not move

    def first(self, what: str) -> bool:
        """Return True the first time this is asked."""
        new = what not in self._said
        self._said.add(what)
        return new

    def warn_once(self, what: str, message: str, stacklevel: int) -> None:
        """Warn, the first time, with the stack level that ``warnings.warn`` would have in the caller."""
        if self.first(what):
            warnings.warn(message, stacklevel=stacklevel + 1)

    def see(self, groups: Sequence[Group]) -> None:
        """Note which parameter stands where."""
        self._seen = [weakref.ref(parameter) for group in groups for parameter in group["params"]]

    def before_step(
        self, groups: Sequence[Group], layout: Layout, model: nn.Module | None, shards: Sharding | None, stacklevel: int
    ) -> list[bool]:
        """Refuse, before anything is changed, what would train the wrong thing; return which parameters have gradients.

        Raises:
            RuntimeError: groups or parameters were added, removed or reordered; ``requires_grad`` changed in a run of
                several processes; the optimizer holds nothing that can train.
        """
        parameters = [parameter for group in groups for parameter in group["params"]]
        refuse_reordered(groups, layout, self._seen)
        if len(self._seen) != len(parameters) or any(
            ref() is not p for ref, p in zip(self._seen, parameters, strict=True)
        ):
            self.see(groups)
        if shards is None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            now = [parameter.requires_grad for parameter in parameters]
            refuse_toggled(self._requires_grad, now, [name for group in layout.parameters for name in group])
            self._requires_grad = now
        present = [parameter.grad is not None for parameter in parameters]
        if not any(present):
            refuse_useless(model, parameters)
            self.warn_once("no gradient", "no parameter has a gradient: nothing was updated (said once)", stacklevel)
        elif self.first("strangers"):
            message = strangers(model, parameters)
            if message:
                warnings.warn(message, stacklevel=stacklevel)
        return present

    def moving(
        self,
        groups: Sequence[Group],
        names: Sequence[Sequence[str]],
        owners: Sequence[Sequence[int]],
        scales: Sequence[float],
    ) -> Stillness | None:
        """Return what must not move in the coming step, as long as that is still to be seen."""
        if self.still or not any(scales):
            return None
        frozen = [
            (name, parameter)
            for group, named, layers in zip(groups, names, owners, strict=True)
            for parameter, name, layer in zip(group["params"], named, layers, strict=True)
            if scales[layer] == 0 and parameter.grad is not None
        ]
        return Stillness(frozen) if frozen else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": []}  # weak references do not travel


def refuse_reordered(groups: Sequence[Group], layout: Layout, seen: Sequence[weakref.ref[Tensor]]) -> None:
    """Raise RuntimeError if parameters stand elsewhere than where their layers were named.

    Tensors may be replaced in place (sharding does), so only one that was seen elsewhere tells.
    """
    sizes, expected = [len(group["params"]) for group in groups], [len(group) for group in layout.owners]
    if sizes != expected:
        flattened = [i for i, group in enumerate(groups) if len(group["params"]) == 1 and group["params"][0].dim() == 1]
        if "deepspeed" in sys.modules and flattened:
            raise RuntimeError(DEEPSPEED.format(what="the optimizer's parameters were"))
        raise RuntimeError(
            f"the parameter groups held {expected} parameters when their layers were named and hold {sizes} now. Add "
            "parameters with add_param_group(...); to take groups out, or to put some back that were taken out, wrap "
            "the optimizer again."
        )
    parameters = [parameter for group in groups for parameter in group["params"]]
    if len(seen) == len(parameters) and all(ref() is p for ref, p in zip(seen, parameters, strict=True)):
        return
    places = {id(parameter): i for i, ref in enumerate(seen) if (parameter := ref()) is not None}
    names = [name for group in layout.parameters for name in group]
    moved = [names[places[id(p)]] for i, p in enumerate(parameters) if places.get(id(p), i) != i]
    if moved:
        raise RuntimeError(
            f"{len(moved)} parameters (the first: {moved[0]}) stand elsewhere in the parameter groups than when their "
            "layers were named, so layers would be mistaken for others; nothing was updated. Put the groups back in "
            "their order, or wrap the optimizer again."
        )


def refuse_useless(model: nn.Module | None, parameters: Sequence[Tensor]) -> None:
    """Raise RuntimeError if none of an optimizer's parameters has a gradient and the model shows that none will."""
    if model is None:
        return
    held = {id(parameter) for parameter in parameters}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise RuntimeError(
            f"none of the optimizer's {len(held)} parameters has a gradient, and none is a parameter of the "
            f"{type(model).__name__} any more: the model was rebuilt or sharded after the optimizer was made. Make the "
            "optimizer, and this wrapper, after that."
        )
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if others and not any(parameter.requires_grad for parameter in parameters):
        raise RuntimeError(
            f"none of the optimizer's {len(held)} parameters requires a gradient any more, while {len(others)} others "
            f"of the {type(model).__name__} do ({_some(others)}): adapters were added, or the model was changed, after "
            "the optimizer was made. Make the optimizer, and this wrapper, after that."
        )


def strangers(model: nn.Module | None, parameters: Sequence[Tensor]) -> str:
    """Name the parameters of a model that have gradients and that no localized optimizer holds."""
    if model is None:
        return ""
    held = {id(parameter) for parameter in parameters}
    held |= {id(p) for other in list(_KNOWN) for group in other.param_groups for p in group["params"]}
    found = [
        name for name, parameter in model.named_parameters() if parameter.grad is not None and id(parameter) not in held
    ]
    if not found:
        return ""
    return (
        f"{len(found)} parameters of the {type(model).__name__} have gradients and are in no localized optimizer "
        f"({_some(found)}): unless another optimizer trains them, they do not learn. Were they made after the "
        "optimizer (resize_token_embeddings, adapters)? Then make the optimizer after them (said once)"
    )


_KNOWN: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def known(optimizer: Optimizer) -> None:
    """Let :func:`strangers` know a localized optimizer."""
    _KNOWN.add(optimizer)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
