"""Scales -> updates, by the route that fits: on the device where fused kernels can, else after reading scales once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from localopt.policies.bound import BoundPolicy
from localopt.steps import fused
from localopt.steps import triton as kernels
from localopt.steps.anchor import Anchor
from localopt.steps.anchor_fused import pull_on_device
from localopt.steps.carry import carry
from localopt.steps.checks import refuse_scales
from localopt.steps.layout import Group, Layout
from localopt.steps.sharding import Sharding
from localopt.steps.split import split_step
from localopt.steps.watch import Watch


@dataclass
class Update:
    """How one optimizer's layers are updated.

    Attributes:
        optimizer: the wrapped one.
        layout: its layers.
        policy: what chose the scales.
        frozen_state: see :class:`localopt.LocalizedOptimizer`.
        anchor: where its parameters began, if they are to decay toward it.
        watch: sees once that what is frozen does not move.
    """

    optimizer: Optimizer
    layout: Layout
    policy: BoundPolicy
    frozen_state: str
    anchor: Anchor | None
    watch: Watch

    def by_constant(self) -> list[float]:
        """Step every layer by the policy's constant scales; nothing was measured."""
        assert self.policy.numbers is not None
        scales = self.policy.numbers
        refuse_scales(self.policy.policy, self.layout.names, scales)
        before = self._before(scales)
        self._split(range(len(self._groups)), scales, None)
        self._pull_on_host(range(len(self._groups)), scales, None, before)
        return scales

    def __call__(
        self,
        signals: Mapping[str, Tensor],
        scales: Tensor,
        finite: Tensor,
        clip: Tensor | None,
        segments: Tensor,
        shards: Sharding | None,
    ) -> tuple[list[float] | None, Tensor | None]:
        """Step every layer by its scale.

        Args:
            signals: by name, float32 (L,), of before the step.
            scales: float32 (L,).
            finite: 0-d bool; False: nothing is updated.
            clip: 0-d tensor that gradients are multiplied by, or None.
            segments, shards: see :func:`localopt.signals.layer_norms`.

        Returns:
            The scales, if they were read and the step was not skipped; how far each layer went back to its start, where
            the selective rule decided.
        """
        groups = self._groups
        on_device = [i for i, group in enumerate(groups) if self._can_fuse(group)]
        rest = [i for i in range(len(groups)) if i not in on_device]
        numbers: list[float] | None = None
        if rest:
            *numbers, all_finite = torch.cat([scales, finite.reshape(1)]).tolist()
            if not all_finite:
                return None, None
            refuse_scales(self.policy.policy, self.layout.names, numbers)
        at_once = [i for i in on_device if kernels.serves(self.optimizer, groups[i])]
        before = self._before(None if on_device else numbers, at_once)
        if rest and numbers is not None:
            self._split(rest, numbers, clip)
        track = self.frozen_state == "track"
        # A scale that is no number is found by report(); here it must not reach the weights.
        usable = finite & scales.isfinite() & (scales >= 0)
        unusable = usable.logical_not()
        idle = (unusable | (scales == 0) & (not track)).float()
        for i in on_device:
            group, layers = self._ever_trained(i)
            binary = self.policy.binary and not track
            if i in at_once:
                self._step_at_once(i, group, layers, scales, idle, unusable, clip)
            else:
                fused.fused_step(self.optimizer, group, layers, scales, idle=idle, binary=binary, clip=clip)
        if self.anchor is None or self.anchor.decay.strength == 0:
            return numbers, None
        shares = self.anchor.shares(groups, signals, segments, shards, self._unpulled(numbers, signals))
        if rest and numbers is not None:
            self._pull_on_host(rest, numbers, None if shares is None else shares.tolist(), before)
        for i in on_device:
            held = unusable | (scales == 0)
            if i in at_once:
                self._pull_at_once(i, shares, held)
                continue
            old = before[i] if before else []
            pull_on_device(self.anchor, i, groups[i], self.layout.owners[i], scales, shares, held, old)
        return numbers, shares

    @property
    def _groups(self) -> list[Group]:
        return self.optimizer.param_groups

    def _can_fuse(self, group: Group) -> bool:
        return self.frozen_state != "carry" and fused.can_fuse(self.optimizer, group)

    def _split(self, groups: Sequence[int], scales: Sequence[float], clip: Tensor | None) -> None:
        mine = [self._groups[i] for i in groups]
        owners = [self.layout.owners[i] for i in groups]
        track = self.frozen_state == "track"
        # To look is to wait for the device, and torch's own are known to step the groups they are shown.
        away = any(parameter.device.type != "cpu" for group in mine for parameter in group["params"])
        known = away and type(self.optimizer).__module__.startswith("torch.optim.")
        names = [self.layout.parameters[i] for i in groups]
        still = None if track or known else self.watch.moving(mine, names, owners, scales)
        split_step(self.optimizer, mine, owners, scales, clip=clip, track=track)
        if still is not None:
            still.refuse_moved(self.optimizer)
            self.watch.still = True
        if self.frozen_state == "carry":
            carry(self.optimizer, mine, owners, scales, 1.0 if clip is None else float(clip))

    def _ever_trained(self, index: int) -> tuple[dict[str, Any], Sequence[int]]:
        """Return a group and its owners without what a constant policy freezes: the kernels would make it a state."""
        group, layers, constant = self._groups[index], self.layout.owners[index], self.policy.numbers
        if constant is None or self.frozen_state == "track":
            return group, layers
        keep = [i for i, layer in enumerate(layers) if constant[layer] > 0]
        return {**group, "params": [group["params"][i] for i in keep]}, [layers[i] for i in keep]

    # -- all layers of a group by one kernel --------------------------------------------------------------------------

    def _step_at_once(
        self,
        index: int,
        group: Group,
        layers: Sequence[int],
        scales: Tensor,
        idle: Tensor,
        unusable: Tensor,
        clip: Tensor | None,
    ) -> None:
        """Step a group and, where the learning rate alone says how far, pull it in the same pass."""
        from localopt.steps.triton.update import Pull, triton_step

        back, anchor = None, self.anchor
        if anchor is not None and anchor.decay.strength and anchor.decay.rule != "selective":
            shares = (scales * group["lr"] * anchor.decay.strength).clamp(max=1.0).masked_fill(unusable, 0.0)
            back = Pull(anchor.decay.rule, self._starts(anchor, index), shares)
        triton_step(self.optimizer, group, layers, scales, idle=idle, clip=clip, back=back)

    def _pull_at_once(self, index: int, shares: Tensor | None, held: Tensor) -> None:
        """Pull a group by shares that the step had to be seen for."""
        if shares is None or self.anchor is None:
            return
        from localopt.steps.triton.update import Pull, triton_pull

        back = Pull("selective", self._starts(self.anchor, index), shares.masked_fill(held, 0.0))
        triton_pull(self._groups[index], self.layout.owners[index], back)

    def _starts(self, anchor: Anchor, index: int) -> dict[int, Tensor]:
        group = self._groups[index]
        pairs = zip(group["params"], anchor.starts.near_group(index, group), strict=True)
        return {id(parameter): start for parameter, start in pairs if start is not None}

    # -- decay toward the start ---------------------------------------------------------------------------------------

    def _before(self, scales: Sequence[float] | None, passed: Sequence[int] = ()) -> list[list[Tensor | None]]:
        return [] if self.anchor is None else self.anchor.before(self._groups, self.layout, scales, passed)

    def _unpulled(self, scales: Sequence[float] | None, signals: Mapping[str, Tensor]) -> list[bool]:
        """Which parameters the selective rule need not look at; known where the scales are."""
        owners = self.layout.flat()
        if scales is None or "pullback" not in signals or any(self._can_fuse(group) for group in self._groups):
            return [False] * len(owners)
        back = signals["pullback"].tolist()
        return [scales[layer] == 0 or back[layer] <= 0 for layer in owners]

    def _pull_on_host(
        self,
        groups: Sequence[int],
        scales: Sequence[float],
        shares: Sequence[float] | None,
        before: Sequence[Sequence[Tensor | None]],
    ) -> None:
        if self.anchor is None or self.anchor.decay.strength == 0:
            return
        self.anchor.starts.near(self._groups)
        for i in groups:
            old = before[i] if before else []
            self.anchor.pull_on_host(i, self._groups[i], self.layout.owners[i], scales, shares, old)
