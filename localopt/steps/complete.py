"""Checkpoints that hold a state for every parameter, for loaders that insist on one.

A layer that was never updated has no state, which is exact: its first update is a first step. But
``torch.distributed.checkpoint`` makes a state for every parameter of the optimizer it loads into, and then fails where
the checkpoint has none (accelerate's FSDP functions, torchtitan's container and torchtune's recipes give it no leave
not to), or leaves what it made, whose next step is a second step. So the checkpoint holds a blank in place of what is
missing, and the names of the parameters that were never updated in its first group; loaded, the blanks are dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from localopt.steps.anchor import Anchor
from localopt.steps.checkpoint import NEVER_UPDATED, START
from localopt.steps.sharding import is_sharded, local
from localopt.steps.split import undecorated_step
from localopt.steps.stand_in import Part, standing_in


def completed(
    optimizer: Optimizer, state_dict: StateDict, names: Sequence[str], anchor: Anchor | None, made_up: bool
) -> StateDict:
    """Return a state dict with a blank for every parameter that was never updated, and their names.

    Args:
        optimizer: the wrapped one. Torch's flat form loads what it finds there, so the names, and the starts of an
            anchor decay, are put into it until :func:`forget`.
        state_dict: its own.
        names: of its parameters.
        anchor: holds the starts.
        made_up: its state was made by a checkpoint's look at it, and no layer was ever updated.
    """
    state = dict(state_dict["state"])
    never: list[str] = []
    position = 0
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            if parameter.requires_grad:
                if not set(optimizer.state.get(parameter, {})) - {START}:
                    never.append(names[position])
                    state[position] = {**_blank(optimizer, group, i), **state.get(position, {})}
                elif made_up:
                    never.append(names[position])
            position += 1
    state = dict(sorted((key, value) for key, value in state.items() if value))
    optimizer.param_groups[0][NEVER_UPDATED] = never
    if anchor is not None:
        starts = [start for mine in anchor.starts.near(optimizer.param_groups) for start in mine]
        for parameter, start in zip((p for g in optimizer.param_groups for p in g["params"]), starts, strict=True):
            if start is not None and optimizer.state.get(parameter):
                optimizer.state[parameter][START] = start
    groups = [{**group} for group in state_dict["param_groups"]]
    groups[0][NEVER_UPDATED] = list(never)
    return {**state_dict, "state": state, "param_groups": groups}


def forget(optimizer: Optimizer) -> None:
    """Take out of an optimizer again what :func:`completed` put there."""
    if optimizer.param_groups[0].pop(NEVER_UPDATED, None) is not None:
        for state in optimizer.state.values():
            state.pop(START, None)


@torch.no_grad()
def _blank(optimizer: Optimizer, group: dict[str, Any], position: int) -> dict[str, Any]:
    """The state an optimizer makes for a parameter, on a stand-in for both, with no step counted."""
    twin = torch.nn.Parameter(torch.zeros_like(group["params"][position]))
    twin.grad = torch.zeros_like(twin)
    part = Part.of(optimizer, group, [position], 1.0)
    part.shown["params"] = [twin]
    if "lr" in part.shown:
        part.shown["lr"] = torch.zeros_like(lr) if isinstance(lr := part.shown["lr"], Tensor) else 0.0
    stand_in = standing_in(optimizer, [part.shown])
    stand_in.__dict__["state"] = defaultdict(dict)
    undecorated_step(stand_in)
    blank = dict(stand_in.state.get(twin, {}))
    if "step" in blank:
        blank["step"] = torch.zeros_like(step) if isinstance(step := blank["step"], Tensor) else type(step)(0)
    return blank


def makes_state_up(optimizer: Optimizer) -> bool:
    """Say whether a step now is a checkpoint's look at what state there will be: at rate 0, by gradients of zero.

    Waits for the device only where there is no state and every rate is 0.
    """
    groups = optimizer.param_groups
    if optimizer.state or any(group.get("lr") is None or float(group["lr"]) != 0 for group in groups):
        return False
    gradients = [local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and not any(bool(g.any()) for g in gradients if g.numel() and not g.is_sparse)


def any_sharded(optimizer: Optimizer) -> bool:
    """Say whether a parameter is sharded over processes."""
    return any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"])
