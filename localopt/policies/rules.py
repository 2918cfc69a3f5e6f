"""Norms -> scales: the rules that decide which layers are trained, and how fast.

A policy takes one gradient norm a layer, n_l, and returns one scale a layer, s_l: 0 freezes the layer, 1 is the user's
learning rate. A layer *has a gradient* where n_l > 0; P below is the number of such layers. See `Policy` for what a
rule of your own must keep to; rules that contain other rules are in `compose.py`, those of other methods in `peers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from localopt.policies.matching import matched
from localopt.policies.protocol import bound, check_count, count_layers, mean_norm, ranks


@dataclass(frozen=True)
class Everything:
    """Train every layer at the user's rate: s_l = 1. The bare optimizer; what is left is decay toward the start.

    Examples:
        >>> Everything()(torch.tensor([1.0, 0.0]))
        tensor([1., 1.])
    """

    binary: ClassVar[bool] = True
    constant: ClassVar[bool] = True

    def __call__(self, norms: Tensor) -> Tensor:
        return torch.ones_like(norms)


@dataclass(frozen=True)
class AboveMean:
    """Train the layers whose norm is at least the mean: s_l = 1 if n_l >= min(mean, max) else 0.

    Mean and maximum run over the layers that have a gradient. The paper freezes the layers whose relative gradient norm
    is not above the mean; its ">" would freeze everything where all norms are equal. ">=" does not, and the minimum
    keeps that so where the mean is rounded up past the largest norm.

    Examples:
        >>> AboveMean()(torch.tensor([1.0, 2.0, 6.0]))
        tensor([0., 0., 1.])

    References:
        The rule of TGL + FP (Fernandez et al. 2024, arXiv 2411.04448, section 4), applied to the norms it is given.
    """

    binary: ClassVar[bool] = True

    def __call__(self, norms: Tensor) -> Tensor:
        threshold = torch.minimum(mean_norm(norms), norms.max())
        return ((norms >= threshold) & (norms > 0)).float()


@dataclass(frozen=True)
class TopK:
    """Train the layers of the k largest norms: s_l = 1 if at most k - 1 layers come before l, else 0.

    The first of equal norms goes first; a layer without a gradient is never chosen, so fewer than k may be.

    Args:
        k: a number of layers (int >= 1), or a share of all L of them (float in (0, 1], rounded to the nearest number,
            at least 1).

    Raises:
        TypeError, ValueError: any other ``k``.

    Examples:
        >>> TopK(2)(torch.tensor([3.0, 1.0, 3.0, 3.0]))
        tensor([1., 0., 1., 0.])
        >>> TopK(0.25)(torch.tensor([3.0, 1.0, 4.0, 1.0]))
        tensor([0., 0., 1., 0.])
    """

    k: int | float
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.k)

    def __call__(self, norms: Tensor) -> Tensor:
        return ((ranks(norms) < count_layers(self.k, norms.shape[0])) & (norms > 0)).float()


@dataclass(frozen=True)
class Quantile:
    """Train the layers whose norm is at least the q-quantile: s_l = 1 if n_l >= Q(q) else 0.

    Q(q) is the quantile of the P norms that are not 0, interpolated linearly.

    Args:
        q: with 0.75 about a quarter of the layers is trained, with 0 every layer that has a gradient, with 1 those of
            the largest norm.

    Raises:
        ValueError: unless 0 <= q <= 1.

    Examples:
        >>> Quantile(0.5)(torch.tensor([1.0, 0.0, 2.0, 3.0]))
        tensor([0., 0., 1., 1.])
    """

    q: float
    binary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"q must be in [0, 1], not {self.q}")

    def __call__(self, norms: Tensor) -> Tensor:
        # A norm reaches a value interpolated between two neighbors when it reaches the upper one, so the threshold is
        # the norm in place ceil(q (P - 1)) of the P. Whole numbers find that place without rounding errors.
        share = Fraction(self.q).limit_denominator(1_000_000)
        count = (norms > 0).sum(0, keepdim=True)
        place = (share.numerator * (count - 1) + share.denominator - 1) // share.denominator
        zeros_first = norms.shape[0] - count
        threshold = norms.sort().values.gather(0, (zeros_first + place).clamp(max=norms.shape[0] - 1))
        return ((norms >= threshold) & (norms > 0)).float()


@dataclass(frozen=True)
class Proportional:
    """Scale each layer's learning rate with its norm: s_l = n_l / max n, or n_l / mean n.

    Args:
        normalize: ``"max"`` keeps every layer at or below the user's rate; ``"mean"`` keeps the average over the layers
            that have a gradient at the user's rate.

    Raises:
        ValueError: any other ``normalize``.

    Examples:
        >>> Proportional()(torch.tensor([1.0, 2.0, 3.0, 0.0])) * 3
        tensor([1., 2., 3., 0.])
        >>> Proportional("mean")(torch.tensor([1.0, 2.0, 3.0, 0.0]))
        tensor([0.5000, 1.0000, 1.5000, 0.0000])

    References:
        The adaptive learning rates (ALR) of Fernandez et al. 2024 (arXiv 2411.04448), which does not state the
        normalization.
    """

    normalize: Literal["max", "mean"] = "max"

    def __post_init__(self) -> None:
        if self.normalize not in ("max", "mean"):
            raise ValueError(f"normalize must be 'max' or 'mean', not {self.normalize!r}")

    def __call__(self, norms: Tensor) -> Tensor:
        unit = norms.max() if self.normalize == "max" else mean_norm(norms)
        return norms / unit.clamp(min=torch.finfo(norms.dtype).tiny)  # all norms 0 give scales 0, not NaN


@dataclass
class Fixed:
    """Give each layer a scale of its own, the same at every step: s_l = scales[name of l].

    What a trace's ``frozen_parameters()`` (TGL + FP) and ``adaptive_learning_rates()`` (TGL + ALR) return. For a few
    layers by pattern, use :class:`~localopt.Pinned`. Names may differ from the optimizer's by a prefix that is the same
    for all of them, as those of a module and of the model it is a part of do.

    Args:
        scales: a finite number >= 0 for every layer of the optimizer, by name, and for no other.
        partial: the optimizer may hold only some of the layers (adapters, one of two optimizers); scales of others are
            then left unused. A layer without a scale is an error all the same.

    Raises:
        ValueError: a bad scale; or, when bound to an optimizer, layers that are not its own.

    Examples:
        >>> policy = Fixed({"model.layers.0.mlp": 1.0, "lm_head": 0.0})
        >>> policy.bind(["lm_head", "model.layers.0.mlp"], torch.device("cpu"))
        >>> policy(torch.tensor([5.0, 7.0]))
        tensor([0., 1.])
    """

    scales: Mapping[str, float] = field(repr=False)
    partial: bool = field(default=False, repr=False)
    constant: ClassVar[bool] = True
    _tensor: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.scales = {name: float(scale) for name, scale in self.scales.items()}
        bad = {name: scale for name, scale in self.scales.items() if not (math.isfinite(scale) and scale >= 0)}
        if bad:
            raise ValueError(f"scales must be finite and >= 0, not {bad}")

    @property
    def binary(self) -> bool:
        """Whether every scale is 0 or 1."""
        return all(scale in (0.0, 1.0) for scale in self.scales.values())

    def bind(self, names: Sequence[str], device: torch.device) -> None:
        """Align the scales with the layers `names`."""
        found = matched(self.scales, names)
        used = set(found.known_as.values())
        missing = [name for name in names if name not in found.known_as]
        unknown = [] if self.partial else [name for name in self.scales if name not in used]
        if missing or unknown:
            part = " For an optimizer that holds only some of the layers, ask with partial=True." if not missing else ""
            raise ValueError(
                f"Fixed needs one scale for each layer of the optimizer. Layers without a scale: {missing}. "
                f"Scales without a layer: {unknown}.{found.remedy()}{part} Frozen parameters are no layers of a trace, "
                "so leave them out of the optimizer too; to set a few layers by pattern, use "
                "Pinned(policy, always=[...], never=[...])"
            )
        scales = [self.scales[found.known_as[name]] for name in names]
        self._tensor = torch.tensor(scales, dtype=torch.float32, device=device)

    def __call__(self, norms: Tensor) -> Tensor:
        return bound(self._tensor, self)

    def __repr__(self) -> str:
        frozen = sum(scale == 0 for scale in self.scales.values())
        return f"Fixed({len(self.scales)} layers, {frozen} of them frozen)"
