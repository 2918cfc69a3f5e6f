"""What a policy is: a rule that turns one number a layer, or several, into one learning-rate scale a layer.

Only the call is required, so a plain function is a policy. Everything else is optional and looked up through the
functions below, which the optimizer and the policies that contain other policies share. `Stateful` and what follows it
are what policies are built from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Policy(Protocol):
    """A callable from norms, or other signals of the layers, to scales, by tensor operations only.

    Reading a value on the host (``.item()``, ``if tensor``, boolean-mask indexing) makes every training step wait for
    the device; creating a tensor from host data cannot be captured in a CUDA graph. Do both in ``bind``.

    One instance belongs to one optimizer. Optional parts:

    - ``bind(names, device)``: called at construction, when parameters are added and when they change device. ``names``
      are the layers in the order of the norms. State of a layer whose name stays must be kept.
    - ``inspect(weights)``: called after ``bind`` with each layer's parameters, at construction and when parameters are
      added, for rules that look at weights.
    - ``binary: bool``: the scales are only 0 and 1, so the learning rate is passed on untouched.
    - ``constant: bool``: the scales never change and do not depend on the norms, which then need not be computed. Such
      a policy is bound on the CPU and asked once, there.
    - ``needs: tuple[str, ...]``: the policy is called with :class:`~localopt.LayerSignals` that hold these signals (and
      no others) instead of norms.
    - ``state_dict()``, ``load_state_dict(state)``: the live device tensors the policy updates in place, by name. The
      optimizer saves them, loads them and puts them back when a step is skipped. They exist once ``bind`` was called.

    Examples:
        >>> def everything_with_a_gradient(norms: Tensor) -> Tensor:
        ...     return (norms > 0).float()
        >>> isinstance(everything_with_a_gradient, Policy)
        True
    """

    def __call__(self, norms: Any, /) -> Tensor:
        """Choose the scales of one step.

        Args:
            norms: float32 tensor of shape (L,) on the device of the parameters: finite, >= 0, and 0 for a layer without
                a gradient. :class:`~localopt.LayerSignals` for a policy that declares ``needs``.

        Returns:
            Scales, shape (L,), values >= 0: 0 freezes a layer, 1 is the user's learning rate.
        """
        ...


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


def needs(policy: Policy) -> tuple[str, ...]:
    """The signals `policy` is to be called with; none for one that takes norms."""
    return tuple(getattr(policy, "needs", ()))


def state_tensors(policy: Policy) -> dict[str, Tensor]:
    """The live tensors `policy` updates in place, by name; empty for a policy without state."""
    return dict(policy.state_dict()) if hasattr(policy, "state_dict") else {}


def load_state(policy: Policy, state: Mapping[str, Any]) -> None:
    """Copy `state` (tensors or lists) into the live tensors of `policy`.

    Raises ValueError, before anything is changed, where names or lengths differ.
    """
    check_state(policy, state_tensors(policy), state)
    if hasattr(policy, "load_state_dict"):
        policy.load_state_dict(state)


def check_state(policy: object, live: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Raise ValueError unless `state` has the names and lengths of `live`, the state of `policy`."""
    remedy = "load it with the policy, layers and parameters it was saved with"
    if live.keys() != state.keys():
        raise ValueError(f"saved policy state has {sorted(state)}, {policy!r} keeps {sorted(live)}: {remedy}")
    for key, tensor in live.items():
        saved = torch.as_tensor(state[key]).shape
        if saved != tensor.shape:
            raise ValueError(
                f"saved policy state {key!r} has shape {tuple(saved)}, {policy!r} keeps {tuple(tensor.shape)}: {remedy}"
            )


@dataclass
class Stateful:
    """A policy that remembers: `_state` holds its device tensors, filled by `bind` and updated in place."""

    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors by name."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state` (tensors or lists) into the live tensors; ValueError where names or lengths differ."""
        check_state(self, self.state_dict(), state)
        for key, tensor in self._state.items():
            tensor.copy_(torch.as_tensor(state[key], dtype=tensor.dtype))

    def _steps(self, device: torch.device) -> Tensor:
        """The number of steps taken so far, int64 of shape (1,), on `device`."""
        steps = self._state.get("steps")
        return torch.zeros(1, dtype=torch.int64, device=device) if steps is None else steps.to(device)


def carry_over(
    old: Tensor | None, old_names: Sequence[str], names: Sequence[str], device: torch.device, fill: float
) -> Tensor:
    """One fp32 value a layer of `names`: what `old` holds for a layer of `old_names`, else `fill`."""
    known = {} if old is None else dict(zip(old_names, old.tolist(), strict=True))
    return torch.tensor([known.get(name, fill) for name in names], dtype=torch.float32, device=device)


def bound(tensor: Tensor | None, policy: object) -> Tensor:
    """`tensor`, or a RuntimeError if `bind` was never called."""
    if tensor is None:
        raise RuntimeError(f"{policy!r} does not know its layers yet: call its bind(names, device) first")
    return tensor


def mean_norm(norms: Tensor) -> Tensor:
    """Mean of `norms` (L,) over the layers that have a gradient, shape (); 0 if none has."""
    return norms.sum() / (norms > 0).sum().clamp(min=1)


def ranks(scores: Tensor) -> Tensor:
    """The place of each of `scores` (L,), from 0 for the largest to L - 1; the first of equals goes first."""
    return scores.argsort(descending=True, stable=True).argsort()


def check_count(k: int | float) -> None:
    """Raise unless `k` is an int >= 1 (layers) or a float in (0, 1] (a share of all layers)."""
    if isinstance(k, bool) or not isinstance(k, (int, float)):
        raise TypeError(f"k must be a number of layers (int) or a share of them (float), not {k!r}")
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k must be at least 1 layer, not {k}")
    if isinstance(k, float) and not 0 < k <= 1:
        raise ValueError(f"k as a share of the layers must be in (0, 1], not {k}; for a number of layers give an int")


def count_layers(k: int | float, layers: int) -> int:
    """`k` if it is a number of layers; as a share, the nearest number of `layers`, at least 1."""
    return k if isinstance(k, int) else max(1, round(k * layers))


def check_period(name: str, value: int) -> None:
    """Raise unless `value` is a number of steps, an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of steps (int), not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1 step, not {value}")
