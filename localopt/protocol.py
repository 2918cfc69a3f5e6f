"""What a policy is: a rule that turns one gradient norm a layer into one learning-rate scale a layer.

Only the call is required, so a plain function is a policy. Everything else is optional and looked up through the
functions below, which the optimizer and the policies that contain other policies share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Policy(Protocol):
    """A callable from norms to scales, by tensor operations only.

    `norms` is an fp32 tensor of shape (L,) on the device of the parameters: finite, >= 0, and 0 for a layer without a
    gradient. The result has shape (L,) and values >= 0: 0 freezes a layer, 1 is the user's learning rate. Reading a
    value on the host (`.item()`, `if tensor`, boolean-mask indexing) makes every training step wait for the device;
    creating a tensor from host data cannot be captured in a CUDA graph. Do both in `bind`.

    Optional parts:

    - `bind(names, device)`: called at construction, when parameters are added and when they change device. `names` are
      the layers in the order of the norms. State of a layer whose name stays must be kept.
    - `inspect(weights)`: called once after `bind` with each layer's parameters, for rules that look at weights.
    - `binary: bool`: the scales are only 0 and 1, so the learning rate is passed on untouched.
    - `constant: bool`: the scales never change and do not depend on the norms, which then need not be computed.
    - `state_dict()`, `load_state_dict(state)`: the live device tensors the policy updates in place, by name. The
      optimizer saves them, loads them and puts them back when a step is skipped. They exist once `bind` was called.

    >>> def everything_with_a_gradient(norms: Tensor) -> Tensor:
    ...     return (norms > 0).float()
    >>> isinstance(everything_with_a_gradient, Policy)
    True
    """

    def __call__(self, norms: Tensor, /) -> Tensor: ...


def bind(policy: Policy, names: Sequence[str], device: torch.device) -> None:
    """Tell `policy` which layers the norms stand for, if it wants to know."""
    if hasattr(policy, "bind"):
        policy.bind(tuple(names), device)


def inspect(policy: Policy, weights: Mapping[str, Sequence[Tensor]]) -> None:
    """Show `policy` the parameters of each layer, if it wants to see them. May wait for the device."""
    if hasattr(policy, "inspect"):
        policy.inspect(weights)


def is_binary(policy: Policy) -> bool:
    """Whether every scale is 0 or 1."""
    return bool(getattr(policy, "binary", False))


def is_constant(policy: Policy) -> bool:
    """Whether the scales never change, whatever the norms."""
    return bool(getattr(policy, "constant", False))


def state_tensors(policy: Policy) -> dict[str, Tensor]:
    """The live tensors `policy` updates in place, by name; empty for a policy without state."""
    return dict(policy.state_dict()) if hasattr(policy, "state_dict") else {}


def load_state(policy: Policy, state: Mapping[str, Any]) -> None:
    """Copy `state` (tensors or lists) into the live tensors of `policy`.

    Raises ValueError, before anything is changed, where names or lengths differ.
    """
    check_state(policy, state)
    if hasattr(policy, "load_state_dict"):
        policy.load_state_dict(state)


def check_state(policy: Policy, state: Mapping[str, Any]) -> None:
    """Raise ValueError unless `state` has the names and lengths of the state of `policy`."""
    live = state_tensors(policy)
    remedy = "load it with the policy, layers and parameters it was saved with"
    if live.keys() != state.keys():
        raise ValueError(f"saved policy state has {sorted(state)}, {policy!r} keeps {sorted(live)}: {remedy}")
    for key, tensor in live.items():
        saved = torch.as_tensor(state[key]).shape
        if saved != tensor.shape:
            raise ValueError(
                f"saved policy state {key!r} has shape {tuple(saved)}, {policy!r} keeps {tuple(tensor.shape)}: {remedy}"
            )


def copy_state(live: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Copy the entries of `state` that `live` names into its tensors, in place."""
    for key, tensor in live.items():
        tensor.copy_(torch.as_tensor(state[key], dtype=tensor.dtype))


def carry_over(
    old: Tensor | None, old_names: Sequence[str], names: Sequence[str], device: torch.device, fill: float
) -> Tensor:
    """One fp32 value a layer of `names`: what `old` holds for a layer of `old_names`, else `fill`."""
    known = {} if old is None else dict(zip(old_names, old.tolist(), strict=True))
    return torch.tensor([known.get(name, fill) for name in names], dtype=torch.float32, device=device)


def bound(tensor: Tensor | None, policy: Policy) -> Tensor:
    """`tensor`, or a RuntimeError if `bind` was never called."""
    if tensor is None:
        raise RuntimeError(f"{policy!r} does not know its layers yet: call its bind(names, device) first")
    return tensor
