"""A policy's state in the checkpoint of the wrapped optimizer.

It travels as a plain dictionary in the first parameter group: the one place that torch, distributed checkpoints,
accelerate and Trainer all keep, and that a bare optimizer ignores. A policy without state adds nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from localopt.policies.protocol import Policy, check_state, load_state, state_tensors

KEY = "localopt"


def pack(policy: Policy, layers: Sequence[str]) -> dict[str, Any] | None:
    """Return the state of ``policy`` as names, lists and numbers; None if it has none."""
    state = state_tensors(policy)
    if not state:
        return None
    values = {key: tensor.tolist() for key, tensor in state.items()}
    return {"policy": _kind(policy), "layers": list(layers), "state": values}


def check(policy: Policy, layers: Sequence[str], saved: dict[str, Any] | None) -> None:
    """Look at a packed state before it is loaded.

    Raises:
        ValueError: it is of other layers or another policy, which the message names.

    Warns:
        UserWarning: there is none although the policy keeps one, or the other way round.
    """
    live = state_tensors(policy)
    if not live and saved is not None:
        _warn(f"the checkpoint holds the state of {saved['policy']}, for which {policy!r} has no use")
    if live and saved is None:
        _warn(f"the checkpoint holds no policy state: {policy!r} starts anew")
    if not live or saved is None:
        return
    if saved["policy"] != _kind(policy):
        raise ValueError(
            f"the checkpoint holds the state of {saved['policy']}, the optimizer was given {_kind(policy)}: use the "
            f'same policy, or remove "{KEY}" from the first parameter group of the state dict to start it anew'
        )
    if saved["layers"] != list(layers):
        only_there, only_here = (
            sorted(set(a) - set(b)) for a, b in ((saved["layers"], layers), (layers, saved["layers"]))
        )
        raise ValueError(f"the checkpoint was saved for other layers: only there {only_there}, only here {only_here}")
    check_state(policy, live, saved["state"])


def restore(policy: Policy, saved: dict[str, Any] | None) -> None:
    """Give ``policy`` a state that was checked."""
    if saved is not None and state_tensors(policy):
        load_state(policy, saved["state"])


def _kind(policy: object) -> str:
    """The class of a policy and of those it contains: Smoothed(AboveMean)."""
    inner = getattr(policy, "policy", None)
    name = getattr(policy, "__name__", type(policy).__name__)
    return name if inner is None else f"{name}({_kind(inner)})"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # the line that called load_state_dict
