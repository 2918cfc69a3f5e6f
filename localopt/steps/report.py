"""What the last localized step did, for a person to read and a logger to write down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from localopt.layers import locate
from localopt.steps.layout import Group, Layout


@dataclass(frozen=True)
class Report:
    """The last step of a :class:`localopt.LocalizedOptimizer`.

    Attributes:
        names: the L layers, in the order of the model.
        norms: gradient norm of each layer; None where the policy is constant and nothing asked for norms.
        scales: what each layer's learning rate was multiplied by; 0 means the layer was frozen.
        total_norm: gradient norm over the layers that were updated, before clipping; None without norms.
        share_updated: share of the optimizer's parameters (by element) that were updated: they lie in layers with a
            scale > 0, and had a gradient.
        skipped_steps: steps so far that changed nothing because a gradient norm was NaN or infinite.
        signals: everything that was taken of the layers, by name: norms and what the policy or the anchor decay needs.
        anchor_shares: share of the way back to the start that each layer went, where the selective rule decides; else
            None.
        without_gradient: layers none of whose parameters had a gradient: not updated, whatever their scale.

    Examples:
        >>> print(Report(("h.0", "h.1"), (0.3, 0.4), (0.0, 1.0), 0.4, 0.5, 0))
        1 of 2 layers updated (50% of parameters), gradient norm 0.4, 0 steps skipped
          h.0  norm 0.3        scale 0
          h.1  norm 0.4        scale 1
    """

    names: tuple[str, ...]
    norms: tuple[float, ...] | None
    scales: tuple[float, ...]
    total_norm: float | None
    share_updated: float
    skipped_steps: int
    signals: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    anchor_shares: tuple[float, ...] | None = None
    without_gradient: tuple[str, ...] = ()

    @property
    def updated(self) -> tuple[str, ...]:
        """Names of the layers that were updated."""
        idle = set(self.without_gradient)
        return tuple(n for n, scale in zip(self.names, self.scales, strict=True) if scale > 0 and n not in idle)

    def __str__(self) -> str:
        norm = "not taken" if self.total_norm is None else f"{self.total_norm:.4g}"
        lines = [
            f"{len(self.updated)} of {len(self.names)} layers updated ({self.share_updated:.0%} of parameters), "
            f"gradient norm {norm}, {self.skipped_steps} steps skipped"
        ]
        if self.anchor_shares is not None:
            back = [share for share in self.anchor_shares if share > 0]
            lines.append(f"{len(back)} layers decayed toward the start")
        width = max(len(name) for name in self.names)
        for i, name in enumerate(self.names):
            layer_norm = "" if self.norms is None else f"norm {self.norms[i]:<10.4g} "
            idle = ", no gradient" if name in self.without_gradient else ""
            share = 0.0 if self.anchor_shares is None else self.anchor_shares[i]
            decayed = f", {share:.2%} of the way back" if share > 0 else ""
            lines.append(f"  {name:<{width}}  {layer_norm}scale {self.scales[i]:.4g}{decayed}{idle}")
        return "\n".join(lines)


def report(
    layout: Layout,
    groups: Sequence[Group],
    present: Sequence[bool],
    scales: Sequence[float],
    signals: Mapping[str, Tensor],
    shares: Tensor | None,
    skipped: int,
) -> Report:
    """Say what a step did.

    Args:
        layout: the optimizer's layers.
        groups: its parameter groups.
        present: for every parameter in turn, whether it had a gradient.
        scales: a number a layer.
        signals: by name, float32 (L,).
        shares: how far each layer went back to its start, or None.
        skipped: steps so far that changed nothing.
    """
    norms = tuple(signals["norm"].tolist()) if "norm" in signals else None
    parameters = [parameter for group in groups for parameter in group["params"]]
    total = updated = 0
    having = set()
    for parameter, has_gradient, layer in zip(parameters, present, layout.flat(), strict=True):
        total += parameter.numel()
        if has_gradient:
            having.add(layer)
            updated += parameter.numel() if scales[layer] > 0 else 0
    return Report(
        names=layout.names,
        norms=norms,
        scales=tuple(scales),
        total_norm=None if norms is None else math.hypot(*(n for n, s in zip(norms, scales, strict=True) if s > 0)),
        share_updated=updated / max(1, total),
        skipped_steps=skipped,
        signals={name: tuple(value.tolist()) for name, value in signals.items()},
        anchor_shares=None if shares is None else tuple(shares.tolist()),
        without_gradient=tuple(name for i, name in enumerate(layout.names) if i not in having),
    )


def summary(policy: object, report: Report, layout: Layout, groups: Sequence[Group]) -> str:
    """Say what trains under a policy, in one line: layers, share, what stands outside the blocks, the backward pass."""
    updated = set(report.updated)
    outside = [name for name in report.names if locate(name)[1] is None]
    told = ", ".join(f"{name} {'trains' if name in updated else 'does not'}" for name in outside[:4])
    gradients = sum(p.numel() for group in groups for p in group["params"] if p.grad is not None)
    total = max(1, sum(layout.sizes(groups)))
    return (
        f"this step trains {len(updated)} of {len(report.names)} layers, {report.share_updated:.0%} of the optimizer's "
        f"parameters, by {policy!r}{'; ' + told if told else ''}. The backward pass still computes gradients for "
        f"{gradients / total:.0%} of them: to save it too, freeze layers before training (LayerTrace.freeze)."
    )
