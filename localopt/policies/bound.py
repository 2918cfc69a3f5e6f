"""A policy bound to the layers of one optimizer on one device: asked, checked, put back where a step does not count."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localopt.policies.protocol import (
    Policy,
    bind,
    check_state,
    inspect,
    is_binary,
    is_constant,
    load_state,
    needs,
    state_tensors,
)
from localopt.signals import LayerSignals

_OWNERS: weakref.WeakValueDictionary[int, BoundPolicy] = weakref.WeakValueDictionary()


def _chain(policy: Any) -> Iterator[Policy]:
    """A policy and those it contains, one in the other."""
    while policy is not None:
        yield policy
        policy = getattr(policy, "policy", None)


class BoundPolicy:
    """One policy's life with one optimizer.

    Args:
        policy: the user's.
        names: the L layers.
        weights: the parameters of each layer, which some policies look at.
        device: where signals come and scales are wanted.

    Attributes:
        constant: the scales (L,), on the CPU, of a policy that never changes them; else None. Such a policy lives on
            the CPU, where it is asked once, so that no step and no layout has to wait for the device.
        numbers: the same as a list.
    """

    def __init__(
        self, policy: Policy, names: Sequence[str], weights: Mapping[str, Sequence[Tensor]], device: torch.device
    ) -> None:
        self.policy = policy
        self.constant: Tensor | None = None
        self.numbers: list[float] | None = None
        self._placed: Tensor | None = None  # the same on the device
        for part in _chain(policy):
            _OWNERS[id(part)] = self
        self.bind(names, device)
        self.introduce(weights)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Tell the policy its layers and where its tensors belong; what it remembers of layers that stay is kept."""
        self.names, self.device = tuple(names), device
        bind(self.policy, self.names, torch.device("cpu") if is_constant(self.policy) else device)
        self._placed = None if self.constant is None else self.constant.to(device)

    def introduce(self, weights: Mapping[str, Sequence[Tensor]]) -> None:
        """Show the policy the weights of its layers, and keep on the host what it says for good."""
        inspect(self.policy, weights)
        self.read_constant()

    def read_constant(self) -> None:
        """Ask a constant policy once."""
        self.constant = self.numbers = self._placed = None
        if is_constant(self.policy):
            ones = LayerSignals({name: torch.ones(len(self.names)) for name in self.needs})
            self.constant = self._ask(ones, torch.device("cpu"))
            self.numbers = self.constant.tolist()
            self._placed = self.constant.to(self.device)

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals the policy is called with; norms alone where it declares none."""
        return needs(self.policy) or ("norm",)

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return is_binary(self.policy)

    def choose(self, signals: LayerSignals, finite: Tensor) -> Tensor:
        """Ask for the scales (L,), float32, by tensor operations only.

        A step that does not count (non-finite, or all gradients zero) still runs the policy, on harmless numbers, and
        its state is put back: to decide on the host would be to wait for the device.

        Args:
            signals: of this step.
            finite: 0-d bool; where it is False all scales are 0.
        """
        if self._placed is not None:
            return torch.where(finite, self._placed, 0.0)
        counts = finite & signals.norm.any()
        state = state_tensors(self.policy)
        if state:
            self._refuse_shared()
        before = {key: tensor.clone() for key, tensor in state.items()}
        scales = self._ask(signals.harmless(counts), self.device)
        if state:
            torch._foreach_copy_(list(state.values()), [torch.where(counts, t, before[k]) for k, t in state.items()])
        scales = torch.where(counts, scales, 1.0)
        return torch.where(finite, scales, 0.0)

    def _ask(self, signals: LayerSignals, device: torch.device) -> Tensor:
        scales = self.policy(signals if needs(self.policy) else signals.norm)
        if not isinstance(scales, Tensor) or scales.shape != (len(self.names),):
            got = f"shape {tuple(scales.shape)}" if isinstance(scales, Tensor) else type(scales).__name__
            raise ValueError(
                f"{self.policy!r} returned {got}; a policy returns one scale a layer, shape ({len(self.names)},)"
            )
        return scales.to(device=device, dtype=torch.float32)

    def _refuse_shared(self) -> None:
        """Raise RuntimeError if the policy, or one that it contains, was given to another optimizer since."""
        for part in _chain(self.policy):
            if _OWNERS.setdefault(id(part), self) is not self and state_tensors(part):
                raise RuntimeError(
                    f"{part!r} keeps a state, and was given to another LocalizedOptimizer too, whose layers it would "
                    "mix with these: give each optimizer a policy of its own, copy.deepcopy(policy)"
                )

    # -- its state in a checkpoint: names, lists and numbers ----------------------------------------------------------

    def pack(self, always: bool = False) -> dict[str, Any] | None:
        """Return the policy's state as names, lists and numbers; None if it has none, unless wanted ``always``."""
        state = state_tensors(self.policy)
        if not state and not always:
            return None
        values = {key: tensor.tolist() for key, tensor in state.items()}
        return {"policy": _kind(self.policy), "layers": list(self.names), "state": values}

    def check(self, saved: Mapping[str, Any] | None) -> list[str]:
        """Look at a packed state before it is loaded.

        Returns what the user should be warned of: there is none although the policy keeps one, or the other way round.

        Raises:
            ValueError: it is of other layers or another policy, which the message names, or damaged.
        """
        live = state_tensors(self.policy)
        if saved is not None:
            _check_form(saved)
            if not saved["state"] and not live:
                return []  # it holds no more than a number of skipped steps
        if not live or saved is None:
            if saved is not None:
                return [f"the checkpoint holds the state of {saved['policy']}, for which {self.policy!r} has no use"]
            return [f"the checkpoint holds no policy state: {self.policy!r} starts anew"] if live else []
        if saved["policy"] != _kind(self.policy):
            raise ValueError(
                f"the checkpoint holds the state of {saved['policy']}, the optimizer was given {_kind(self.policy)}: "
                'use the same policy, or remove "localopt" from the first parameter group of the state dict to start '
                "it anew"
            )
        if saved["layers"] != list(self.names):
            theirs, ours = list(map(str, saved["layers"])), self.names
            only_there, only_here = (sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs)))
            raise ValueError(
                f"the checkpoint was saved for other layers: only there {only_there}, only here {only_here}"
            )
        check_state(self.policy, live, saved["state"])
        return []

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Give the policy a state that was checked."""
        if saved is not None and saved["state"] and state_tensors(self.policy):
            load_state(self.policy, saved["state"])
        self.read_constant()


def _check_form(saved: object) -> None:
    """Raise ValueError unless this is what :meth:`BoundPolicy.pack` makes."""
    kinds = {"policy": str, "layers": list, "state": Mapping}
    for key, kind in kinds.items():
        if not isinstance(saved, Mapping) or not isinstance(saved.get(key), kind):
            raise ValueError(
                f'the checkpoint\'s policy state ("localopt" in its first parameter group) is damaged, its {key} is '
                "missing or of another kind: take another checkpoint, or remove the entry to start the policy anew"
            )


def _kind(policy: object) -> str:
    """The class of a policy and of those it contains: Smoothed(AboveMean)."""
    inner = getattr(policy, "policy", None)
    name = getattr(policy, "__name__", type(policy).__name__)
    return name if inner is None else f"{name}({_kind(inner)})"
