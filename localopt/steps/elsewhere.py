"""Optimizers that step somewhere else than through their parameter groups, recognised by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

DEEPSPEED = (
    "{what} flattened by DeepSpeed (ZeRO, or its bf16 and fp16 optimizers), which steps one flat slice a group, one "
    "after the other, so that layers cannot be told apart in a step. What works: stage 0 without these; "
    "LayerTrace.freeze(model) before deepspeed.initialize, with the bare optimizer; or one parameter group a layer, "
    "trace.param_groups(model, lr, weight_decay), given to the bare optimizer"
)


def refuse_steps_elsewhere(optimizer: Optimizer) -> None:
    """Raise ValueError for an optimizer that holds another one, or a list of the parameters beside its groups."""
    name, module = type(optimizer).__name__, type(optimizer).__module__
    nested = next((other for value in vars(optimizer).values() for other in _optimizers(value)), None)
    if nested is not None:
        inner = type(nested).__name__
        if module.startswith("accelerate."):
            raise ValueError(
                f"the optimizer was prepared by accelerate already ({name} around {inner}): wrap first, then prepare. "
                "optimizer = LocalizedOptimizer(optimizer, model), then accelerator.prepare(model, optimizer)"
            )
        raise ValueError(
            f"{name} steps through another optimizer ({inner}) that never sees which layers to leave out, so frozen "
            f"layers would be trained: localize that one, with {name} outside, or do without {name}"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for key, value in vars(optimizer).items():
        if key in ("param_groups", "state", "defaults"):
            continue
        if any(id(tensor) in held for tensor in _tensors(value)):
            raise ValueError(
                f'{name} keeps a list of the parameters of its own ("{key}") beside its parameter groups, so it may '
                "step layers that it is told to leave out: use an optimizer that steps its param_groups alone, as "
                "those of torch.optim do"
            )


def _optimizers(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (other for other in value if isinstance(other, Optimizer))
    elif isinstance(value, Mapping):
        yield from (other for other in value.values() if isinstance(other, Optimizer))


def _tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(key, depth - 1)
            yield from _tensors(entry, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from _tensors(entry, depth - 1)
