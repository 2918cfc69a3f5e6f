"""Did what must not move stay where it was? Looked at once, at the first step that freezes something.

An optimizer that steps through another one, or through a list of parameters of its own, never looks at the groups it is
shown: it would train frozen layers at full rate, and every report would say that it did not. What can be recognised is
refused at construction; this finds the rest, by what it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from localopt.steps.sharding import local

_SAMPLES = 16384  # of one parameter: what moves moves nearly everywhere, and a copy of all frozen weights may not fit


class Stillness:
    """Compares weights with what they were: all of small parameters, evenly spread entries of large ones.

    Args:
        parameters: with their names; those that must not move.
    """

    def __init__(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        self.before = [(name, parameter, _sample(parameter).clone()) for name, parameter in parameters]

    def refuse_moved(self, optimizer: Optimizer) -> None:
        """Raise RuntimeError, and put what is known back, if something moved. Waits for the device, once."""
        moved = [_moved(_sample(parameter), old) for _, parameter, old in self.before]
        if not moved:
            return
        home = moved[0].device
        flags = torch.stack([flag.to(home, non_blocking=True) for flag in moved]).tolist()
        names = [name for (name, _, _), flag in zip(self.before, flags, strict=True) if flag]
        if names:
            raise RuntimeError(
                f"{type(optimizer).__name__} moved {len(names)} of {len(flags)} frozen parameters (the first: "
                f"{names[0]}), so it does not step through its parameter groups, but through another optimizer or a "
                "list of its own, and layers cannot be left out. Wrap the optimizer that it steps through "
                "(LocalizedOptimizer inside, this one outside), or use one that steps its own param_groups, as those "
                "of torch.optim do. The weights have moved: load them again."
            )


def _sample(parameter: Tensor) -> Tensor:
    flat = local(parameter.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)]


def _moved(now: Tensor, before: Tensor) -> Tensor:
    """Whether any entry differs, 0-d bool; NaN is equal to NaN."""
    return ((now != before) & ~((now != now) & (before != before))).any()
