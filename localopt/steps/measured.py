"""Taking the signals of a step: of every layer, the same on every process, by one pass over what they are taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from localopt.signals import layer_signals
from localopt.steps.anchor import Anchor
from localopt.steps.layout import Group, Layout
from localopt.steps.sharding import Sharding, local, reduced
from localopt.sums import READS

_MOMENTA = ("exp_avg", "momentum_buffer")  # Adam's and its kin's, SGD's and its kin's


class Measured:
    """Takes the signals that a policy and an anchor decay need.

    Args:
        layout: the optimizer's layers.
        groups: its parameter groups.
        names: the signals, as :class:`localopt.signals.LayerSignals` has them; none: nothing is ever taken.
        device: where they are wanted.
        broadcast: take those of the first process.
        loss: of the batch that the next step is about, if it was told.
    """

    def __init__(
        self,
        layout: Layout,
        groups: Sequence[Group],
        names: Sequence[str],
        device: torch.device,
        broadcast: bool,
        loss: float | Tensor | None = None,
    ) -> None:
        self.layout, self.names, self.device, self.broadcast, self.loss = layout, list(names), device, broadcast, loss
        self.segments = layout.segments(device)
        self._size: Tensor | None = None
        if "size" in self.names:
            self._size = torch.tensor(layout.sizes(groups), dtype=torch.float32, device=device)

    def refuse_missing(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Raise ValueError for a signal that cannot be had, before anything is changed."""
        if "loss" in self.names and self.loss is None:
            raise ValueError(
                "the policy needs the loss of the batch, and it was not told: call optimizer.observe(loss) before "
                "every step, or step(closure)"
            )
        if {"momentum", "agreement"} & set(self.names):
            known = [entry for entry in state.values() if entry]
            if known and not any(key in entry for entry in known for key in _MOMENTA):
                raise ValueError(
                    f"the policy needs the momentum of the wrapped optimizer, and its state holds {sorted(known[0])}, "
                    f"none of {', '.join(_MOMENTA)}: use an optimizer with momentum, such as AdamW, or another policy"
                )

    def __call__(
        self,
        groups: Sequence[Group],
        state: Mapping[Any, Mapping[str, Any]],
        anchor: Anchor | None,
        shards: Sharding | None,
    ) -> dict[str, Tensor]:
        """Return the signals by name, float32 tensors (L,)."""
        summed = [name for name in self.names if name in READS]
        roles = {role for name in summed for role in READS[name]}
        parameters = [parameter for group in groups for parameter in group["params"]]
        sources: dict[str, list[Tensor | None]] = {
            "gradient": [None if (g := p.grad) is None else local(reduced(g, p)) for p in parameters]
        }
        if "weight" in roles:
            sources["weight"] = [local(p.detach()) for p in parameters]
        if "start" in roles and anchor is not None:
            sources["start"] = [
                None if start is None else local(start).to(parameter.device)
                for group, starts in zip(groups, anchor.starts.near(groups), strict=True)
                for parameter, start in zip(group["params"], starts, strict=True)
            ]
        if "momentum" in roles:
            sources["momentum"] = [_momentum(state.get(parameter, {})) for parameter in parameters]
        signals = layer_signals(summed, sources, self.segments, shards)
        if self.broadcast and torch.distributed.is_initialized():
            together = torch.stack([signals[name] for name in summed])
            # The first process may not see what overflowed on another: without it that one's weights would be lost.
            bad = together.isfinite().logical_not().to(torch.int32)
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
            torch.distributed.broadcast(together, src=0)
            together = together.masked_fill(bad.bool(), torch.nan)
            signals = dict(zip(summed, together.unbind(), strict=True))
        if self._size is not None:
            signals["size"] = self._size
        if "loss" in self.names and self.loss is not None:
            signals["loss"] = _on(self.device, self.loss).reshape(1).expand(len(self.layout.names))
            self.loss = None  # a loss belongs to one step: a stale one must not pass for the next
        return signals

    def finite(self, signals: Mapping[str, Tensor]) -> Tensor:
        """Return whether all signals are numbers, 0-d bool."""
        return torch.stack([signal.isfinite().all() for signal in signals.values()]).all()


def _on(device: torch.device, number: float | Tensor) -> Tensor:
    """One number on a device, float32; one of the host is written there by a kernel, so nothing is copied."""
    if isinstance(number, Tensor) and number.device.type != "cpu":
        return number.detach().to(device=device, dtype=torch.float32, non_blocking=True)
    return torch.full((), float(number), dtype=torch.float32, device=device)


def _momentum(state: Mapping[str, Any]) -> Tensor | None:
    found = next((state[key] for key in _MOMENTA if state.get(key) is not None), None)
    return local(found) if isinstance(found, Tensor) else None
