"""What a localized optimizer adds to the checkpoint of the one it wraps.

A policy's state travels as a plain dictionary in the first parameter group: the one place that torch, distributed
checkpoints, accelerate and Trainer all keep, and that a bare optimizer ignores. A policy without state adds nothing.

The start of an anchor decay is as large as the weights, so it travels in the state of its parameter, where all of these
shard and save it. It is put there when a checkpoint is made and taken out when one is loaded: in between torch would
take a parameter with a start for one that has its moments already, and cast it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from localopt.policies.bound import BoundPolicy
from localopt.steps.anchor import Anchor, laid_out_like
from localopt.steps.layout import Group
from localopt.steps.sharding import is_sharded, local

KEY = "localopt"
START = "localopt_start"
_SKIPPED = "skipped_steps"
NEVER_UPDATED = "localopt_never_updated"


def pack(policy: BoundPolicy, skipped: int) -> dict[str, Any] | None:
    """Return what stands under KEY: a policy's state and the number of skipped steps; None where there is neither."""
    packed = policy.pack(always=skipped > 0)
    return None if packed is None else {**packed, _SKIPPED: skipped}


def skipped_steps(saved: Mapping[str, Any] | None) -> int:
    """Return the number of skipped steps in what :func:`pack` made; 0 where it says none.

    Raises:
        ValueError: it is not a number of steps.
    """
    skipped = 0 if not isinstance(saved, Mapping) else saved.get(_SKIPPED, 0)
    if type(skipped) is not int or not 0 <= skipped < 1 << 63:
        raise ValueError(f"the checkpoint's number of skipped steps is {skipped!r}: take another checkpoint")
    return skipped


def with_starts(state_dict: StateDict, anchor: Anchor | None, groups: Sequence[Group]) -> StateDict:
    """Return a state dict with the start of every parameter in its state."""
    if anchor is None:
        return state_dict
    state = {key: dict(value) for key, value in state_dict["state"].items()}
    for position, start in enumerate(_starts(anchor, groups)):
        if start is not None:
            state.setdefault(position, {})[START] = start
    return {**state_dict, "state": dict(sorted(state.items(), key=lambda item: item[0]))}


def _starts(anchor: Anchor, groups: Sequence[Group]) -> list[Tensor | None]:
    starts = [start for mine in anchor.near(groups) for start in mine]
    if anchor.decay.start is None:
        return starts
    # Distributed checkpoints load into the tensors they are shown: a start that was given must not be lost so.
    return [None if start is None else start.clone() for start in starts]


def split(
    state_dict: StateDict, names: Sequence[str] = ()
) -> tuple[dict[str, Any] | None, dict[int, Tensor], StateDict]:
    """Take a checkpoint apart: a policy's packed state, starts by position, and what the wrapped optimizer loads.

    The state of layers that were never updated, which a complete checkpoint holds as a blank, is left out.

    Args:
        state_dict: what :meth:`localopt.LocalizedOptimizer.state_dict` returned, or a bare optimizer.
        names: of this optimizer's parameters.
    """
    starts: dict[int, Tensor] = {}
    state: dict[Any, Any] = {}
    positions = {key: i for i, key in enumerate(key for group in state_dict["param_groups"] for key in group["params"])}
    never = set(state_dict["param_groups"][0].get(NEVER_UPDATED, ()))
    for key, value in state_dict["state"].items():
        position = positions.get(key, key)
        if isinstance(value, Mapping) and START in value:
            starts[position] = value[START]
            value = {name: entry for name, entry in value.items() if name != START}
            if not value:
                continue
        if never and isinstance(position, int) and position < len(names) and names[position] in never:
            continue
        state[key] = value
    groups = [{key: value for key, value in g.items() if key != NEVER_UPDATED} for g in state_dict["param_groups"]]
    return groups[0].get(KEY), starts, {**state_dict, "state": state, "param_groups": groups}


def taken_from(optimizer: Optimizer, names: Sequence[str]) -> tuple[dict[str, Any] | None, dict[int, Tensor]]:
    """Take out of a bare optimizer what a checkpoint loaded into it held for a localized one."""
    saved = optimizer.param_groups[0].pop(KEY, None)
    never = set(optimizer.param_groups[0].pop(NEVER_UPDATED, ()))
    starts: dict[int, Tensor] = {}
    for position, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(parameter)
        if state is None:
            continue
        if START in state:
            starts[position] = state.pop(START)
        if not state or names[position] in never:
            del optimizer.state[parameter]
    return saved, starts


def check(
    policy: BoundPolicy,
    anchor: Anchor | None,
    saved: Mapping[str, Any] | None,
    starts: Mapping[int, Tensor],
    groups: Sequence[Group],
    owners: Sequence[int],
) -> list[str]:
    """Look at what a checkpoint holds before it is loaded; return what the user should be warned of.

    Raises:
        ValueError: it is of other layers or another policy, has no start for an anchor decay, or another one than was
            given.
    """
    skipped_steps(saved)
    warned = policy.check(saved)
    if anchor is None:
        if starts:
            warned.append("the checkpoint holds the start of an anchor decay, for which this optimizer has no use")
        return warned
    parameters = [parameter for group in groups for parameter in group["params"]]
    mine = [start for held in anchor.starts for start in held]
    # What a constant policy freezes never left its start, and torch's flat form loses what has no other state.
    moves = [policy.constant is None or bool(policy.constant[layer] > 0) for layer in owners]
    missing = [i for i, start in enumerate(mine) if start is not None and i not in starts and moves[i]]
    if missing:
        raise ValueError(
            f"the checkpoint holds no start of the anchor decay for {len(missing)} of {len(mine)} parameters (the "
            f"first: number {missing[0]}), so the run would decay toward other weights than it did: load a checkpoint "
            "of a run with anchor_decay, or begin a new run from its weights"
        )
    for i, start in starts.items():
        held = mine[i] if i < len(mine) else None
        if held is None:
            continue
        if start.shape != parameters[i].shape:
            raise ValueError(
                f"the checkpoint's start of parameter number {i} has shape {tuple(start.shape)}, the parameter "
                f"{tuple(parameters[i].shape)}: load the checkpoint of the same model"
            )
        if anchor.decay.start is not None and not _equal(start, held):
            raise ValueError(
                f"the checkpoint's run decayed toward another start than AnchorDecay(start=...) gives here (parameter "
                f"number {i} differs): give the start of that run, or leave start out to take it from the checkpoint"
            )
    return warned


def restore(
    policy: BoundPolicy, anchor: Anchor | None, saved: Mapping[str, Any] | None, starts: Mapping[int, Tensor]
) -> None:
    """Take over what was checked."""
    policy.restore(saved)
    if anchor is None:
        return
    anchor.as_wrapped = anchor.as_wrapped and not starts
    position = 0
    for mine in anchor.starts:
        for i, held in enumerate(mine):
            if held is not None and position in starts:
                start = laid_out_like(starts[position].detach().to(held.dtype), held)
                mine[i] = start.to(start.device if held.is_meta else held.device, copy=True)
            position += 1


def _equal(start: Tensor, held: Tensor) -> bool:
    whole = laid_out_like(start.to(held.dtype), held) if is_sharded(held) else start
    return torch.equal(local(whole).to(local(held)), local(held))
