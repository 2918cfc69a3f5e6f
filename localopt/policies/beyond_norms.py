"""Rules on other signals than gradient norms: gain over damage, relative change, agreement with momentum, the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from localopt.policies.compose import Composed
from localopt.policies.matching import matched
from localopt.policies.protocol import Policy, bound, needs
from localopt.policies.rules import AboveMean, Everything
from localopt.signals import LayerSignals


class Damages(Protocol):
    """What `GainOverDamage` needs of a `LayerTrace` by gains: layer names and one damage for each, shape (L,)."""

    @property
    def layers(self) -> Sequence[str]: ...

    @property
    def reference_norms(self) -> Tensor: ...

    @property
    def holds_gains(self) -> bool: ...


@dataclass
class GainOverDamage:
    """Train the layers where a step wins much and costs the reference little: ``policy`` on G_l = ||g_l||_1 / damage_l.

    ||g_l||_1 is what the first step of Adam on layer l wins on this step's batch, per unit of learning rate, and the
    damage is how far the same kind of step moves the loss of what is to be kept (squared, mean over its examples), as a
    trace by gains measured it. The choice of such a trace, following the batches.

    Args:
        trace: a :class:`~localopt.LayerTrace` by gains; its layers are matched by name.
        policy: any rule on norms; by default the layers with G_l at least at the mean are trained.

    Raises:
        ValueError: when bound to an optimizer: a trace of norms; layers the trace does not have, or whose damage is 0
            or not finite, by name.

    Examples:
        >>> from types import SimpleNamespace
        >>> trace = SimpleNamespace(layers=("a", "b"), reference_norms=torch.tensor([1.0, 10.0]), holds_gains=True)
        >>> policy = GainOverDamage(trace)
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> policy(LayerSignals({"l1": torch.tensor([2.0, 10.0])}))
        tensor([1., 0.])
    """

    trace: Damages = field(repr=False)
    policy: Policy = field(default_factory=AboveMean)
    needs: ClassVar[tuple[str, ...]] = ("norm", "l1")
    _damages: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return bool(getattr(self.policy, "binary", False))

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Align the damages with the layers `names`."""
        if not self.trace.holds_gains:
            raise ValueError(
                'the trace holds gradient norms, and GainOverDamage needs damages: trace with score="gains", or use '
                "RelativeTo(trace, policy) with a trace of norms"
            )
        _refuse_unbindable(self, self.policy)
        traced = dict(zip(self.trace.layers, self.trace.reference_norms.tolist(), strict=True))
        found = matched(traced, names)
        missing = [name for name in names if name not in found.known_as]
        if missing:
            raise ValueError(
                f"the trace has no layers {missing}; it has {list(traced)}.{found.remedy()} Trace the same model with "
                "the same `layers`"
            )
        damages = {name: traced[found.known_as[name]] for name in names}
        useless = {name: damages[name] for name in names if not 0 < damages[name] < math.inf}
        if useless:
            raise ValueError(
                f"nothing can be divided by the damages {useless}: trace with reference text that reaches these layers"
            )
        self._damages = torch.tensor([damages[name] for name in names], dtype=torch.float32, device=device)

    def __call__(self, signals: LayerSignals) -> Tensor:
        return self.policy(signals.l1 / bound(self._damages, self))


