"""Decay toward the weights training began with, on the layers a step updates.

With w0 the start, after the update of a layer's weights to w:

    w <- w + a (w0 - w)        a in [0, 1], the share of the way back

- ``plain``      a = min(1, lr s strength), s the layer's scale: L2-SP (Li, Grandvalet and Davoine 2018, arXiv
  1802.01483), decoupled from the gradient as AdamW's weight decay is.
- ``selective``  a = strength r where <g, w - w0> > 0 before the update, else 0: where the gradient itself says that the
  layer has gone too far, with r = max(0, ||w - w0|| - ||w_old - w0||) / ||w - w0||, the share of the distance that this
  step added: SPD (Tian et al. 2024, arXiv 2411.01713, algorithm 1), a layer at a time.
- ``cautious``   as plain, on the entries alone whose step went toward the start: cautious weight decay (arXiv
  2510.12402), with the start in place of zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from localopt.signals import layer_signals
from localopt.steps.layout import Group, Layout
from localopt.steps.sharding import Sharding, is_sharded, local
from localopt.sums import BLOCK

Rule: TypeAlias = Literal["plain", "selective", "cautious"]


@dataclass(frozen=True)
class AnchorDecay:
    """How weights decay toward where training began: after the update to w, w <- w + a (w0 - w), with w0 the start.

    - ``"plain"``: a = min(1, lr * s * strength), s the layer's scale.
    - ``"selective"``: a = strength * r for a layer with <g, w - w0> > 0 before the update, where the gradient itself
      says that it has gone too far; else 0. r = max(0, ||w - w0|| - ||w_old - w0||) / ||w - w0||, the share of the
      distance that this step added.
    - ``"cautious"``: as plain, on the entries alone whose step went toward the start.

    Args:
        strength: ``plain`` and ``cautious``: multiplied by the learning rate, so that it follows the user's schedule,
            as ``weight_decay`` does; 25 to 400 are of use at rates around 1e-4. ``selective``: the share in [0, 1] of
            what SPD takes back, whatever the rate. 0 is no decay.
        rule: which entries of which layers, and how far.
        start: the weights to decay toward, by parameter name, of a state dict for example: an earlier checkpoint. None
            for those the parameters have when the optimizer is wrapped. Only those of parameters that require a
            gradient are copied.
        device: where the copy is kept; None for the device of each parameter. ``"cpu"`` saves accelerator memory, and
            moves a copy of the updated layers there at every step.
        dtype: of the copy; None for that of each parameter. ``torch.bfloat16`` halves it for weights that came in that
            dtype, and is refused where it would change them by one bit.

    Raises:
        ValueError: a strength or rule that cannot be.

    Examples:
        >>> AnchorDecay(1.0, rule="selective")
        AnchorDecay(strength=1.0, rule='selective')

    References:
        Plain: L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483), decoupled from the gradient as AdamW's weight
        decay is. Selective: SPD (Tian et al. 2024, arXiv 2411.01713, algorithm 1), a layer at a time. Cautious:
        cautious weight decay (arXiv 2510.12402), with the start in place of zero.
    """

    strength: float
    rule: Rule = "plain"
    start: Mapping[str, Tensor] | None = field(default=None, repr=False)
    device: torch.device | str | None = field(default=None, repr=False)
    dtype: torch.dtype | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.rule not in ("plain", "selective", "cautious"):
            raise ValueError(f"rule must be 'plain', 'selective' or 'cautious', not {self.rule!r}")
        if isinstance(self.strength, bool) or not isinstance(self.strength, (int, float)):
            raise TypeError(f"the strength of an anchor decay must be a number, not {self.strength!r}")
        most = 1.0 if self.rule == "selective" else math.inf
        if not 0 <= self.strength < math.inf or self.strength > most:
            span = "in [0, 1]" if self.rule == "selective" else "finite and >= 0"
            raise ValueError(f"the strength of a {self.rule} anchor decay must be {span}, not {self.strength}")


def as_decay(given: float | AnchorDecay | None, unasked: bool) -> AnchorDecay:
    """Return what LocalizedOptimizer's ``anchor_decay`` means: selective decay where neither it nor a policy is given.

    >>> as_decay(None, unasked=True), as_decay(None, unasked=False), as_decay(100, unasked=True)
    (AnchorDecay(strength=1.0, rule='selective'), AnchorDecay(strength=0.0, rule='plain'), \
AnchorDecay(strength=100, rule='plain'))
    """
    if given is None:
        return AnchorDecay(1.0, rule="selective") if unasked else AnchorDecay(0.0)
    return given if isinstance(given, AnchorDecay) else AnchorDecay(given)


class Anchor:
    """The start of one optimizer's parameters, by their position in its groups, and the pull toward it.

    A parameter that requires no gradient when it is added has no start and is never pulled. The start of one that has
    no data yet (on the meta device) is what it holds at the first step, or when it is first saved.
    """

    def __init__(self, decay: AnchorDecay) -> None:
        self.decay = decay
        self.starts: list[list[Tensor | None]] = []
        self.as_wrapped = decay.start is None  # not given, and not of a checkpoint
        self._waiting = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals that the pull of a step is decided by."""
        return ("norm", "drift", "pullback") if self.decay.rule == "selective" else ()

    def add(self, groups: Sequence[Group], names: Sequence[Sequence[str]]) -> None:
        """Keep the start of groups that are new.

        Raises:
            ValueError: the start given lacks a parameter, has it in another shape, or does not fit the dtype asked for.
        """
        added = [
            [self._start(parameter, name) for parameter, name in zip(group["params"], mine, strict=True)]
            for group, mine in zip(groups, names, strict=True)
        ]
        self.starts.extend(added)
        self._waiting |= any(start is not None and start.is_meta for mine in added for start in mine)

    def begin(self, groups: Sequence[Group], names: Sequence[Sequence[str]]) -> None:
        """Before a step: see that every start still fits, and take those of parameters that had no data when added.

        Raises:
            ValueError: a parameter has another shape by now, as after ``resize_token_embeddings``.
        """
        for group, mine, known in zip(groups, self.starts, names, strict=True):
            for parameter, start, name in zip(group["params"], mine, known, strict=True):
                if start is not None and start.shape != parameter.shape:
                    raise ValueError(
                        f"{name!r} had shape {tuple(start.shape)} when the optimizer was wrapped, and has "
                        f"{tuple(parameter.shape)} now, so it cannot decay toward its start; nothing was updated. Wrap "
                        "the optimizer after the model was resized, or without a decay (anchor_decay=0)"
                    )
        self._take(groups)

    def _take(self, groups: Sequence[Group]) -> None:
        if not self._waiting:
            return
        self._waiting = False
        for group, mine in zip(groups, self.starts, strict=True):
            for i, (parameter, start) in enumerate(zip(group["params"], mine, strict=True)):
                if start is None or not start.is_meta:
                    continue
                if parameter.is_meta:
                    self._waiting = True
                else:
                    mine[i] = parameter.detach().to(self.decay.device or parameter.device, start.dtype, copy=True)

    def _start(self, parameter: Tensor, name: str) -> Tensor | None:
        if not parameter.requires_grad:
            return None
        found = parameter.detach()
        if self.decay.start is not None:
            if name not in self.decay.start:
                raise ValueError(
                    f"the start of the anchor decay has no {name!r}; it has {_some(self.decay.start)}: give the "
                    "weights of the same model, or freeze this parameter (requires_grad_(False)) first"
                )
            found = self.decay.start[name].detach()
            if found.shape != parameter.shape:
                raise ValueError(
                    f"the start of {name!r} has shape {tuple(found.shape)}, the parameter {tuple(parameter.shape)}: "
                    "give the weights of the same model"
                )
            found = laid_out_like(found.to(parameter.dtype), parameter)
        if found.is_meta:
            return torch.empty_like(found, dtype=self.decay.dtype)
        home = found.device if parameter.is_meta else parameter.device
        kept = found.to(device=self.decay.device or home, dtype=self.decay.dtype or parameter.dtype, copy=True)
        if kept.dtype != parameter.dtype and not torch.equal(local(kept).to(found), local(found)):
            raise ValueError(
                f"dtype={kept.dtype} would change the start of {name!r}, and what is learned is smaller than that "
                f"rounding: leave dtype out (the weights are {parameter.dtype})"
            )
        return kept

    def near(self, groups: Sequence[Group]) -> list[list[Tensor | None]]:
        """Return the starts, moved and sharded as the parameters are by now (they may have changed since)."""
        self._take(groups)
        return [self.near_group(index, group) for index, group in enumerate(groups)]

    def near_group(self, index: int, group: Group) -> list[Tensor | None]:
        """The same for one group."""
        mine = self.starts[index]
        for i, (parameter, start) in enumerate(zip(group["params"], mine, strict=True)):
            if start is None or parameter.is_meta:
                continue
            if is_sharded(parameter) and not is_sharded(start):
                mine[i] = laid_out_like(start, parameter)
            elif self.decay.device is None and start.device != parameter.device:
                mine[i] = start.to(parameter.device)
        return mine

    # -- around a step ------------------------------------------------------------------------------------------------

    def before(
        self, groups: Sequence[Group], layout: Layout, scales: Sequence[float] | None, passed: Collection[int] = ()
    ) -> list[list[Tensor | None]]:
        """Return the weights of before the step, where the cautious rule has to compare with them.

        Args:
            groups, layout: all of the optimizer's.
            scales: of the layers, where they are known on the host.
            passed: groups that are pulled while they are stepped.
        """
        if self.decay.rule != "cautious" or self.decay.strength == 0:
            return []

        def moves(parameter: Tensor, start: Tensor | None, layer: int) -> bool:
            return start is not None and parameter.grad is not None and not (scales and scales[layer] == 0)

        return [
            [
                local(p.detach()).clone() if i not in passed and moves(p, start, layer) else None
                for p, start, layer in zip(group["params"], mine, owners, strict=True)
            ]
            for i, (group, mine, owners) in enumerate(zip(groups, self.starts, layout.owners, strict=True))
        ]

    def shares(
        self,
        groups: Sequence[Group],
        signals: Mapping[str, Tensor],
        layout: Tensor,
        sharding: Sharding | None,
        skip: Sequence[bool],
    ) -> Tensor | None:
        """After the step: how far each layer goes back, float32 (L,), where that does not depend on the rate.

        Args:
            groups: all of the optimizer's.
            signals: taken before the step.
            layout: see :func:`localopt.signals.layer_norms`.
            sharding: every process calls this, if given.
            skip: for every parameter in turn, whether it need not be looked at, because its layer is not pulled.
        """
        if self.decay.rule != "selective":
            return None
        pairs = [
            (p, s)
            for group, mine in zip(groups, self.near(groups), strict=True)
            for p, s in zip(group["params"], mine, strict=True)
        ]
        seen = [s is not None and not skipped for (_, s), skipped in zip(pairs, skip, strict=True)]
        weights = [local(p.detach()) if here else None for (p, _), here in zip(pairs, seen, strict=True)]
        starts = [
            local(s).to(w.device) if s is not None and w is not None else None
            for (_, s), w in zip(pairs, weights, strict=True)
        ]
        drift = layer_signals(["drift"], {"weight": weights, "start": starts}, layout, sharding)["drift"]
        gone = (drift - signals["drift"]) / drift.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(signals["pullback"] > 0, self.decay.strength * gone.clamp(0.0, 1.0), 0.0)

    def pull_on_host(
        self,
        index: int,
        group: Group,
        owners: Sequence[int],
        scales: Sequence[float],
        shares: Sequence[float] | None,
        before: Sequence[Tensor | None],
    ) -> None:
        """Move what a step updated in one group back toward the start, with all numbers known on the host."""
        by_share: dict[float, list[int]] = {}
        for position, (parameter, start, layer) in enumerate(
            zip(group["params"], self.starts[index], owners, strict=True)
        ):
            if start is None or parameter.grad is None or scales[layer] == 0:
                continue
            share = self.by_rate(group, scales[layer]) if shares is None else shares[layer]
            if share > 0:
                by_share.setdefault(share, []).append(position)
        for share, positions in by_share.items():
            weights = [local(group["params"][i].detach()) for i in positions]
            starts = [local(s) for i in positions if (s := self.starts[index][i]) is not None]
            starts = [start.to(weight) for start, weight in zip(starts, weights, strict=True)]
            if self.decay.rule == "cautious":
                olds = [old for i in positions if (old := before[i]) is not None]
                for weight, start, old in zip(weights, starts, olds, strict=True):
                    lerp_cautiously(weight, start, old, share)
            else:
                torch._foreach_lerp_(weights, starts, share)

    def by_rate(self, group: Group, scale: float) -> float:
        """min(1, lr s strength)."""
        return min(1.0, float(group["lr"]) * scale * self.decay.strength)


def lerp_cautiously(weight: Tensor, start: Tensor, old: Tensor, share: float | Tensor) -> None:
    """Move the entries back whose step, ``weight - old``, went toward ``start`` already; all tensors of one shape."""
    if weight.device.type == "cpu" and all(tensor.is_contiguous() for tensor in (weight, start, old)):
        # Piece by piece, so that what is made on the way stays in cache.
        pieces = zip(*(torch.split(tensor.view(-1), BLOCK) for tensor in (weight, start, old)), strict=True)
    else:
        pieces = zip([weight], [start], [old], strict=True)
    for w, w0, before in pieces:
        toward = (w - before).mul_(w0 - before) > 0
        torch.where(toward, torch.lerp(w, w0, share), w, out=w)


def laid_out_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Shard a whole tensor as a parameter is; what is sharded already, or belongs to a plain parameter, stays."""
    if not is_sharded(parameter) or is_sharded(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(list(names)[:3])
    return shown + (", ..." if len(names) > 3 else "")
