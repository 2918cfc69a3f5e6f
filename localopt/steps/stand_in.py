"""A stand-in of the wrapped optimizer: it shares everything with it but shows other parameter groups, for one step.

So nobody ever sees the temporary groups but the step itself, and the user's groups need not be put back when it raises.
What a step writes down goes back to where it belongs: attributes (a count of steps, a flag) to the optimizer, and what
it remembers in a parameter group (nearly all optimizers of other packages count their steps there) to the user's group.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from localopt.steps.layout import Group

_NOT_WRITTEN = ("params", "param_names", "localopt", "localopt_never_updated")
_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_MISSING = object()


def is_foreign(optimizer: Optimizer) -> bool:
    """Say whether this is none of torch's own optimizers, so that it is not known what its step looks at."""
    return not type(optimizer).__module__.startswith("torch.optim.")


@dataclass
class Part:
    """Some parameters of one of the user's groups, as a group of their own.

    Attributes:
        group: the user's.
        shown: the group that the step sees.
        given: what stood in it before the step.
        scale: what its learning rate was multiplied by.
    """

    group: Group
    shown: Group
    given: Group
    scale: float

    @classmethod
    def of(cls, optimizer: Optimizer, group: Group, positions: Sequence[int], scale: float) -> Part:
        """Take the parameters at some positions of a group, at its learning rate times a scale."""
        shown = {key: _own(optimizer, key, value) for key, value in group.items()}
        shown["params"] = [group["params"][i] for i in positions]
        if "param_names" in group:
            shown["param_names"] = [group["param_names"][i] for i in positions]
        if scale != 1.0:
            shown["lr"] = group["lr"] * scale
        return cls(group, shown, dict(shown), scale)

    def written(self) -> list[str]:
        """Return the keys that a step wrote."""
        return [key for key, value in self.shown.items() if key not in _NOT_WRITTEN and self._wrote(key, value)]

    def _wrote(self, key: str, value: Any) -> bool:
        if key not in self.given or self.given[key] is not value:
            return True
        copied = key != "lr" and self.given[key] is not self.group[key]
        return copied and not _same(value, self.group[key])


def _own(optimizer: Optimizer, key: str, value: Any) -> Any:
    """Copy what an optimizer remembers in a group, and is no option of the user's, where a step might change it."""
    remembered = key not in _NOT_WRITTEN and key not in optimizer.defaults
    return copy.deepcopy(value) if remembered and isinstance(value, (Tensor, list, dict, set)) else value


def standing_in(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """Return an optimizer that shares everything with this one but its parameter groups."""
    stand_in: Optimizer = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__)
    stand_in.__dict__["param_groups"] = groups
    for number in ("grad_scale", "found_inf"):  # set by a gradient scaler, and heeded before the step
        stand_in.__dict__.pop(number, None)
    for hooks in _STEP_HOOKS:  # a subclass that calls super().step() must not fire them: they are the wrapper's step's
        stand_in.__dict__[hooks] = OrderedDict()
    return stand_in


def hand_back(stand_in: Optimizer, optimizer: Optimizer, parts: Sequence[Part]) -> None:
    """Give the optimizer and the user's groups what the step of the stand-in wrote down.

    Raises:
        RuntimeError: it wrote unlike values into the parts of one group, or the learning rate of a rescaled one.
    """
    for key, value in stand_in.__dict__.items():
        if (
            key not in ("param_groups", "grad_scale", "found_inf", *_STEP_HOOKS)
            and optimizer.__dict__.get(key, _MISSING) is not value
        ):
            optimizer.__dict__[key] = value
    for group in {id(part.group): part.group for part in parts}.values():
        mine = [part for part in parts if part.group is group]
        for key in dict.fromkeys(key for part in mine for key in part.written()):
            values = [part.shown.get(key, _MISSING) for part in mine]
            rescaled = key == "lr" and any(part.scale != 1.0 for part in mine)
            if rescaled or not all(_same(value, values[0]) for value in values):
                _refuse_unlike(optimizer, key, values)
            group[key] = values[0]


def _refuse_unlike(optimizer: Optimizer, key: str, values: Sequence[Any]) -> None:
    shown = ", ".join("nothing" if value is _MISSING else f"{value}" for value in values[:4])
    raise RuntimeError(
        f'{type(optimizer).__name__} wrote "{key}" into its parameter groups while it stepped, and a group keeps one '
        f"value only: its layers, which this step trained with learning rates of their own, got {shown}. Use a policy "
        "whose scales are only 0 and 1 (such as AboveMean), give every layer a parameter group of its own, or use an "
        "optimizer that keeps such values in its per-parameter state, as those of torch.optim do. The weights have "
        "moved: load a checkpoint to go on."
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or bool(a != a and b != b)


@contextmanager
def without_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Take the gradients of some parameters away, for a while."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