@dataclass(frozen=True)
class RelativeChange:
    """Train the layers whose gradient is large for their weights: ``policy`` on ||g_l||_1 / ||w_l||_2.

    No trace and no reference: a step of Adam wins ||g_l||_1 per unit of learning rate, and moves a layer with large
    weights relatively little. A layer whose weights are all zero counts as one without a gradient.

    Args:
        policy: any rule on norms.

    Examples:
        >>> signals = LayerSignals({"l1": torch.tensor([1.0, 1.0]), "weight": torch.tensor([1.0, 2.0])})
        >>> RelativeChange()(signals)
        tensor([1., 0.])

    References:
        The score of GaLLoP (arXiv 2510.19778), taken a layer at a time.
    """

    policy: Policy = field(default_factory=AboveMean)
    needs: ClassVar[tuple[str, ...]] = ("norm", "l1", "weight")

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return bool(getattr(self.policy, "binary", False))

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Nothing is to be aligned; the policy inside has to be one without state."""
        _refuse_unbindable(self, self.policy)

    def __call__(self, signals: LayerSignals) -> Tensor:
        ratios = signals.l1 / signals.weight.clamp(min=torch.finfo(torch.float32).tiny)
        return self.policy(ratios.masked_fill(signals.weight == 0, 0.0))


@dataclass(frozen=True)
class Agreement:
    """Train a layer as far as its gradient agrees with its momentum: s_l = 1 if <g_l, m_l> > 0, else 0.

    A layer without momentum (its first step) is trained at scale 1.

    Args:
        proportional: scale by how far they agree instead: s_l = max(0, cos(g_l, m_l)).

    Examples:
        >>> signals = {"norm": torch.ones(3), "momentum": torch.tensor([1.0, 2.0, 0.0])}
        >>> Agreement()(LayerSignals(signals | {"agreement": torch.tensor([0.5, -1.0, 0.0])}))
        tensor([1., 0., 1.])

    References:
        The layer-wise form of what cautious optimizers do by entries (Liang et al. 2024, arXiv 2411.16085).
    """

    proportional: bool = False
    needs: ClassVar[tuple[str, ...]] = ("norm", "momentum", "agreement")

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return not self.proportional

    def __call__(self, signals: LayerSignals) -> Tensor:
        agrees = signals.agreement > 0
        size = (signals.norm * signals.momentum).clamp(min=torch.finfo(torch.float32).tiny)
        scales = (signals.agreement / size).clamp(0.0, 1.0) if self.proportional else agrees.float()
        return torch.where(signals.momentum == 0, 1.0, scales) * (signals.norm > 0)


@dataclass
class LossScaled(Composed):
    """Lower the rate on batches of high loss: s_l = policy(...)_l * min(1, sqrt(c / loss)).

    Learning from what a model finds least likely costs it most of what it knew, so the rate falls with one over the
    square root of the loss. c is the mean loss of the steps so far (this one included): an average batch is trained at
    the user's rate and nothing has to be set. The loss comes from the closure given to ``step(closure)``, or is told
    before the step: ``optimizer.observe(loss)``.

    Args:
        policy: the rule whose scales are lowered.

    Examples:
        >>> policy = LossScaled()
        >>> policy.bind(["a", "b"], torch.device("cpu"))
        >>> [policy(LayerSignals({"norm": torch.ones(2), "loss": torch.full((2,), x)})).tolist() for x in (2.0, 6.0)]
        [[1.0, 1.0], [0.8164966106414795, 0.8164966106414795]]

    References:
        FINCH (arXiv 2605.20005).
    """

    policy: Policy = field(default_factory=Everything)
    binary: ClassVar[bool] = False
    constant: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals of the policy inside, and the loss."""
        return tuple(dict.fromkeys(("norm", "loss", *needs(self.policy))))

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Start averaging losses, or go on."""
        super().bind(names, device)
        zero = torch.zeros(2, device=device)
        self._state["losses"] = self._state.get("losses", zero).to(device)  # their sum, their number

    def __call__(self, signals: LayerSignals) -> Tensor:
        losses = bound(self._state.get("losses"), self)
        loss = signals.loss.select(0, 0)
        losses.add_(torch.stack([loss, torch.ones_like(loss)]))
        total, count = losses.unbind()
        ratio = total / count / signals.loss
        return self.policy(signals if needs(self.policy) else signals.norm) * ratio.clamp(min=0.0, max=1.0).sqrt()


def _refuse_unbindable(outer: object, policy: Policy) -> None:
    """These hand a norm-like number to a rule of one call; state would have to be bound and saved with them."""
    if hasattr(policy, "bind") or hasattr(policy, "state_dict") or needs(policy):
        raise ValueError(
            f"{type(outer).__name__} takes a rule without state, such as AboveMean(), TopK(k) or Proportional(), not "
            f"{policy!r}: put what decides over time around it, Every({type(outer).__name__}(...), n)"
        )
