"""Policies that contain a policy: they change which norms it sees, which of its scales are used, or when.

They nest: `Pinned(Every(Smoothed(AboveMean(), beta=0.9), n=10), always="lm_head")`. The state of the policy inside is
part of the state of the one around it, as "policy.average" for example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor

from localopt.policies.matching import matched
from localopt.policies.protocol import (
    Policy,
    Stateful,
    bind,
    bound,
    carry_over,
    check_period,
    inspect,
    is_binary,
    is_constant,
    load_state,
    needs,
    state_tensors,
)
from localopt.signals import LayerSignals


class Composed(Stateful):
    """A policy around another, `policy`: passes on whatever it does not do itself."""

    policy: Policy  # a field of each dataclass below, in the place it wants

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return is_binary(self.policy)

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals the policy inside is called with; none if it takes norms."""
        return needs(self.policy)

    @property
    def constant(self) -> bool:
        """Whether the scales never change, whatever the norms."""
        return is_constant(self.policy)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Align with the layers `names`, whose norms will come on `device`."""
        bind(self.policy, names, device)

    def inspect(self, weights: Mapping[str, Sequence[Tensor]]) -> None:
        """Show the policy inside the parameters of each layer."""
        inspect(self.policy, weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors by name, those of the policy inside with "policy." before it."""
        return super().state_dict() | {f"policy.{key}": value for key, value in state_tensors(self.policy).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state` (tensors or lists) into the live tensors; ValueError where names or lengths differ."""
        super().load_state_dict(state)
        load_state(self.policy, {key[len("policy.") :]: state[key] for key in state if key.startswith("policy.")})


@dataclass
class Smoothed(Composed):
    """Let ``policy`` see a moving average of the norms instead of the norms of one noisy step.

    With m_0 = 0 and n_t the norms of step t: m_t = beta m_(t-1) + (1 - beta) n_t, and the policy sees
    m_t / (1 - beta^t). A step without a gradient counts as norm 0; a layer added later starts its own average.

    Args:
        policy: the rule that sees the averages.
        beta: near 1 it averages over about 1 / (1 - beta) steps; 0 changes nothing.

    Raises:
        ValueError: unless 0 <= beta < 1.

    Examples:
        >>> from localopt.policies.rules import AboveMean
        >>> policy = Smoothed(AboveMean(), beta=0.5)
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> policy(torch.tensor([1.0, 4.0]))
        tensor([0., 1.])
        >>> policy(torch.tensor([4.0, 3.0]))  # averages 3 and 10/3
        tensor([0., 1.])

    References:
        Adam's bias correction (Kingma & Ba 2015, arXiv 1412.6980, section 3).
    """

    policy: Policy
    beta: float
    _names: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {self.beta}")

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Keep the averages of the layers whose names stay, start those of the others."""
        _refuse_signals(self, self.policy)
        super().bind(names, device)
        for key in ("average", "weight"):  # weight is the same average of ones, 1 - beta^t
            self._state[key] = carry_over(self._state.get(key), self._names, names, device, fill=0.0)
        self._names = tuple(names)

    def __call__(self, norms: Tensor) -> Tensor:
        average, weight = bound(self._state.get("average"), self), self._state["weight"]
        average.mul_(self.beta).add_(norms, alpha=1 - self.beta)
        weight.mul_(self.beta).add_(1 - self.beta)
        return self.policy(average / weight)


@dataclass
class Every(Composed):
    """Adopt the scales of ``policy`` on steps 0, n, 2n, ... and hold them in between.

    The policy sees the norms of every step, so that an average inside it misses none. A layer added between two
    adoptions has scale 1 until the next.

    Args:
        policy: the rule whose scales are held.
        n: number of steps, at least 1.

    Raises:
        TypeError, ValueError: unless n is an int >= 1.

    Examples:
        >>> from localopt.policies.rules import AboveMean
        >>> policy = Every(AboveMean(), n=2)
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> [policy(torch.tensor(norms)).tolist() for norms in ([1.0, 2.0], [2.0, 1.0], [2.0, 1.0])]
        [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    """

    policy: Policy
    n: int
    _names: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_period("n", self.n)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Keep the scales held for the layers whose names stay."""
        super().bind(names, device)
        self._state["held"] = carry_over(self._state.get("held"), self._names, names, device, fill=1.0)
        self._state["steps"] = self._steps(device)
        self._names = tuple(names)

    def __call__(self, norms: Tensor | LayerSignals) -> Tensor:
        held, steps = bound(self._state.get("held"), self), self._state["steps"]
        torch._foreach_copy_([held], [torch.where(steps % self.n == 0, self.policy(norms), held)])
        steps.add_(1)
        return held.clone()  # what a report keeps of this step must not change in the next


@dataclass
class Pinned(Composed):
    """Set the scale of some layers by name and leave the others to ``policy``.

    The policy sees norm 0 for the layers that are set, so they take no part in its mean or its choice; a share or a
    position that it counts over all layers still counts them.

    Args:
        policy: the rule for all other layers.
        always: shell patterns (``fnmatch``), one or several: a layer whose name matches has scale 1. "*" matches any
            characters, dots too.
        never: likewise, for scale 0.

    Raises:
        ValueError: when bound to an optimizer, if a pattern matches no layer or a layer is matched by both.

    Examples:
        >>> from localopt.policies.rules import AboveMean
        >>> policy = Pinned(AboveMean(), always="*embed_tokens", never=["lm_head"])
        >>> policy.bind(["model.embed_tokens", "a.mlp", "b.mlp", "lm_head"], torch.device("cpu"))
        >>> policy(torch.tensor([1.0, 2.0, 3.0, 100.0]))
        tensor([1., 0., 1., 0.])
    """

    policy: Policy
    always: str | Sequence[str] = ()
    never: str | Sequence[str] = ()
    _pinned: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _scales: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Find the layers the patterns name."""
        always, never = self._matches("always", self.always, names), self._matches("never", self.never, names)
        both = [name for name in names if name in always and name in never]
        if both:
            raise ValueError(f"layers matched by both always={self.always!r} and never={self.never!r}: {both}")
        super().bind(names, device)
        self._pinned = torch.tensor([name in always or name in never for name in names], device=device)
        self._scales = torch.tensor([float(name in always) for name in names], device=device)

    def __call__(self, norms: Tensor | LayerSignals) -> Tensor:
        pinned, scales = bound(self._pinned, self), bound(self._scales, self)
        others = norms.without(pinned) if isinstance(norms, LayerSignals) else norms.masked_fill(pinned, 0.0)
        return torch.where(pinned, scales, self.policy(others))

    @staticmethod
    def _matches(argument: str, patterns: str | Sequence[str], names: Sequence[str]) -> set[str]:
        matched = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = {name for name in names if fnmatchcase(name, pattern)}
            if not found:
                raise ValueError(f"pattern {pattern!r} of {argument} matches no layer; the layers are {list(names)}")
            matched |= found
        return matched


class ReferenceNorms(Protocol):
    """What `RelativeTo` needs of a `LayerTrace`: layer names and one reference norm for each, shape (L,)."""

    @property
    def layers(self) -> Sequence[str]: ...

    @property
    def reference_norms(self) -> Tensor: ...


@dataclass
class RelativeTo(Composed):
    """Let ``policy`` see each norm relative to a trace's reference: R_l = n_l / N_l(reference).

    It undoes what makes some layers' gradients large whatever the text. A relative norm does not exist where the
    reference norm is 0, and noticing at a step that a norm is to be divided by 0 would mean waiting for the device, so
    it is refused when bound. A layer without a gradient in this step has R_l = 0 and takes no part.

    Args:
        trace: a :class:`~localopt.LayerTrace` of norms; its layers are matched by name (a prefix apart, as
            ``Fixed`` does) and may be more than the optimizer's.
        policy: the rule that sees the relative norms.

    Raises:
        ValueError: when bound to an optimizer, naming the layers: those the trace does not have, and those whose
            reference norm is 0 or not finite.

    Examples:
        >>> from localopt.policies.rules import AboveMean
        >>> from types import SimpleNamespace
        >>> trace = SimpleNamespace(layers=("a", "b"), reference_norms=torch.tensor([1.0, 10.0]))
        >>> policy = RelativeTo(trace, AboveMean())
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> policy(torch.tensor([2.0, 10.0]))
        tensor([1., 0.])

    References:
        The relative gradient norm of Fernandez et al. 2024 (arXiv 2411.04448), with this step's norm in place of the
        mean norm over a probe set.
    """

    trace: ReferenceNorms = field(repr=False)
    policy: Policy
    _reference: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Align the reference norms with the layers `names`."""
        _refuse_signals(self, self.policy)
        if getattr(self.trace, "holds_gains", False):
            raise ValueError(
                "the trace holds gains and damages, and a norm cannot be taken relative to a damage. Use a trace by "
                "score='norms' here, or this one's frozen_parameters() or adaptive_learning_rates() instead"
            )
        traced = dict(zip(self.trace.layers, self.trace.reference_norms.tolist(), strict=True))
        found = matched(traced, names)
        missing = [name for name in names if name not in found.known_as]
        if missing:
            raise ValueError(
                f"the trace has no layers {missing}; it has {list(traced)}.{found.remedy()} Trace the same model with "
                "the same `layers`"
            )
        norms = {name: traced[found.known_as[name]] for name in names}
        useless = {name: norms[name] for name in names if not 0 < norms[name] < float("inf")}
        if useless:
            raise ValueError(
                f"no norm can be taken relative to the reference norms {useless}. Trace with reference text that "
                "reaches these layers, or leave them out of training with requires_grad_(False)"
            )
        super().bind(names, device)
        self._reference = torch.tensor([norms[name] for name in names], dtype=torch.float32, device=device)

    def __call__(self, norms: Tensor) -> Tensor:
        return self.policy(norms / bound(self._reference, self))


def _refuse_signals(outer: object, policy: Policy) -> None:
    wanted = needs(policy)
    if wanted:
        raise ValueError(
            f"{type(outer).__name__} changes the norms a policy sees, and {policy!r} is called with the signals "
            f"{', '.join(wanted)} instead: use it without {type(outer).__name__}"
        )
